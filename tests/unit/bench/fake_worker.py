"""A worker of scripts/bench/bench_generate.py without a model; `--variant` says how it behaves."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts/bench/peers"))

from protocol import serve


class FakeRunner:
    version = "fake 1"
    weight_bytes_per_token = 1000
    allocated_bytes = None

    def __init__(self, arguments: argparse.Namespace) -> None:
        if arguments.variant == "unknown":
            raise ValueError("no format unknown")
        self._is_dying = arguments.variant == "dying"
        print("a library prints while it loads")

    def start(self, prompts: list[list[int]]) -> None:
        print("a library prints while it runs")

    def step(self) -> None:
        if self._is_dying:
            print("last words", file=sys.stderr, flush=True)
            os._exit(7)

    def prefill(self, prompt: list[int]) -> int:
        return sum(prompt)


if __name__ == "__main__":
    serve(FakeRunner)
