"""Every configuration says how far its model was tested, and docs/models.md says the same."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mindformers_glm.config.model_levels import MODEL_LEVELS
from mindformers_glm.config.run_config import RunConfig, load_run_config
from mindformers_glm.core.errors import ConfigError
from tests.unit.config.predict_arguments import predict_arguments

REPO = Path(__file__).parents[3]
CONFIGS = {str(path.relative_to(REPO)): path for path in REPO.glob("configs/*/*.yaml")}
_ROW = re.compile(r"^\| (configs/\S+) \| (\d) \| (\w+) \| (\w+) \|", re.MULTILINE)
# Upstream's README has the five of inference in this order; mindformers ships it as METADATA.
_UPSTREAMS = ["Released", "Validated", "Preliminary", "Untested", "Community"]


def _load(path: Path, *argv: str) -> RunConfig:
    return load_run_config(predict_arguments("--config", str(path), *argv), environ={})


def _tree(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tree


def test_the_documentation_lists_every_file_with_its_levels() -> None:
    listed = {name: row for name, *row in _ROW.findall(_page())}
    found = {}
    for name, path in CONFIGS.items():
        tree = _tree(path)
        levels = tree["model_level"]
        ranks = str(tree["parallel_config"]["model_parallel"])
        found[name] = [ranks, levels["CPU"], levels["Ascend"]]
    assert listed == found


def test_the_documentation_says_what_each_word_needs() -> None:
    words = re.findall(r"^\| (\w+) \| [^|]+ \| [^|]+ \|$", _page(), re.MULTILINE)
    assert [word for word in words if word in MODEL_LEVELS] == list(MODEL_LEVELS) == _UPSTREAMS


def test_nothing_is_more_than_untested_on_a_device_that_nobody_had() -> None:
    # Change this together with the table of runs in docs/ascend.md.
    assert {_tree(path)["model_level"]["Ascend"] for path in CONFIGS.values()} == {"Untested"}


def test_a_file_without_levels_has_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1\n", encoding="utf-8")
    assert _load(path).model_levels == {}


def test_a_word_that_is_no_level_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model_level: {CPU: Excellent}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"Excellent but can only be Released or Validated or"):
        _load(path)


def _page() -> str:
    return (REPO / "docs/models.md").read_text(encoding="utf-8")
