"""Contestants, their workers, and the rounds in which they take turns."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from generate.report import Round, Series
from generate.worker_process import WorkerProcess
from machine import REPO

from mindformers_glm.config.glm_config import GlmConfig

WORKERS = Path(__file__).resolve().parents[1] / "peers"
OURS = "mindformers_glm"


class Probe(Protocol):
    """Measures what the machine can do at best: bytes or operations per second."""

    def measure(self) -> float: ...


@dataclass(frozen=True)
class Contestant:
    """One engine with weights of one format.

    Args:
        engine: a file peers/ENGINE_worker.py.
        variant: the engine's name of the format.
        python: interpreter that has the engine.
        model: what the engine loads.
    """

    engine: str
    variant: str
    python: str
    model: str

    @property
    def label(self) -> str:
        return f"{self.engine} {self.variant}"


@dataclass(frozen=True)
class Limits:
    """What every worker is started with."""

    threads: int
    vocab_size: int
    max_sequences: int
    max_model_len: int


@dataclass(frozen=True)
class Shape:
    """What one table measures: decode steps of `sequences`, or a prefill where that is 0."""

    sequences: int
    tokens: int  # context of each sequence, or length of the prompt
    steps: int = 1

    @property
    def title(self) -> str:
        if self.sequences == 0:
            return f"prefill of {self.tokens} tokens"
        return f"decode, sequences: {self.sequences}, context: {self.tokens}"

    @property
    def command(self) -> dict[str, Any]:
        """What a worker is asked (peers/protocol.py)."""
        if self.sequences == 0:
            return {"do": "prefill", "tokens": self.tokens}
        size = {"sequences": self.sequences, "context": self.tokens, "steps": self.steps}
        return {"do": "decode", **size}

    def new_series(self, label: str, config: GlmConfig, weight_bytes: int) -> Series:
        """An empty series that knows what a step has to read, or a prefill to compute."""
        if self.sequences == 0:
            return Series(label, self.tokens, count_prefill_flop(config, self.tokens), "GFLOP")
        # Two bytes a value, as most engines have it.
        kv_bytes = self.sequences * self.tokens * config.kv_bytes_per_token("float16")
        return Series(label, self.sequences, weight_bytes + kv_bytes, "GB")


def count_prefill_flop(config: GlmConfig, num_tokens: int) -> int:
    """Operations of the products: all layers for every token, the logits of the last one."""
    query_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    hidden = config.hidden_size
    weights = hidden * (2 * query_size + 2 * kv_size) + 3 * hidden * config.intermediate_size
    # q times k and probabilities times v; the causal mask leaves half of the pairs.
    attention = 2 * query_size * num_tokens // 2
    per_layer = 2 * num_tokens * (weights + attention)
    return config.num_hidden_layers * per_layer + 2 * hidden * config.vocab_size


def start_worker(contestant: Contestant, limits: Limits, wait_policy: str) -> WorkerProcess:
    """Start the worker and wait until its model is loaded.

    Args:
        wait_policy: OMP_WAIT_POLICY of the other engines; "default": not set, as for ours.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(limits.threads)}
    if contestant.engine == OURS:
        paths = [str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    else:
        environment.pop("PYTHONPATH", None)
        if wait_policy != "default":
            environment["OMP_WAIT_POLICY"] = wait_policy
    worker = str(WORKERS / f"{contestant.engine}_worker.py")
    command = [contestant.python, worker, contestant.model, "--variant", contestant.variant]
    command += [f"--{name}={number}" for name, number in vars(limits).items()]
    return WorkerProcess(contestant.label, command, environment)


def measure(
    shape: Shape, workers: list[WorkerProcess], config: GlmConfig, probe: Probe, rounds: int
) -> list[Series]:
    """One round to warm up, then `rounds` in which every worker has its turn.

    Workers get the same random prompts, so their next tokens can be compared.

    Args:
        probe: of what limits this shape; measured before and after each turn.
    """
    series = [
        shape.new_series(worker.name, config, worker.ready["weight_bytes_per_token"])
        for worker in workers
    ]
    for worker in workers:
        worker.ask(**shape.command)
    for _ in range(rounds):
        before = probe.measure()
        for worker, one in zip(workers, series, strict=True):
            answer = worker.ask(**shape.command)
            after = probe.measure()
            limit = (before + after) / 2
            found = Round(answer["seconds"], limit, answer.get("token"), answer["disk_reads"])
            one.rounds.append(found)
            before = after
    return series
