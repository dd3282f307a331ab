"""What part of a decode step is not spent in kernels?

Decodes one sequence under several sampling settings and splits each step's time: inside the
operators (counted by the library itself), in the graph calls around them, and in each stage of the
engine.

    python scripts/bench/bench_step_overhead.py DIR [--quantization w8a16] [--steps 60]

DIR is a checkpoint of make_slice.py, with a tokenizer. The limit is 3 % at 40 layers; exit code 1
if a line is above it. A slice of fewer layers spends a larger share.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
from machine import describe_machine, positive, run_main

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.cpu import library
from mindformers_glm.engine import answer_sampler, llm_engine
from mindformers_glm.engine.running_request import RunningSample

LIMIT = 0.03
SETTINGS = {
    "greedy": {"do_sample": False},
    "temperature": {"temperature": 0.8, "top_k": 0},
    "top_k 50": {"temperature": 0.8, "top_k": 50},
    "top_k 50, top_p 0.8": {"temperature": 0.8, "top_k": 50, "top_p": 0.8},
    "top_p 0.8": {"temperature": 0.8, "top_k": 0, "top_p": 0.8},
    "top_p 0.95, penalty": {"top_k": 0, "top_p": 0.95, "repetition_penalty": 1.1},
}
STAGES = ("schedule", "batch", "model", "sample", "text")


class Stopwatch:
    """Wall time and kernel time of named stages, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._now: defaultdict[str, float] = defaultdict(float)

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time counted to `stage`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            library.take_kernel_time()
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            self._now[stage] += time.perf_counter() - begin
            self._now[f"{stage} kernels"] += library.take_kernel_time()[0]
            return result

        return timed

    def end_step(self, seconds: float) -> None:
        self.steps.append(dict(self._now) | {"step": seconds})
        self._now.clear()

    def median(self, stage: str) -> float:
        return float(np.median([step.get(stage, 0.0) for step in self.steps]))


@contextmanager
def watched(llm: LLM) -> Iterator[Stopwatch]:
    """Times the stages of the engine's step."""
    watch = Stopwatch()
    engine = llm.engine
    runner, scheduler = engine.runner, engine.scheduler
    run, schedule = runner._run, scheduler.schedule
    build_batch, sample_token = llm_engine.build_batch, answer_sampler.sample_token
    add_text = RunningSample.add_text

    def run_to_end(cell: Any, *tensors: Any) -> Any:
        output = run(cell, *tensors)
        output.asnumpy()  # waits for the graph
        return output

    runner._run = watch.wrap("model", run_to_end)
    scheduler.schedule = watch.wrap("schedule", schedule)
    llm_engine.build_batch = watch.wrap("batch", build_batch)
    answer_sampler.sample_token = watch.wrap("sample", sample_token)
    RunningSample.add_text = watch.wrap("text", add_text)
    try:
        yield watch
    finally:
        runner._run, scheduler.schedule = run, schedule
        llm_engine.build_batch, answer_sampler.sample_token = build_batch, sample_token
        RunningSample.add_text = add_text


def measure(llm: LLM, context: int, num_steps: int, settings: dict[str, Any]) -> Stopwatch:
    """Decode `num_steps` tokens after a prompt of `context`."""
    prompt = np.random.default_rng(0).integers(0, llm.config.vocab_size, context).tolist()
    params = SamplingParams(
        max_new_tokens=num_steps + 5, ignore_eos=True, **({"seed": 1} | settings)
    )
    engine = llm.engine
    engine.add_request("x", prompt, params)
    while not any(output.token_ids for output in engine.step()):
        pass
    engine.step()
    with watched(llm) as watch:
        for _ in range(num_steps):
            begin = time.perf_counter()
            engine.step()
            watch.end_step(time.perf_counter() - begin)
    engine.abort("x")
    return watch


def main() -> int:
    """Print one table; return 1 if a line is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a slice of make_slice.py, with a tokenizer")
    parser.add_argument("--quantization", help="w8a16 or another scheme; default: bfloat16")
    parser.add_argument("--steps", type=positive, default=60)
    parser.add_argument("--context", type=positive, default=512)
    args = parser.parse_args()

    print(describe_machine())
    llm = LLM(
        args.folder,
        quantization=args.quantization,
        max_num_seqs=1,
        max_model_len=2048,
        prompt_lookup_num_tokens=0,
        packed_cache="off",
    )
    print(
        f"mindspore {mindspore.__version__}, {library.isa()}, {args.folder.name}: "
        f"{llm.config.num_hidden_layers} layers, {args.quantization or llm.settings.params_dtype}, "
        f"one sequence, context {args.context}; medians in ms of {args.steps} steps; "
        "model: what is around its operators"
    )
    names = " ".join(f"{stage:>8}" for stage in (*STAGES, "other"))
    print(f"{'':>20} {'step':>8} {'kernels':>8} {names} {'share':>6}")
    is_kept = True
    for name, settings in SETTINGS.items():
        is_kept &= report(name, measure(llm, args.context, args.steps, settings))
    return 0 if is_kept else 1


def report(name: str, watch: Stopwatch) -> bool:
    """Print one line; return whether its share is within the limit."""
    step, kernels = watch.median("step"), watch.median("model kernels")
    parts = {stage: watch.median(stage) for stage in STAGES}
    parts["model"] -= kernels
    outside = step - kernels
    parts["other"] = outside - sum(parts.values())
    shown = " ".join(f"{parts[stage] * 1e3:8.2f}" for stage in (*STAGES, "other"))
    print(f"{name:>20} {step * 1e3:8.2f} {kernels * 1e3:8.2f} {shown} {outside / step:6.1%}")
    return outside / step < LIMIT


if __name__ == "__main__":
    run_main(main)
