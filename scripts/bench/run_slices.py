"""Does every quantized format load and run at true shapes, on one process and on several ranks?

    python scripts/bench/run_slices.py [--models 9b 32b glm-4-9b-chat] [--forms ...] [--ranks 1 2]

Writes a slice of each model in each format (make_slice.py --quantized), one at a time, runs it and
removes it. Prints for each number of ranks: load time, prefill and decode in tokens/s, and the
weights of a rank, planned by `inspect` and allocated, with its peak memory. Exit code 1 if a slice
does not run, or the two are not the same.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_parallel import run_rank
from machine import REPO, describe_machine, positive, run_main
from make_slice import write_slice
from quantized_slices import FORMS
from released_models import MODELS

from mindformers_glm.core.errors import GlmError
from mindformers_glm.serving.inspect.command import inspect_folder

MINI = REPO / "mindformers_glm" / "assets" / "glm4-mini"
_MODELS = ["9b", "32b", "glm-4-9b-chat"]
_WORKER = "--worker"
_OUTPUT = "SLICES_OUTPUT"
_SHOWN_LOG_LINES = 4


def run_job(folder: Path, size: int, prompt: int, steps: int) -> list[dict[str, float]]:
    """Run one slice on `size` ranks; what each measured, none where it did not run."""
    with tempfile.TemporaryDirectory(prefix="run_slices_") as work:
        worker = [__file__, _WORKER, str(folder), str(size), str(prompt), str(steps)]
        command = [sys.executable, *worker]
        if size > 1:
            launcher = ["-m", "mindformers_glm.launcher", f"--worker_num={size}"]
            options = ["--master_port=auto", f"--log_dir={work}/log", "--", shlex.join(worker)]
            command = [sys.executable, *launcher, *options]
        environment = os.environ | {"GLOG_v": "3", _OUTPUT: work}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        if ended.returncode:
            print("\n".join(ended.stderr.splitlines()[-_SHOWN_LOG_LINES:]), flush=True)
            return []
        return [json.loads(file.read_text()) for file in sorted(Path(work).glob("rank*.json"))]


def planned_bytes(folder: Path) -> dict[int, int]:
    """The weights of one rank by the number of ranks, as `inspect` says for bfloat16."""
    memory = inspect_folder(folder).facts["memory"]
    sizes = next(v for k, v in memory["weights_bytes"].items() if "bfloat16" in k)
    return dict(zip(memory["ranks"], sizes, strict=True))


def run_slice(folder: Path, label: str, ranks: list[int], prompt: int, steps: int) -> bool:
    """Print a line for each number of ranks; whether all ran and needed what was planned."""
    try:
        planned = planned_bytes(folder)
    except GlmError as problem:
        print(f"{label:>44}  {problem}", flush=True)
        return False
    is_good = True
    for size in ranks:
        found = run_job(folder, size, prompt, steps)
        if not found:
            is_good = False
            print(f"{label:>44} {size:>5}  DID NOT RUN", flush=True)
            continue
        slowest = {name: max(rank[name] for rank in found) for name in found[0]}
        expected, weights = planned[size] / 1e9, slowest["weights GB"]
        is_same = round(expected * 1e9) == round(weights * 1e9)
        is_good &= is_same
        print(
            f"{label:>44} {size:>5} {slowest['load s']:>7.1f} "
            f"{1e3 * prompt / slowest['prompt ms']:>9.1f} {1e3 / slowest['step ms']:>9.2f} "
            f"{expected:>8.3f} {weights:>8.3f} {slowest['peak GB']:>8.2f}"
            f"{'' if is_same else '  NOT AS PLANNED'}",
            flush=True,
        )
    return is_good


def run_all(arguments: argparse.Namespace) -> bool:
    """Write, run and remove one slice after the other."""
    all_good = True
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    for model in arguments.models:
        for name in arguments.forms:
            form = FORMS[name]
            if form.models and MODELS[model]["model_type"] not in form.models:
                continue
            with tempfile.TemporaryDirectory(prefix="slice_", dir=arguments.folder) as place:
                folder = Path(place) / f"{model}-{name}"
                write_slice(folder, model, arguments.num_layers, seed=0, quantized=name)
                for file in MINI.glob("tokenizer*.json"):
                    shutil.copy(file, folder)
                label = f"{model} {name}"
                all_good &= run_slice(
                    folder, label, arguments.ranks, arguments.prompt, arguments.steps
                )
                shutil.rmtree(folder)
    return all_good


def run_worker(folder: str, size: str, prompt: str, steps: str) -> int:
    """One rank of a job."""
    found = run_rank(folder, int(size), 1 if int(size) > 1 else 2, int(steps), int(prompt))
    rank = os.environ.get("RANK_ID", "0")
    Path(os.environ[_OUTPUT], f"rank{rank}.json").write_text(json.dumps(found))
    return 0


def main() -> int:
    """Print the table; exit code 1 if a slice does not run as it should."""
    if sys.argv[1:2] == [_WORKER]:
        return run_worker(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=_MODELS)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--num_layers", type=positive, default=2)
    parser.add_argument("--ranks", nargs="+", type=positive, default=[1, 2])
    parser.add_argument("--prompt", type=positive, default=128, help="tokens, at most 512")
    parser.add_argument("--steps", type=positive, default=8)
    parser.add_argument("--folder", type=Path, help="place for one slice at a time, made if new")
    arguments = parser.parse_args()
    print(describe_machine())
    print(f"{arguments.num_layers} layers, prompt {arguments.prompt}, {arguments.steps} steps")
    print(
        f"{'':>44} {'ranks':>5} {'load s':>7} {'prefill':>9} {'decode':>9} {'planned':>8} "
        f"{'weights':>8} {'peak':>8}  tokens/s, GB of a rank",
        flush=True,
    )
    all_good = run_all(arguments)
    print("all slices run" if all_good else "some slices do not run as they should")
    return 0 if all_good else 1


if __name__ == "__main__":
    run_main(main)
