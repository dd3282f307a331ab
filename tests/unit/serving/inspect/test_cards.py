"""How many cards `inspect` says that a model needs; the oracle is a count by hand."""

import json
from pathlib import Path

import pytest

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.stored_schemes import StoredSchemes
from mindformers_glm.serving.inspect.cards import CardsNeeded, count_cards
from scripts.bench.released_models import MODELS


def _needed(tmp_path: Path, model: str, **changes: int) -> dict[str, CardsNeeded]:
    (tmp_path / "config.json").write_text(json.dumps(MODELS[model] | changes), encoding="utf-8")
    config = GlmConfig.from_hf(tmp_path)
    settings = RunnerSettings.for_config(config, "bfloat16")
    return {needed.memory: needed for needed in count_cards(config, settings, StoredSchemes())}


# Billions of parameters by the models' names would be 9 and 32; these are counted, in bfloat16:
# 9.40e9 and 32.57e9 of them.
@pytest.mark.parametrize(
    ("model", "num_parameters", "on_64_gb", "on_32_gb"),
    [("9b", 9.40e9, 1, 1), ("32b", 32.57e9, 2, 4), ("rumination-32b", 33.1e9, 2, 4)],
)
def test_the_least_number_of_cards_is_found(
    model: str, num_parameters: float, on_64_gb: int, on_32_gb: int, tmp_path: Path
) -> None:
    needed = _needed(tmp_path, model)
    assert [card.num_cards for card in needed.values()] == [on_64_gb, on_32_gb]
    for card in needed.values():
        share = num_parameters * 2 / (card.num_cards or 1)
        assert card.bytes_of_a_card is not None
        assert share < card.bytes_of_a_card < 1.08 * share
        assert card.bytes_of_a_card <= card.usable_bytes
        assert card.bytes_of_fewer is None or card.bytes_of_fewer > card.usable_bytes


def test_the_32b_says_why_one_card_is_not_enough(tmp_path: Path) -> None:
    lines = [card.line() for card in _needed(tmp_path, "32b").values()]
    assert lines == [
        (
            "Ascend, 64 GB a card",
            "2 cards hold 30.8 GB each; 1 would hold 61.4 GB, and a card can give 59.0 GB",
        ),
        (
            "Ascend, 32 GB a card",
            "4 cards hold 15.7 GB each; 2 would hold each 30.8 GB, and a card can give 29.0 GB",
        ),
    ]


def test_one_card_and_too_large_a_model_are_told(tmp_path: Path) -> None:
    one = _needed(tmp_path, "9b")["64 GB"]
    assert one.line()[1] == "1 card holds 18.0 GB and can give 59.0 GB"
    huge = _needed(tmp_path, "32b", num_hidden_layers=1000)["64 GB"]
    assert huge.num_cards is None
    assert huge.line()[1].startswith("too large: each of 8 would hold 1")


@pytest.mark.parametrize(("model", "memory"), [("9b", "64 GB"), ("32b", "64 GB"), ("32b", "32 GB")])
def test_the_first_run_on_a_card_is_told_the_same(model: str, memory: str, tmp_path: Path) -> None:
    name, value = _needed(tmp_path, model)[memory].line()
    page = (Path(__file__).parents[4] / "docs/ascend.md").read_text(encoding="utf-8")
    assert f"{name:<29}{value}" in page
