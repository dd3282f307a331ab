"""Steps of every kind through our runner, and what Hugging Face computes for them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mindformers_glm.backends.ascend.runner import AscendModelRunner
from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine.batch import build_slot_mapping
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rules import resolve_attention_bias
from tests.conftest import relative_error
from tests.model import hf_oracle

BLOCK_SIZE = 8
NUM_BLOCKS = 40
# And whether query, key and value have a bias.
DIALECTS = (("glm4", True), ("glm4", False), ("glm", True), ("chatglm", True))
# (text, begin, end) of each sequence of a step.
Pieces = list[tuple[int, int, int]]
STEPS: Mapping[str, Pieces] = {
    "four prompts": [(0, 0, 3), (1, 0, 8), (2, 0, 17), (3, 0, 1)],
    "an answer each": [(0, 3, 4), (1, 8, 9), (2, 17, 18), (3, 1, 2)],
    "a chunk beside an answer": [(2, 18, 24), (3, 2, 3)],
    "guesses beside a new prompt": [(1, 9, 13), (4, 0, 9)],
}


def open_runner(folder: Path, dtype: str) -> AscendModelRunner:
    """A loaded runner with a KV cache."""
    with Checkpoint.open(folder, TensorParallel()) as checkpoint:
        config = resolve_attention_bias(GlmConfig.from_hf(folder), checkpoint)
        settings = RunnerSettings.for_config(
            config,
            checkpoint.dtype,
            params_dtype=dtype,
            compute_dtype=dtype,
            block_size=BLOCK_SIZE,
            max_model_len=128,
        )
        runner = AscendModelRunner(config, checkpoint, settings)
    runner.allocate_kv_cache(NUM_BLOCKS)
    return runner


class Sequences:
    """Random texts, each with blocks of its own, taken piece by piece."""

    def __init__(self, lengths: list[int], vocab_size: int) -> None:
        rng = np.random.default_rng(7)
        self.texts = [rng.integers(2, vocab_size, length).tolist() for length in lengths]
        blocks = iter(rng.permutation(NUM_BLOCKS).tolist())
        self.tables = [[next(blocks) for _ in range(-(-n // BLOCK_SIZE))] for n in lengths]

    def batch(self, *pieces: tuple[int, int, int]) -> ModelBatch:
        """A step of pieces (text, begin, end); every row is sampled."""
        ends = np.cumsum([0, *(end - begin for _, begin, end in pieces)]).astype(np.int32)
        return ModelBatch(
            token_ids=np.int32([t for n, b, e in pieces for t in self.texts[n][b:e]]),
            positions=np.int32([p for _, b, e in pieces for p in range(b, e)]),
            slot_mapping=np.concatenate(
                [build_slot_mapping(self.tables[n], b, e, BLOCK_SIZE) for n, b, e in pieces]
            ).astype(np.int32),
            query_start=ends,
            seq_lens=np.int32([e for *_, e in pieces]),
            block_tables=[self.tables[n][: -(-e // BLOCK_SIZE)] for n, _, e in pieces],
            sample_rows=np.arange(ends[-1], dtype=np.int32),
            is_prompt=np.ones(ends[-1], np.int32),
        )


class KnownSequences(Sequences):
    """Texts whose logits Hugging Face knows."""

    def __init__(self, source: Path) -> None:
        model = hf_oracle.load(source)
        super().__init__([12, 20, 30, 9, 9], model.config.vocab_size)
        self.expected = [hf_oracle.logits_of(model, text) for text in self.texts]

    def errors(
        self,
        execute: Callable[[ModelBatch], np.ndarray],
        steps: Mapping[str, Pieces] = STEPS,
    ) -> dict[str, float]:
        """The relative error of each step's logits, as `execute` computes them."""
        found = {name: execute(self.batch(*pieces)) for name, pieces in steps.items()}
        return {
            name: relative_error(
                found[name],
                np.concatenate([self.expected[n][begin:end] for n, begin, end in pieces]),
            )
            for name, pieces in steps.items()
        }
