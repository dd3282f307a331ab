"""backends: which device is chosen, and what is said about it."""

import pytest

from mindformers_glm.backends import select_backend
from mindformers_glm.backends.ascend import backend as ascend_module
from mindformers_glm.backends.ascend.backend import AscendBackend
from mindformers_glm.core.errors import UnsupportedError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Whether there is a card, and whether there is CANN."""
    has_card, has_cann = request.param
    monkeypatch.setattr(AscendBackend, "is_present", lambda backend: has_card)
    monkeypatch.setattr(ascend_module, "find_spec", lambda name: has_cann or None)


def on(has_card: bool, has_cann: bool) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("machine", [(has_card, has_cann)], indirect=True)


@on(has_card=False, has_cann=True)
@pytest.mark.usefixtures("machine")
def test_cpu_is_chosen_and_named_where_there_is_no_card(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert select_backend(None).name == "CPU"
    said = capsys.readouterr().err
    assert said == "mindformers_glm: device_target is not set: running on CPU\n"


@on(has_card=True, has_cann=True)
@pytest.mark.usefixtures("machine")
def test_ascend_is_chosen_and_named_where_it_can_be_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert select_backend(None).name == "Ascend"
    assert "device_target is not set: running on Ascend\n" in capsys.readouterr().err


@on(has_card=True, has_cann=False)
@pytest.mark.usefixtures("machine")
def test_a_card_that_cannot_be_used_is_not_passed_over_without_a_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert select_backend(None).name == "CPU"
    assert "running on CPU. device_target Ascend needs CANN" in capsys.readouterr().err


@on(has_card=True, has_cann=False)
@pytest.mark.usefixtures("machine")
def test_ascend_without_cann_says_what_to_source() -> None:
    with pytest.raises(UnsupportedError, match=r"needs CANN.*set_env\.sh"):
        select_backend("Ascend")


@on(has_card=False, has_cann=True)
@pytest.mark.usefixtures("machine")
def test_ascend_without_a_card_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="needs an NPU and its driver"):
        select_backend("Ascend")


def test_a_device_that_is_named_is_not_commented_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert select_backend("CPU").name == "CPU"
    assert capsys.readouterr().err == ""


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match="must be one of CPU, Ascend, got 'GPU'"):
        select_backend("GPU")
