"""How bench_generate.py talks to its workers: one JSON object a line, over stdin and stdout.

A worker loads its model once, says {"ready": ...} and then blocks on stdin until it is asked:

    {"do": "decode", "sequences": 8, "context": 512, "steps": 16}  ->  {"seconds": [16 numbers]}
    {"do": "prefill", "tokens": 512}                 ->  {"seconds": [1 number], "token": 17}
    {"do": "memory"}                                               ->  {"peak_bytes": ..., ...}

Only the standard library is used: workers run in the peers' own environments.
"""

import argparse
import json
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol


class Runner(Protocol):
    """One loaded model. Every method returns when its result is there, not before."""

    version: str
    weight_bytes_per_token: int  # all weights except the embedding, of which one row is read
    allocated_bytes: int | None  # weights and KV cache; None where the engine does not tell

    def start(self, prompts: list[list[int]]) -> None:
        """Forget all sequences and prefill these, of one length; each gets a token or more."""
        ...

    def step(self) -> None:
        """Compute one more token for each started sequence, by the largest logit."""
        ...

    def prefill(self, prompt: list[int]) -> int:
        """Forget all sequences and return the token that follows the prompt."""
        ...


class Worker:
    """Answers commands on a runner. Sequences go on from one decode command to the next.

    They are started again when the shape changes, or when max_model_len would be passed.
    """

    def __init__(self, runner: Runner, vocab_size: int, max_model_len: int) -> None:
        self._runner = runner
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._rng = random.Random(0)
        self._shape = (0, 0)  # sequences, context
        self._num_steps = 0  # since they were started

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command; "disk_reads" are its page faults that read a file again."""
        before = _count_disk_reads()
        answer = self._carry_out(command)
        return answer | {"disk_reads": _count_disk_reads() - before}

    def _carry_out(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "decode":
            return {
                "seconds": self._decode(command["sequences"], command["context"], command["steps"])
            }
        if command["do"] == "prefill":
            self._shape = (0, 0)
            prompt = self._new_prompt(command["tokens"])
            begin = time.perf_counter()
            token = self._runner.prefill(prompt)
            return {"seconds": [time.perf_counter() - begin], "token": token}
        if command["do"] == "memory":
            return read_memory()
        raise ValueError(f"unknown command {command}")

    def _decode(self, sequences: int, context: int, steps: int) -> list[float]:
        # Starting many sequences one after another gives the first of them some tokens more.
        room = self._max_model_len - context - sequences * (context // 512 + 1)
        if self._shape != (sequences, context) or self._num_steps + steps > room:
            self._runner.start([self._new_prompt(context) for _ in range(sequences)])
            self._shape, self._num_steps = (sequences, context), 0
        self._num_steps += steps
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            self._runner.step()
            seconds.append(time.perf_counter() - begin)
        return seconds

    def _new_prompt(self, length: int) -> list[int]:
        return [self._rng.randrange(self._vocab_size) for _ in range(length)]


def parse_arguments() -> argparse.Namespace:
    """Read the command line that bench_generate.py gives to every worker."""
    parser = argparse.ArgumentParser(description="A worker of scripts/bench/bench_generate.py.")
    parser.add_argument("model")
    parser.add_argument("--variant", required=True, help="format of the weights")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--vocab_size", type=int, required=True)
    parser.add_argument("--max_sequences", type=int, required=True)
    parser.add_argument("--max_model_len", type=int, required=True)
    return parser.parse_args()


def serve(load: Callable[[argparse.Namespace], Runner]) -> None:
    """Load, say so, and answer commands until stdin ends; an exception ends the worker."""
    arguments = parse_arguments()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        begin = time.perf_counter()
        runner = load(arguments)
        say(
            {
                "ready": True,
                "version": runner.version,
                "weight_bytes_per_token": runner.weight_bytes_per_token,
                "allocated_bytes": runner.allocated_bytes,
                "load_s": time.perf_counter() - begin,
            }
        )
        worker = Worker(runner, arguments.vocab_size, arguments.max_model_len)
        for line in sys.stdin:
            say(worker.answer(json.loads(line)))
    except Exception as problem:
        traceback.print_exc()
        say({"error": f"{type(problem).__name__}: {problem}"})
        sys.exit(1)


def _count_disk_reads() -> int:
    """Page faults of this process that waited for a disk: mapped weights were dropped."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def read_memory() -> dict[str, Any]:
    """Peak resident and swapped bytes of this process, from Linux."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    kib = {name: int(fields[name].split()[0]) for name in ("VmHWM", "VmSwap")}
    return {"peak_bytes": kib["VmHWM"] * 1024, "swapped_bytes": kib["VmSwap"] * 1024}
