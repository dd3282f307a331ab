"""The table of versions against what MindSpore Transformers says of itself."""

import json
from importlib.metadata import distribution
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from mindformers_glm.config.supported_versions import (
    PINNED,
    TESTED,
    find_set,
    matches,
    parse_version,
)


def test_the_pin_is_what_upstream_says_belongs_together() -> None:
    spec = find_spec("mindformers")
    assert spec is not None
    assert spec.origin is not None
    table = json.loads((Path(spec.origin).parent / "VERSION_MAP.json").read_text())
    mindspore = table["mf"][PINNED.packages["mindformers"]]["prefer"]
    assert PINNED.packages["mindspore"] == mindspore
    assert PINNED.cann == table["ms"][mindspore]["prefer"]
    assert PINNED.hdk == table["cann"][PINNED.cann]["prefer"]


@pytest.mark.parametrize("package", ["transformers", "tokenizers"])
def test_the_pinned_packages_are_those_that_upstreams_wheel_requires(package: str) -> None:
    required = distribution("mindformers").requires or []
    assert f"{package}=={PINNED.packages[package]}" in required
    assert "numpy<2.0.0" in required


def test_every_set_names_the_same_packages_and_is_found_by_its_mindformers() -> None:
    for row in TESTED:
        assert row.packages.keys() == PINNED.packages.keys()
        assert find_set(row.packages["mindformers"]) is row
    assert find_set("0.0.1") is find_set(None) is None


def test_versions_are_ordered_as_their_makers_do() -> None:
    ordered = ["8.3.RC1.alpha001", "8.3.RC1", "8.3.rc1.2", "8.3.RC2", "8.3", "8.3.0", "8.5.0"]
    parsed = [parse_version(text) for text in ordered]
    assert all(one < other for one, other in pairwise(parsed))
    assert parse_version("25.3.RC1") == parse_version("25.3.rc1")
    assert parse_version("24.1.rc3.7") < parse_version("25.2.0") < parse_version("25.3.rc1")


@pytest.mark.parametrize(
    ("found", "wanted", "is_match"),
    [
        ("25.3.rc1", "25.3.RC1", True),
        ("2.7.1", "2.7.1", True),
        ("2.7.10", "2.7.1", False),
        ("1.26.4", "<2", True),
        ("2.0.0", "<2", False),
    ],
)
def test_a_limit_is_no_version(found: str, wanted: str, is_match: bool) -> None:
    assert matches(found, wanted) is is_match
