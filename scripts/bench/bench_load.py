"""How long does loading take, and how much memory, with and without a packed cache?

Each way runs in a process of its own, in turn with the others, from the page cache; the clock
starts after the imports and stops when `LLM` is ready for the first prompt. Beside them: plain
reads of the same files by one thread, into a buffer of 8 MiB. A first start that writes the cache
says how long that took on top.

    python scripts/bench/bench_load.py --checkpoint /tmp/slices/9b4 --cache_folder /tmp/cache \\
        [--settings params_dtype=bfloat16] [--repeats 3]

CPU s are those of all threads: what stays the same on a machine that others use too. Peak memory is
that of the process, less the weights.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, positive, run_main

# name -> packed_cache
WAYS = {"first": "off", "first, writing": "on", "cached": "auto"}
_BUFFER_BYTES = 8 * 2**20


def run(folder: str, mode: str, settings: dict[str, Any]) -> dict[str, float]:
    """Load once in this process."""
    import mindformers  # noqa: F401
    import mindspore  # noqa: F401

    import mindformers_glm.backends.cpu.runner  # noqa: F401
    from mindformers_glm import LLM
    from mindformers_glm.tokenizer import load_tokenizer
    from mindformers_glm.weights import packed_cache
    from mindformers_glm.weights.packed_file import write_file

    seconds = {"write": 0.0}

    def timed_write(*args: Any) -> None:
        begin = time.perf_counter()
        write_file(*args)
        seconds["write"] = time.perf_counter() - begin

    packed_cache.write_file = timed_write
    begin = time.perf_counter()
    load_tokenizer(folder)
    tokenizer_s = time.perf_counter() - begin
    begin, cpu_begin = time.perf_counter(), time.process_time()
    llm = LLM(
        folder,
        device_target="CPU",
        max_num_seqs=1,
        max_model_len=1024,
        packed_cache=mode,
        **settings,
    )
    total, cpu = time.perf_counter() - begin, time.process_time() - cpu_begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "load": total - seconds["write"],
        "write": seconds["write"],
        "cpu": cpu,
        "tokenizer": tokenizer_s,
        "weights": llm.weights_bytes,
        "peak": peak,
    }


def run_apart(arguments: argparse.Namespace, way: str) -> dict[str, float]:
    """Load in a new process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
    environ = os.environ | {"MINDFORMERS_GLM_CACHE": str(arguments.cache_folder), "GLOG_v": "3"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environ, text=True)
    return json.loads(output.stdout.splitlines()[-1])


def plain_read(files: list[Path]) -> float:
    """Seconds to read files one after another."""
    buffer = bytearray(_BUFFER_BYTES)
    begin = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - begin


def report(name: str, *numbers: float) -> None:
    """Print one line."""
    print(f"{name:>16}", *(f"{number:11.2f}" for number in numbers))


def main() -> int:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--cache_folder", type=Path, required=True, help="emptied of caches first")
    parser.add_argument("--settings", nargs="*", default=[], help="arguments of LLM, NAME=VALUE")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unclear := [setting for setting in arguments.settings if "=" not in setting]:
        parser.error(f"expected NAME=VALUE after --settings, got {unclear[0]}")
    settings = dict(setting.split("=", 1) for setting in arguments.settings)
    if arguments.way:
        print(json.dumps(run(arguments.checkpoint, WAYS[arguments.way], settings)))
        return 0

    print(describe_machine())
    print(f"{arguments.checkpoint} {' '.join(arguments.settings)}, medians of {arguments.repeats}")
    sources = sorted(Path(arguments.checkpoint).glob("*.safetensors"))
    source_bytes = sum(file.stat().st_size for file in sources)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    reads: dict[str, list[float]] = {"source": [], "cache": []}
    for repeat in range(arguments.repeats):
        for way in WAYS:
            if way == "first, writing":
                if repeat > 0:
                    continue
                for file in arguments.cache_folder.glob("*.glmpack"):
                    file.unlink()
            found[way].append(run_apart(arguments, way))
            caches = sorted(arguments.cache_folder.glob("*.glmpack"))
            if way == "first, writing" and not caches:
                parser.error(f"there is no packed cache in {arguments.cache_folder} to measure")
        reads["source"].append(plain_read(sources))
        reads["cache"].append(plain_read(caches))
    cache_bytes = sum(file.stat().st_size for file in caches)
    titles = ("GB", "s", "GB/s", "of read", "CPU s", "tokenizer s", "peak GiB")
    print(" " * 16, *(f"{title:>11}" for title in titles))
    sizes = {"source": source_bytes, "cache": cache_bytes}
    for name, times in reads.items():
        median = float(np.median(times))
        report(f"read {name}", sizes[name] / 1e9, median, sizes[name] / 1e9 / median)
    for way, runs in found.items():
        name = "cache" if way == "cached" else "source"
        load, cpu, tokenizer_s, peak = (
            float(np.median([run[key] for run in runs]))
            for key in ("load", "cpu", "tokenizer", "peak")
        )
        gigabytes, of_read = sizes[name] / 1e9, load / float(np.median(reads[name]))
        above = (peak - runs[0]["weights"]) / 2**30
        report(way, gigabytes, load, gigabytes / load, of_read, cpu, tokenizer_s, above)
    print(f"writing the cache: {found['first, writing'][0]['write']:.2f} s")
    return 0


if __name__ == "__main__":
    run_main(main)
