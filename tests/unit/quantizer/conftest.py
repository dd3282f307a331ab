"""One checkpoint of each dialect for all tests of methods that change layers."""

import pytest

from tests.unit.quantizer import dialect_layers


@pytest.fixture(scope="session", params=dialect_layers.DIALECTS)
def dialect_checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dialect_layers.DialectCheckpoint:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp(request.param) / "source"
    return dialect_layers.make(request.param, folder)
