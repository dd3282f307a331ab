"""Contexts beyond what a model was trained for (YaRN), and prompts of many chunks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.models.glm4 import Glm4ForCausalLM
from tests.conftest import REPO, TOLERANCES, relative_error
from tests.model import hf_oracle

ORIGINAL = 64
PROMPT = np.random.default_rng(1).integers(2, 515, 200).tolist()


def save_with_yarn(folder: Path, factor: float, **changes: Any) -> Path:
    """A checkpoint for `factor` times 64 tokens, in the way that transformers 4.51.3 honours."""
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": ORIGINAL,
    }
    return hf_oracle.save_random_checkpoint(
        folder,
        head_dim=64,
        max_position_embeddings=int(ORIGINAL * factor),
        rope_scaling=scaling | changes,
    )


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("factor", "changes"),
    [(4.0, {}), (2.0, {}), (4.0, {"attention_factor": 1.5, "beta_fast": 8.0, "beta_slow": 2.0})],
    ids=["4", "2", "all keys"],
)
def test_yarn_equals_hugging_face_beyond_the_trained_context(
    factor: float, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_with_yarn(tmp_path, factor, **changes)
    prompt = PROMPT[: int(ORIGINAL * factor) - 16]
    expected = hf_oracle.logits(folder, prompt)
    # As the model card says it, with the trained context in max_position_embeddings.
    edit_config(folder, max_position_embeddings=ORIGINAL)
    with LLM(folder) as llm:
        assert llm.settings.max_model_len == ORIGINAL * factor
        assert relative_error(llm.logits(prompt), expected) < TOLERANCES["logits_float32"]
        params = SamplingParams(max_new_tokens=16, do_sample=False, ignore_eos=True)
        (output,) = llm.generate([prompt], params)
    edit_config(folder, max_position_embeddings=int(ORIGINAL * factor))
    assert list(output.token_ids) == hf_oracle.greedy_tokens(folder, prompt, 16)
    # It is not what plain RoPE gives.
    edit_config(folder, rope_scaling=None)
    assert relative_error(expected, hf_oracle.logits(folder, prompt)) > 0.1


def test_yarn_reaches_the_registered_network(tmp_path: Path) -> None:
    folder = save_with_yarn(tmp_path, 4.0)
    expected = hf_oracle.greedy_tokens(folder, PROMPT, 8)
    network = Glm4ForCausalLM.from_pretrained(str(folder))
    assert network.glm_config.rope_scaling.factor == 4.0
    (tokens,) = network.generate([PROMPT], max_new_tokens=8, do_sample=False, eos_token_id=[])
    assert list(tokens[len(PROMPT) :]) == expected


def test_without_yarn_the_context_ends_where_config_json_says(tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, max_position_embeddings=ORIGINAL)
    with pytest.raises(ConfigError, match="max_position_embeddings=64"):
        LLM(folder, max_model_len=ORIGINAL + 1)


# Answers a prompt after a short one, in a process of its own: what is in memory is the model's.
_ANSWER_LONG_PROMPT = """
import sys
import numpy as np
from mindformers_glm import LLM, SamplingParams

def read_status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

folder, num_new_tokens, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
prompt = np.load(folder + "/prompt.npy").tolist()
params = SamplingParams(max_new_tokens=num_new_tokens, do_sample=False, ignore_eos=True)
sizes = {"max_model_len": len(prompt) + num_new_tokens, "max_num_seqs": 1}
with LLM(folder, **sizes, max_num_batched_tokens=step) as llm:
    llm.generate([prompt[: 2 * step]], params)  # compiles every graph
    before = read_status("VmRSS")
    (output,) = llm.generate([prompt], params)
    growth = read_status("VmHWM") - before
    np.savez(
        folder + "/found.npz",
        tokens=output.token_ids,
        growth=growth,
        kv_cache_bytes=llm.kv_cache_bytes,
        logits=llm.logits(prompt)[-8:],
    )
"""


def test_a_prompt_of_32768_tokens_equals_hugging_face_in_bounded_memory(tmp_path: Path) -> None:
    num_tokens, num_new_tokens, step = 32768, 8, 512
    folder = hf_oracle.save_random_checkpoint(
        tmp_path,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=1024,
        rope_theta=1e6,
        max_position_embeddings=2 * num_tokens,
    )
    prompt = np.random.default_rng(0).integers(2, 515, num_tokens)
    np.save(folder / "prompt.npy", prompt)
    arguments = [str(folder), str(num_new_tokens), str(step)]
    subprocess.run(
        [sys.executable, "-c", _ANSWER_LONG_PROMPT, *arguments], check=True, cwd=REPO, timeout=300
    )
    found = np.load(folder / "found.npz")

    model = hf_oracle.load(folder)  # its attention does not hold the scores of all pairs
    logits, tokens = _prefill_and_decode(model, prompt, num_new_tokens)
    assert found["tokens"].tolist() == tokens
    assert relative_error(found["logits"], logits) < TOLERANCES["logits_float32"]
    # The beginning counts: without it the logits are others.
    half, _ = _prefill_and_decode(model, prompt[num_tokens // 2 :], 1)
    assert relative_error(half, logits) > 1e-2

    # A row of a step takes 9 KB here, so a prompt in one step would take 300 MB. Beside keys and
    # values there are lists of token ids and blocks: less than 512 bytes a token.
    assert found["growth"] < found["kv_cache_bytes"] + 512 * num_tokens


def _prefill_and_decode(
    model: Any, prompt: np.ndarray, num_new_tokens: int
) -> tuple[np.ndarray, list[int]]:
    """Logits of the last 8 tokens of the prompt, and the most likely tokens after it."""
    tokens: list[int] = []
    with torch.no_grad():
        output = model(torch.from_numpy(prompt)[None], logits_to_keep=8, use_cache=True)
        logits = output.logits[0].numpy()
        while True:
            tokens.append(int(output.logits[0, -1].argmax()))
            if len(tokens) == num_new_tokens:
                return logits, tokens
            output = model(torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values)
