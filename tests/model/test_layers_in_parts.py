"""Layers that a tool has quantized in parts for ranks, against transformers with the same parts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mindformers_glm import LLM
from tests import part_folders
from tests import quantized_folders as folders
from tests.conftest import relative_error
from tests.model import hf_oracle

PROMPT = np.random.default_rng(1).integers(2, 500, 40).tolist()
# Parts of whole groups of 32 columns keep their integers; activations are rounded to 16 bits, and
# a few of those that follow go the other way for it. Other parts run as float.
SIZES = [({"intermediate_size": 128}, 5e-3), ({"intermediate_size": 100, "head_dim": 24}, 1e-6)]


@pytest.mark.parametrize(("sizes", "bound"), SIZES, ids=["groups", "no groups"])
@pytest.mark.parametrize("num_parts", [2, 4])
def test_each_part_is_rounded_by_its_own_scale(
    num_parts: int,
    sizes: dict[str, int],
    bound: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = hf_oracle.save_random_checkpoint(tmp_path / "float", **sizes)
    meant, layers = part_folders.write(source, tmp_path / "q", num_parts)
    folders.write_meant(source, tmp_path / "meant", meant)
    model = hf_oracle.load(tmp_path / "meant")
    without = hf_oracle.logits_of(model, PROMPT)
    for name, layer in layers.items():
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, layer=layer: (
                torch.from_numpy(part_folders.round_inputs(given[0].numpy(), layer)),
            )
        )
    expected = hf_oracle.logits_of(model, PROMPT)
    assert relative_error(without, expected) > 1e-2
    with LLM(tmp_path / "q", max_model_len=64) as llm:
        error = relative_error(llm.logits(PROMPT), expected)
        assert len(llm.settings.rounded_columns) == len(layers) == 3
    assert error < bound, error
    told = capsys.readouterr().err
    assert "gather_scale" in told
    assert "parts for ranks" not in told  # the whole matrices leave nothing out
