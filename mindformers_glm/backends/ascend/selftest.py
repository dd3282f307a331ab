"""Upstream's network on Ascend against another device's, part by part, on the same weights.

It runs on a card as it is, and on a CPU where references stand for the operators of the card.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.backends.ascend import support
from mindformers_glm.backends.ascend.part_recorder import PartRecorder
from mindformers_glm.backends.ascend.runner import AscendModelRunner
from mindformers_glm.backends.backend import Backend, MemoryNeed
from mindformers_glm.backends.part_report import (
    PartResult,
    SelfTestReport,
    TokenResult,
    compare_networks,
    compare_parts,
    network_tolerance,
)
from mindformers_glm.backends.part_steps import NUM_GREEDY_TOKENS, SHORTEST_CONTEXT, SelfTestSteps
from mindformers_glm.backends.parts import LOGITS, PartReference, list_parts
from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import MemoryBudgetError, UnsupportedError
from mindformers_glm.core.rounding import round_to_dtype
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.system.log import note
from mindformers_glm.system.sizes import format_bytes
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rules import resolve_attention_bias

OpenReference = Callable[[GlmConfig, Checkpoint, RunnerSettings, int], PartReference]
_PYNATIVE_MODE = 1  # the only one in which a network's parts can be seen
_CONTEXT = 256
_NORM_ROWS = 4
# 16-bit floats lose digits below 2^-14; of an eps smaller than its square nothing is seen then.
_SMALLEST_ROOT_OF_EPS = 1e-3


def run_selftest(
    folder: Path,
    dtype: str | None,
    backend: Backend,
    other: Backend,
    open_reference: OpenReference,
) -> SelfTestReport:
    """Load a checkpoint twice and compare.

    Args:
        dtype: of weights and activations; None: the checkpoint's, or the last that the card takes.
        backend, other: Ascend's, and what it is compared with.
        open_reference: makes the other's network, of weights in their type in memory, for a number
            of KV-cache blocks.
    Raises:
        CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
        MemoryBudgetError: it does not fit.
        UnsupportedError: upstream's network cannot run it, or its context is too short.
    """
    group = backend.connect(TensorParallel(), DeviceSettings(mode=_PYNATIVE_MODE))
    with Checkpoint.open(folder, TensorParallel()) as checkpoint:
        config = resolve_attention_bias(GlmConfig.from_hf(folder), checkpoint)
        settings = _make_settings(config, checkpoint, dtype)
        backend.check_supported(config, settings)
        steps = SelfTestSteps(config.vocab_size, settings.block_size, settings.max_model_len)
        for one in (backend, other):
            need = one.memory_need(config, settings)
            _check_room(one.name, need, steps.num_blocks, one.available_memory(group))
        runner = AscendModelRunner(config, checkpoint, settings)
        reference = open_reference(config, checkpoint, settings, steps.num_blocks)
    runner.allocate_kv_cache(steps.num_blocks)
    test = _SelfTest(runner, reference, config, settings)
    try:
        test.run(steps)
    finally:
        test.close()
    num_layers = config.num_hidden_layers
    title = f"Ascend against CPU: {folder}, {settings.compute_dtype}, {num_layers} layers"
    return SelfTestReport(title, test.results, test.networks, test.tokens, test.stopped)


def _make_settings(config: GlmConfig, checkpoint: Checkpoint, dtype: str | None) -> RunnerSettings:
    if config.max_position_embeddings < SHORTEST_CONTEXT:
        raise UnsupportedError(
            f"The self-test needs a context of {SHORTEST_CONTEXT} tokens, the checkpoint has "
            f"{config.max_position_embeddings}: give another one."
        )
    stored = config.torch_dtype or checkpoint.dtype
    chosen = dtype or (stored if stored in support.DTYPES else support.DTYPES[-1])
    return RunnerSettings.for_config(
        config,
        checkpoint.dtype,
        params_dtype=chosen,
        compute_dtype=chosen,
        rotary_dtype=chosen,  # upstream rounds its tables to it
        max_model_len=min(_CONTEXT, config.max_position_embeddings),
    )


def _check_room(name: str, need: MemoryNeed, num_blocks: int, available: int | None) -> None:
    wanted = need.weights_bytes + need.workspace_bytes + num_blocks * need.kv_block_bytes
    if available is not None and wanted > available:
        raise MemoryBudgetError(
            f"The self-test needs {format_bytes(wanted)} of memory for the network on {name}, "
            f"available are {format_bytes(available)}: leave DIR out for the small checkpoint, or "
            "free memory."
        )


class _Stopped(Exception):
    """A step did not come to its end on the device; says where and why."""


class _SelfTest:
    """The comparisons under way."""

    def __init__(
        self,
        runner: AscendModelRunner,
        reference: PartReference,
        config: GlmConfig,
        settings: RunnerSettings,
    ) -> None:
        self.results: list[PartResult] = []
        self.networks: list[PartResult] = []
        self.tokens: TokenResult | None = None
        self.stopped = ""
        self._runner, self._reference, self._config = runner, reference, config
        self._dtype, self._num_layers = settings.compute_dtype, config.num_hidden_layers
        self._recorder = PartRecorder(runner.network, config)

    def run(self, steps: SelfTestSteps) -> None:
        """Run all steps, or those before one that fails on the device."""
        try:
            for step, batch in steps:
                self._compare_step(step, batch)
            self._compare_norms("norms of small values")
            self._recorder.close()  # steps of one token have been compared
            self._compare_tokens("greedy tokens", steps)
        except _Stopped as problem:
            self.stopped = str(problem)

    def close(self) -> None:
        """Give the memory of the network under test back."""
        self._recorder.close()
        self._runner.close()

    def _on_device(self, step: str, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as problem:  # whatever it refuses is what a self-test is to find
            last = self._recorder.last
            behind = f"behind {last}" if last else "before its first part"
            found = f"step {step!r}, {behind}: {type(problem).__name__}: {problem}"
            raise _Stopped(found) from problem

    def _compare_step(self, step: str, batch: ModelBatch) -> None:
        note(f"self-test: {step}")
        try:
            logits = self._on_device(step, self._runner.execute, batch)
        finally:  # up to where it stopped
            found = self._recorder.take()
            expected = self._reference.follow(batch, found)
            self.results += compare_parts(step, found, expected, self._dtype, self._num_layers)
        if unseen := set(list_parts(self._num_layers)) - set(found):
            raise RuntimeError(f"upstream's network has no {', '.join(map(str, unseen))}")
        wanted = self._reference.run(batch)[LOGITS]
        self.networks.append(compare_networks(step, logits, wanted, self._dtype, self._num_layers))

    def _compare_norms(self, step: str) -> None:
        """Norms of values so small that eps is half of what they divide by."""
        size = max(self._config.rms_norm_eps**0.5, _SMALLEST_ROOT_OF_EPS)
        rng = np.random.default_rng(1)
        x = rng.standard_normal((_NORM_ROWS, self._config.hidden_size), np.float32)
        x = round_to_dtype(x * np.float32(size), self._dtype)
        has_sandwich_norms = self._config.has_sandwich_norms
        found = self._on_device(step, self._recorder.norms, x, has_sandwich_norms)
        expected = self._reference.norms(x)
        self.results += compare_parts(step, found, expected, self._dtype, self._num_layers)

    def _compare_tokens(self, step: str, steps: SelfTestSteps) -> None:
        """Both choose each token behind the same ones, those of the network under test."""
        note(f"self-test: {step}")
        tokens, cached_len = steps.greedy_prompt(), 0
        found, expected, num_close_calls = [], [], 0
        for _ in range(NUM_GREEDY_TOKENS):
            batch = steps.greedy_step(tokens, cached_len)
            logits = self._on_device(step, self._runner.execute, batch)[0]
            wanted = self._reference.run(batch)[LOGITS][0]
            found.append(int(logits.argmax()))
            expected.append(int(wanted.argmax()))
            num_close_calls += self._is_close_call(wanted, found[-1], expected[-1])
            cached_len = len(tokens)
            tokens = [*tokens, found[-1]]
        self.tokens = TokenResult(tuple(found), tuple(expected), num_close_calls)

    def _is_close_call(self, logits: np.ndarray, one: int, other: int) -> bool:
        tolerance = network_tolerance(self._dtype, self._num_layers)
        # A logit's error is about the row's, shared out; two may move against each other.
        allowed = 4 * tolerance * np.linalg.norm(logits) / np.sqrt(len(logits))
        return one != other and bool(logits[other] - logits[one] <= allowed)
