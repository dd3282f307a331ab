"""How fast does this project generate, beside other engines on the same machine?

    python scripts/bench/bench_generate.py --model /tmp/slices/9b4 --hf_python $(which python) \
        --llama_cpp_python /tmp/peers/llama/bin/python --llama_cpp_models /tmp/peers/gguf/9b4 \
        --openvino_python /tmp/peers/openvino/bin/python --openvino_models /tmp/peers/ov/9b4

Each engine runs in a process of its own that loads once and then waits; in each round every engine
is measured once, in turn, with a plain read of memory before and after. An engine without its
options is left out. `--mode schemes --slices DIR` has folders in DIR that are quantized already
(quantized_slices.py; missing ones are written) beside bfloat16 and the engines, some at a time.
docs/performance.md says how to make the environments and the models.
"""

import argparse
import json
import os
import shutil
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
from make_slice import write_slice
from quantized_slices import FORMS
from released_models import MODELS

from mindformers_glm.config.glm_config import GlmConfig

# Format group -> engine -> formats of that engine. A group is in memory together.
FORMATS: dict[str, dict[str, tuple[str, ...]]] = {
    "bf16": {
        OURS: ("bf16",),
        "hugging_face": ("bf16", "bf16-compiled"),
        "llama_cpp": ("BF16",),
        "ik_llama_cpp": ("BF16", "BF16-repacked"),
        "openvino_genai": ("fp16",),
        "vllm": ("bf16",),
    },
    "int8": {
        OURS: ("w8a16", "w8a8_dynamic"),
        "llama_cpp": ("Q8_0",),
        "ik_llama_cpp": ("Q8_0", "Q8_0-repacked"),
        "openvino_genai": ("int8",),
    },
    "int4": {
        OURS: ("w4a16", "w4a8_dynamic"),
        "llama_cpp": ("Q4_0", "Q4_K_M"),
        "ik_llama_cpp": ("Q4_0", "Q4_0-repacked"),
        "openvino_genai": ("int4",),
    },
}


# What `--mode schemes` measures: each scheme once, in the format that most folders have it in.
SCHEMES = (
    *("slim-w8a16", "slim-w8a16-asymmetric", "slim-w8a8", "slim-w8a8-mix", "slim-w8a8s"),
    *("slim-w8a8-dynamic", "ct-w8a16-groups", "slim-w4a16", "slim-w4a16-groups"),
    *("gptq-asymmetric", "gptq-desc-act", "slim-w4a8-dynamic"),
)
# Folders of these are also read by vLLM on a CPU.
_READ_BY_VLLM = ("ct-w8a8", "ct-w4a16", "gptq", "awq")


def list_contestants(group: str, arguments: argparse.Namespace) -> list[Contestant]:
    """The engines of a format group whose environment is known, ours first."""
    found = []
    for engine, variants in FORMATS[group].items():
        python, model = _place_of(engine, arguments)
        for variant in variants:
            if python and variant not in arguments.skip:
                found.append(Contestant(engine, variant, python, model.format(variant)))
    return found


def _place_of(engine: str, arguments: argparse.Namespace) -> tuple[str | None, str]:
    """The engine's interpreter, None where it is not given, and where its models are."""
    gguf = f"{arguments.llama_cpp_models}/{{}}.gguf"
    places: dict[str, tuple[str | None, str]] = {
        OURS: (sys.executable, arguments.model),
        "hugging_face": (arguments.hf_python, arguments.model),
        "llama_cpp": (arguments.llama_cpp_python, gguf),
        "ik_llama_cpp": (arguments.ik_llama_cpp_python, gguf),
        "openvino_genai": (arguments.openvino_python, f"{arguments.openvino_models}/{{}}"),
        "vllm": (arguments.vllm_python, arguments.model),
    }
    return places[engine]


def list_schemes(arguments: argparse.Namespace) -> list[tuple[str, list[Contestant]]]:
    """(format group, contestants that are in memory together): bf16, some schemes, the others."""
    found = []
    for group, bits in (("int8", 8), ("int4", 4)):
        if group not in arguments.formats.split(","):
            continue
        others = [one for one in list_contestants(group, arguments) if one.engine != OURS]
        names = [name for name in arguments.schemes if FORMS[name].bits == bits]
        for begin in range(0, len(names), arguments.together):
            chunk = [Contestant(OURS, "bf16", sys.executable, arguments.model)]
            theirs = []
            for name in names[begin : begin + arguments.together]:
                folder = f"{arguments.slices}/{name}"
                chunk.append(Contestant(OURS, f"stored-{name}", sys.executable, folder))
                if arguments.vllm_python and name.startswith(_READ_BY_VLLM):
                    theirs.append(Contestant("vllm", name, arguments.vllm_python, folder))
            found.append((group, [*chunk, *others, *theirs]))
    return found


def write_slices(arguments: argparse.Namespace) -> None:
    """Write the quantized folders that are not there yet, with as many layers as the model has."""
    raw = json.loads(Path(arguments.model, "config.json").read_text())
    num_layers = raw.get("num_hidden_layers") or raw["num_layers"]
    for name in arguments.schemes:
        folder = Path(arguments.slices, name)
        if not (folder / "config.json").exists():
            unfinished = folder.with_name(f".{name}.tmp")
            shutil.rmtree(unfinished, ignore_errors=True)
            write_slice(unfinished, arguments.slice_of, num_layers, seed=0, quantized=name)
            for file in Path(arguments.model).glob("tokenizer*.json"):
                shutil.copy(file, unfinished)
            unfinished.rename(folder)


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
    modes = ["peers", "schemes", "whole_model", "long"]
    parser.add_argument("--mode", choices=modes, default="peers")
    parser.add_argument("--formats", default="bf16,int8,int4", help="default: %(default)s")
    parser.add_argument("--hf_python", help="interpreter with torch and transformers")
    parser.add_argument("--llama_cpp_python", help="interpreter of build_llama_cpp.sh")
    parser.add_argument("--llama_cpp_models", help="folder of make_gguf.py")
    parser.add_argument("--ik_llama_cpp_python", help="interpreter of build_ik_llama.sh")
    parser.add_argument("--vllm_python", help="interpreter of build_vllm.sh")
    parser.add_argument("--openvino_python", help="interpreter with openvino-genai")
    parser.add_argument("--openvino_models", help="folder of export_openvino.py")
    parser.add_argument(
        "--slices", type=Path, help="folder of quantized slices, for --mode schemes"
    )
    parser.add_argument("--slice_of", choices=MODELS, default="9b", help="whose shape they have")
    parser.add_argument("--schemes", nargs="+", choices=FORMS, default=list(SCHEMES))
    parser.add_argument("--together", type=positive, default=3, help="schemes in memory at once")
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
    if arguments.mode == "schemes" and arguments.slices is None:
        parser.error("--mode schemes needs --slices, a folder for the quantized slices")
    has_gguf = arguments.llama_cpp_python or arguments.ik_llama_cpp_python
    if has_gguf and not arguments.llama_cpp_models:
        parser.error("llama.cpp and ik_llama.cpp need --llama_cpp_models, a folder of make_gguf.py")
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
    if arguments.mode == "schemes":
        write_slices(arguments)
        for group, contestants in list_schemes(arguments):
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
