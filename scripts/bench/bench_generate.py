"""How fast does this project generate, beside other engines on the same machine?

    python scripts/bench/bench_generate.py --model /tmp/slices/9b4 --hf_python $(which python) \
        --llama_cpp_python /tmp/peers/llama/bin/python --llama_cpp_models /tmp/peers/gguf/9b4 \
        --openvino_python /tmp/peers/openvino/bin/python --openvino_models /tmp/peers/ov/9b4

Each engine runs in a process of its own that loads once and then waits; in each round every engine
is measured once, in turn, with a plain read of memory before and after. An engine without its
options is left out. docs/performance.md says how to make the environments and the models.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from generate import machine_probe
from generate.alone import measure_long_context, measure_whole_model
from generate.measure import OURS, Contestant, Limits, Shape, measure, start_worker
from generate.report import Series, describe_disk_reads, describe_scaling, format_series
from generate.worker_process import WorkerError
from machine import positive, run_main

from mindformers_glm.config.glm_config import GlmConfig

# Format group -> engine -> formats of that engine. A group is in memory together.
FORMATS: dict[str, dict[str, tuple[str, ...]]] = {
    "bf16": {
        OURS: ("bf16",),
        "hugging_face": ("bf16", "bf16-compiled"),
        "llama_cpp": ("BF16",),
        "openvino_genai": ("fp16",),
    },
    "int8": {
        OURS: ("w8a16", "w8a8_dynamic"),
        "llama_cpp": ("Q8_0",),
        "openvino_genai": ("int8",),
    },
    "int4": {
        OURS: ("w4a16", "w4a8_dynamic"),
        "llama_cpp": ("Q4_0", "Q4_K_M"),
        "openvino_genai": ("int4",),
    },
}


def list_contestants(group: str, arguments: argparse.Namespace) -> list[Contestant]:
    """The engines of a format group whose environment is known, ours first."""
    found = []
    for engine, variants in FORMATS[group].items():
        for variant in variants:
            if variant in arguments.skip:
                continue
            if engine == OURS:
                found.append(Contestant(engine, variant, sys.executable, arguments.model))
            elif engine == "hugging_face" and arguments.hf_python:
                found.append(Contestant(engine, variant, arguments.hf_python, arguments.model))
            elif engine == "llama_cpp" and arguments.llama_cpp_python:
                model = f"{arguments.llama_cpp_models}/{variant}.gguf"
                found.append(Contestant(engine, variant, arguments.llama_cpp_python, model))
            elif engine == "openvino_genai" and arguments.openvino_python:
                model = f"{arguments.openvino_models}/{variant}"
                found.append(Contestant(engine, variant, arguments.openvino_python, model))
    return found


def split_contestants(
    contestants: list[Contestant], arguments: argparse.Namespace
) -> list[list[Contestant]]:
    """Those that are in memory together: all, or with --pairs ours with one other engine each."""
    ours = [one for one in contestants if one.engine == OURS]
    others = [one for one in contestants if one.engine != OURS]
    if not arguments.pairs or not others:
        return [contestants]
    engines = dict.fromkeys(one.engine for one in others)
    return [[*ours, *(one for one in others if one.engine == engine)] for engine in engines]


def compare(
    group: str, contestants: list[Contestant], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Load contestants of one format group, measure and print all shapes of it."""
    config = GlmConfig.from_hf(arguments.model)
    shapes = [Shape(n, arguments.context, arguments.steps) for n in arguments.decode]
    shapes += [Shape(0, tokens) for tokens in arguments.prefill]
    max_sequences = max([1, *arguments.decode])
    decode_len = arguments.context + (arguments.rounds + 1) * arguments.steps
    # Some room for tokens that come while the other sequences start.
    max_model_len = max([decode_len, *arguments.prefill]) + 2 * max_sequences + 2
    limits = Limits(arguments.threads, config.vocab_size, max_sequences, max_model_len)
    decoded: list[list[Series]] = []  # ours, for each number of sequences
    result: dict[str, Any] = {"format": group, "workers": {}, "shapes": []}
    print(f"\n## {group}\n")
    # Before the models: they leave fewer huge pages.
    read, gemm = machine_probe.ReadProbe(1 << 30), machine_probe.GemmProbe()
    with ExitStack() as stack:
        workers = []
        for contestant in contestants:
            worker = start_worker(contestant, limits, arguments.peer_wait_policy)
            workers.append(stack.enter_context(worker))
            result["workers"][worker.name] = worker.ready
            print(f"- {worker.name}: {worker.ready['version']}", flush=True)
        num_ours = sum(contestant.engine == OURS for contestant in contestants)
        for shape in shapes:
            probe = read if shape.sequences else gemm
            series = measure(shape, workers, config, probe, arguments.rounds)
            print(f"\n### {group}, {shape.title}\n")
            print(format_series(series, num_ours), flush=True)
            for warning in filter(None, map(describe_disk_reads, series)):
                print(f"\n{warning}", flush=True)
            found = {"title": shape.title, "series": [one.as_json() for one in series]}
            result["shapes"].append(found)
            if shape.sequences:
                decoded.append(series[:num_ours])
    print()
    for ours in decoded[1:]:
        for one, many in zip(decoded[0], ours, strict=True):
            print(describe_scaling(one, many))
    return result


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of make_slice.py")
    parser.add_argument("--mode", choices=["peers", "whole_model", "long"], default="peers")
    parser.add_argument("--formats", default="bf16,int8,int4", help="default: %(default)s")
    parser.add_argument("--hf_python", help="interpreter with torch and transformers")
    parser.add_argument("--llama_cpp_python", help="interpreter of build_llama_cpp.sh")
    parser.add_argument("--llama_cpp_models", help="folder of make_gguf.py")
    parser.add_argument("--openvino_python", help="interpreter with openvino-genai")
    parser.add_argument("--openvino_models", help="folder of export_openvino.py")
    parser.add_argument("--skip", nargs="+", default=[], help="formats to leave out: bf16-compiled")
    parser.add_argument(
        "--pairs", action="store_true", help="ours with one other engine at a time: less memory"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--decode", nargs="*", type=positive, default=[1, 4, 8, 16], help="sequences"
    )
    parser.add_argument("--context", type=positive, default=512)
    parser.add_argument("--prefill", nargs="*", type=int, default=[512], help="prompt lengths")
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--steps", type=positive, default=16, help="decode steps of a round")
    parser.add_argument(
        "--peer_wait_policy",
        choices=["PASSIVE", "default"],
        default="default",
        help="OMP_WAIT_POLICY of the other engines; default: not set, as for ours",
    )
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    arguments = parser.parse_args()
    for group in arguments.formats.split(","):
        if group not in FORMATS:
            parser.error(f"--formats takes {', '.join(FORMATS)}, got {group!r}")
    if not Path(arguments.model, "config.json").is_file():
        parser.error(f"there is no config.json in {arguments.model}")
    return arguments


def measure_all(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Carry out the mode; a result for each format group, or format of ours."""
    groups = arguments.formats.split(",")
    if arguments.mode == "peers":
        for group in groups:
            for contestants in split_contestants(list_contestants(group, arguments), arguments):
                yield compare(group, contestants, arguments)
        return
    variants = [v for group in groups for v in FORMATS[group][OURS] if v not in arguments.skip]
    measure_one = {"whole_model": measure_whole_model, "long": measure_long_context}[arguments.mode]
    for variant in variants:
        yield measure_one(arguments.model, variant, arguments.threads, arguments.rounds)


def main() -> int:
    """Print the tables; exit code 1 if a worker failed."""
    arguments = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # before our library starts its threads
    machine = machine_probe.describe()
    print(f"{machine}\nmodel {arguments.model}", flush=True)
    report: dict[str, Any] = {"machine": machine, "results": []}
    try:
        for result in measure_all(arguments):
            report["results"].append(result)
            if arguments.json:  # after each: a later one may fail
                arguments.json.write_text(json.dumps(report, indent=1))
    except WorkerError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
