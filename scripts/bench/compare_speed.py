"""Is one commit as fast as another, and does it take as much memory?

    python scripts/bench/compare_speed.py OLD NEW [--pairs 10] [--checkpoints DIR]

Three processes stay open and are asked in turn: old, new, old again, and in the next round the
other way round. A round gives two ratios: of new against the mean of both olds, and of the second
old against the first, which says what a ratio is worth. A figure is kept where the median of the
first is at most 1.02 (1.03 for load and memory), or no further from 1 than half of the second
ratios are. Measured on 4 layers of the 9B's shape in bfloat16 and w4a8_dynamic, or in `--formats`
(prefill of 512 tokens, decoding one sequence, load and peak memory by bench_load.py), and on 40
narrow layers in w8a16 (time outside operators, bench_step_overhead.py). Exit code 1 if a figure is
not kept.

OLD or NEW may also be the folder of a built tree. bfloat16 takes 3 times the slice's 4 GiB.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from commits.trees import JobError, checked_out, describe_tree, environment_of, run_job
from generate.worker_process import WorkerError, WorkerProcess
from machine import REPO, describe_machine, positive, run_main
from make_slice import write_random_checkpoint, write_slice
from released_models import MODELS

WORKER = Path(__file__).parent / "commits" / "speed_worker.py"
MINI = REPO / "mindformers_glm" / "assets" / "glm4-mini"
SIDES = ("old", "new", "again")
FORMATS = {"bf16": "params_dtype=bfloat16"} | {
    name: f"quantization={name}" for name in ("w8a16", "w8a8_dynamic", "w4a16", "w4a8_dynamic")
}
_USUAL_FORMATS = ["bf16", "w4a8_dynamic"]
PROMPT_LEN, DECODE_STEPS, OVERHEAD_STEPS = 512, 12, 30
_TIME_LIMIT, _LOAD_LIMIT = 0.02, 0.03
_NARROW = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "vocab_size": 3072,
    "eos_token_id": [1],
    "pad_token_id": 0,
}


@dataclass(eq=False)
class Figure:
    """What one table line says: a number for each side in each round; smaller is better."""

    name: str
    limit: float
    values: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})

    @property
    def is_kept(self) -> bool:
        return self.ratio <= 1 + self.allowed

    @property
    def verdict(self) -> str:
        if not self.is_kept:
            return "NOT KEPT"
        return "kept" if self.allowed <= 2 * self.limit else "kept, but says little: a busy machine"

    @property
    def ratio(self) -> float:
        """Of new against both olds."""
        old, new, again = (np.array(self.values[side]) for side in SIDES)
        return float(np.median(2 * new / (old + again)))

    @property
    def own_ratios(self) -> np.ndarray:
        """Lower quartile, median and upper quartile of old against itself."""
        own = np.array(self.values["again"]) / np.array(self.values["old"])
        return np.percentile(own, [25, 50, 75])

    @property
    def allowed(self) -> float:
        low, _, high = self.own_ratios
        return max(self.limit, 1 - low, high - 1)

    def describe(self) -> str:
        old = float(np.median(self.values["old"] + self.values["again"]))
        new = float(np.median(self.values["new"]))
        low, middle, high = self.own_ratios
        return (
            f"{self.name:>38} {len(self.values['new']):>6} {old:>10.4g} {new:>10.4g} "
            f"{self.ratio:>7.4f}   {middle:>7.4f} ({low:.3f} to {high:.3f}) {self.allowed:>8.1%}  "
            f"{self.verdict}"
        )


TITLES = (
    f"{'':>38} {'rounds':>6} {'old':>10} {'new':>10} {'new/old':>7}   "
    f"{'old/old (its quartiles)':>24} {'allowed':>8}"
)


def write_checkpoints(folder: Path, num_layers: int) -> tuple[Path, Path]:
    """The slice of the 9B and the narrow network, unless they are there already."""
    wide, narrow = folder / f"9b-{num_layers}", folder / "narrow-40"
    if not (wide / "model.safetensors").exists():
        write_slice(wide, "9b", num_layers, seed=0)
    if not (narrow / "model.safetensors").exists():
        write_random_checkpoint(narrow, narrow.name, MODELS["9b"] | _NARROW, 0.02, seed=0)
    for checkpoint in (wide, narrow):
        for file in MINI.glob("tokenizer*.json"):
            shutil.copy(file, checkpoint)
    return wide, narrow


def in_turn(num_rounds: int) -> Iterator[str]:
    """The sides of all rounds: old, new, again, again, new, old, old, new ..."""
    for number in range(num_rounds):
        yield from SIDES if number % 2 == 0 else reversed(SIDES)


@contextmanager
def started(
    trees: dict[str, Path], threads: int, *arguments: str
) -> Iterator[dict[str, WorkerProcess]]:
    """One worker a side, all loaded."""
    with ExitStack() as stack:
        workers = {}
        for side, tree in trees.items():
            environment = environment_of(
                tree, "scripts/bench", "scripts/bench/peers", OMP_NUM_THREADS=str(threads)
            )
            command = [sys.executable, str(WORKER), *arguments]
            worker = WorkerProcess(f"{side} {arguments[0]}", command, environment)
            workers[side] = stack.enter_context(worker)
        yield workers


def measure_load(
    trees: dict[str, Path], folder: Path, form: str, num_rounds: int, work: Path
) -> list[Figure]:
    """Load in a new process each time, by each commit's bench_load.py."""
    load = Figure(f"{form}: load, s", _LOAD_LIMIT)
    cpu = Figure(f"{form}: load, CPU s", _LOAD_LIMIT)
    peak = Figure(f"{form}: peak after loading, GiB", _LOAD_LIMIT)
    for side in in_turn(num_rounds):
        command = [sys.executable, str(trees[side] / "scripts/bench/bench_load.py")]
        command += ["--checkpoint", str(folder), "--cache_folder", str(work)]
        command += ["--settings", FORMATS[form], "--way", "first"]
        output = run_job(f"{side} bench_load.py", command, work, environment_of(trees[side]))
        found = json.loads(output.splitlines()[-1])
        load.values[side].append(found["load"])
        cpu.values[side].append(found["cpu"])
        peak.values[side].append(found["peak"] / 2**30)
    return [load, cpu, peak]


def measure_generation(
    trees: dict[str, Path], folder: Path, form: str, num_rounds: int, threads: int
) -> list[Figure]:
    """Prefill and decode, by each commit's worker of bench_generate.py."""
    max_model_len = PROMPT_LEN + (num_rounds + 2) * DECODE_STEPS + 8
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    arguments = ["generate", str(folder), "--variant", form, "--threads", str(threads)]
    arguments += ["--vocab_size", str(vocab_size), "--max_sequences", "1"]
    arguments += ["--max_model_len", str(max_model_len)]
    prefill = Figure(f"{form}: prefill of {PROMPT_LEN}, ms", _TIME_LIMIT)
    decode = Figure(f"{form}: decode, ms a step", _TIME_LIMIT)
    peak = Figure(f"{form}: peak afterwards, GiB", _LOAD_LIMIT)
    with started(trees, threads, *arguments) as workers:
        asked = {
            prefill: {"do": "prefill", "tokens": PROMPT_LEN},
            decode: {"do": "decode", "sequences": 1, "context": PROMPT_LEN, "steps": DECODE_STEPS},
        }
        for figure, command in asked.items():
            for worker in workers.values():
                worker.ask(**command)  # compiles, starts the sequence
            for side in in_turn(num_rounds):
                seconds = workers[side].ask(**command)["seconds"]
                figure.values[side].append(float(np.median(seconds)) * 1e3)
        for side, worker in workers.items():
            peak.values[side].append(worker.ask(do="memory")["peak_bytes"] / 2**30)
    return [prefill, decode, peak]


def measure_overhead(
    trees: dict[str, Path], folder: Path, num_rounds: int, threads: int
) -> list[Figure]:
    """A step of 40 narrow layers, by each commit's bench_step_overhead.py."""
    step = Figure("40 narrow layers: step, ms", _TIME_LIMIT)
    outside = Figure("40 narrow layers: outside ops, ms", _TIME_LIMIT)
    with started(trees, threads, "overhead", str(folder)) as workers:
        for worker in workers.values():
            worker.ask(steps=OVERHEAD_STEPS)
        for side in in_turn(num_rounds):
            answer = workers[side].ask(steps=OVERHEAD_STEPS)
            step.values[side].append(float(np.median(answer["step"])) * 1e3)
            outside.values[side].append(float(np.median(answer["outside"])) * 1e3)
    return [step, outside]


def measure_all(
    trees: dict[str, Path], work: Path, arguments: argparse.Namespace
) -> Iterator[list[Figure]]:
    """All figures, in groups as they are there."""
    folder = arguments.checkpoints or work / "checkpoints"
    wide, narrow = write_checkpoints(folder, arguments.num_layers)
    rounds, threads = arguments.pairs, arguments.threads
    # A round has two pairs of old and new, yet each step of a narrow network is short.
    yield measure_overhead(trees, narrow, 2 * rounds, threads)
    for form in arguments.formats:
        yield measure_generation(trees, wide, form, rounds, threads)
        yield measure_load(trees, wide, form, arguments.loads, work)


def main() -> int:
    """Print one table; exit code 1 if a figure is not kept, 2 if something could not be run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="commit, or folder of a built tree")
    parser.add_argument("new", help="likewise")
    parser.add_argument("--pairs", type=positive, default=10, help="rounds; default: %(default)s")
    parser.add_argument("--loads", type=positive, default=3, help="rounds; default: %(default)s")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=_USUAL_FORMATS)
    parser.add_argument("--num_layers", type=positive, default=4)
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--checkpoints", type=Path, help="folder that keeps them for the next time")
    arguments = parser.parse_args()
    begin = time.monotonic()
    is_kept = True
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare_speed_")))
        old = stack.enter_context(checked_out(arguments.old, work / "old"))
        new = stack.enter_context(checked_out(arguments.new, work / "new"))
        trees = {"old": old, "new": new, "again": old}
        print(f"{describe_machine()}\nold {describe_tree(old)}, new {describe_tree(new)}")
        print(f"9B's shape, {arguments.num_layers} layers, one sequence\n{TITLES}", flush=True)
        for figures in measure_all(trees, work, arguments):
            for figure in figures:
                print(figure.describe(), flush=True)
                is_kept &= figure.is_kept
    print(f"{time.monotonic() - begin:.0f} s")
    return 0 if is_kept else 1


if __name__ == "__main__":
    try:
        run_main(main)
    except (JobError, WorkerError) as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
