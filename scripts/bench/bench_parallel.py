"""What does splitting a model over processes cost and save?

One process with as many threads as there are ranks, then that many ranks with one thread each, in
turn, on the same checkpoint (make_slice.py): time of a decode step and of a prompt, how much of it
is inside the operators, load time, and each rank's weights, KV cache, bytes read and peak memory.

    python scripts/bench/bench_parallel.py DIR [--ranks 2] [--steps 30] [--prompt 256] [--repeats 2]

Peak memory holds what a process has before it loads anything (start) and the pages of libraries,
which the processes of a machine share. What a step spends outside the operators is MindSpore's
graphs, sampling and, with several ranks, their all-reduces and waiting for the slowest one.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, positive, run_main

_WORKER = "--worker"
_NUM_PROMPTS = 5  # of which the median is told


def run_rank(folder: str, size: int, num_threads: int, steps: int, prompt: int) -> dict[str, float]:
    """Load and decode in this process; every rank does the same."""
    import mindformers  # noqa: F401
    import mindspore  # noqa: F401

    from mindformers_glm import LLM, SamplingParams
    from mindformers_glm.backends import BACKENDS
    from mindformers_glm.backends.cpu import library
    from mindformers_glm.config.device_settings import DeviceSettings
    from mindformers_glm.config.environment import launched_rank
    from mindformers_glm.core.sharding import TensorParallel
    from mindformers_glm.tokenizer import load_tokenizer

    load_tokenizer(folder)
    # Finding each other takes seconds that depend on the launcher, not on the model.
    BACKENDS["CPU"].connect(TensorParallel(size, launched_rank(size)), DeviceSettings()).wait()
    start_bytes = read_status("VmRSS")
    begin = time.perf_counter()
    llm = LLM(
        folder,
        model_parallel=size,
        num_threads=num_threads,
        device_target="CPU",
        max_num_seqs=1,
        max_model_len=1024,
        prompt_lookup_num_tokens=0,
        packed_cache="off",
    )
    load_s = time.perf_counter() - begin
    engine = llm.engine
    token_ids = np.random.default_rng(0).integers(0, llm.config.vocab_size, prompt).tolist()
    params = SamplingParams(do_sample=False, ignore_eos=True, max_new_tokens=steps + 3)
    prefill_s = []
    for number in range(_NUM_PROMPTS + 1):  # the first warms up
        if number:
            engine.step()
            engine.abort(f"prompt {number - 1}")
            engine.pool.forget_all()
        engine.add_request(f"prompt {number}", token_ids, params)
        begin = time.perf_counter()
        engine.step()
        prefill_s.append(time.perf_counter() - begin)
    engine.step()
    step_s, kernel_s = [], []
    for _ in range(steps):
        library.take_kernel_time()
        begin = time.perf_counter()
        engine.step()
        step_s.append(time.perf_counter() - begin)
        kernel_s.append(library.take_kernel_time()[0])
    engine.abort(f"prompt {_NUM_PROMPTS}")
    return {
        "load s": load_s,
        "step ms": 1e3 * float(np.median(step_s)),
        "p90 ms": 1e3 * float(np.percentile(step_s, 90)),
        "operators ms": 1e3 * float(np.median(kernel_s)),
        "prompt ms": 1e3 * float(np.median(prefill_s[1:])),
        "weights GB": llm.weights_bytes / 1e9,
        "KV/token KB": engine.runner.kv_block_bytes / llm.settings.block_size / 1e3,
        "read GB": engine.runner.read_weight_bytes / 1e9,
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "start GB": start_bytes / 1e9,
        "libraries GB": read_status("RssFile") / 1e9,
    }


def read_status(field: str) -> int:
    """A size in bytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def start(arguments: argparse.Namespace, size: int) -> list[dict[str, float]]:
    """Run all ranks of one job and return what each measured."""
    with tempfile.TemporaryDirectory() as work:
        worker = [__file__, *sys.argv[1:], _WORKER, str(size)]
        environ = os.environ | {"GLOG_v": "3", "BENCH_OUTPUT": work}
        command = [sys.executable, *worker]
        if size > 1:
            launcher = ["-m", "mindformers_glm.launcher", f"--worker_num={size}"]
            options = ["--master_port=auto", f"--log_dir={work}/log", "--"]
            command = [sys.executable, *launcher, *options, " ".join(worker)]
        subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL)
        return [json.loads(file.read_text()) for file in sorted(Path(work).glob("rank*.json"))]


def main() -> int:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=positive, default=30)
    parser.add_argument(
        "--prompt", type=positive, default=256, help="tokens of the prompt, at most 512"
    )
    parser.add_argument("--repeats", type=positive, default=2)
    parser.add_argument(_WORKER, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = (arguments.checkpoint, arguments.steps, arguments.prompt)
    if arguments.worker:
        size = arguments.worker
        num_threads = arguments.ranks if size == 1 else 1
        found = run_rank(arguments.checkpoint, size, num_threads, *sizes[1:])
        rank = os.environ.get("RANK_ID", "0")
        Path(os.environ["BENCH_OUTPUT"], f"rank{rank}.json").write_text(json.dumps(found))
        return 0
    print(describe_machine())
    print(f"{arguments.checkpoint}, prompt {arguments.prompt}, {arguments.steps} decode steps")
    runs: dict[int, list[list[dict[str, float]]]] = {1: [], arguments.ranks: []}
    for _ in range(arguments.repeats):
        for size, found in runs.items():
            found.append(start(arguments, size))
    # Of the ranks of a job the slowest or largest, of the jobs the median.
    tables = {size: _summarize(found) for size, found in runs.items()}
    one, many = tables[1], tables[arguments.ranks]
    print(f"{'':>14}{'1 process':>12}{f'{arguments.ranks} ranks':>12}{'ratio':>8}")
    for name in one:
        print(f"{name:>14}{one[name]:12.3f}{many[name]:12.3f}{many[name] / one[name]:8.2f}")
    return 0


def _summarize(jobs: list[list[dict[str, Any]]]) -> dict[str, float]:
    names = jobs[0][0]
    return {name: float(np.median([max(r[name] for r in job) for job in jobs])) for name in names}


if __name__ == "__main__":
    run_main(main)
