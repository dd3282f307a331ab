"""16-bit results lie no further from float32 than Hugging Face's; bits of the instruction sets."""

from pathlib import Path

import numpy as np
import pytest
from compare_precision import compare_model

from mindformers_glm import LLM
from mindformers_glm.backends.cpu import library
from mindformers_glm.core.quantization_scheme import SCHEMES
from tests.model import hf_oracle


# The one with 6 layers and a deviation of 0.28, where short types are furthest away, and a glm.
@pytest.mark.parametrize("seed", [4, 5])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_no_further_from_float32_than_hugging_faces(seed: int, dtype: str) -> None:
    ours, theirs = compare_model(seed, dtype)
    assert ours <= theirs


@pytest.mark.parametrize("quantization", [None, *SCHEMES])
def test_all_instruction_sets_that_fuse_give_the_same_bits(
    quantization: str | None, tmp_path: Path
) -> None:
    # `portable` rounds between a product and its sum, and takes exponentials in another way.
    isas = [isa for isa in library.available_isas() if isa != "portable"]
    folder = hf_oracle.save_random_checkpoint(tmp_path, num_hidden_layers=3, head_dim=64)
    prompt, best = np.random.default_rng(2).integers(2, 515, 70).tolist(), library.isa()
    with LLM(folder, quantization=quantization, enable_prefix_caching=False) as llm:
        try:
            expected = llm.logits(prompt)
            for isa in isas:
                library.select_isa(isa)
                np.testing.assert_array_equal(llm.logits(prompt), expected, isa)
        finally:
            library.select_isa(best)
