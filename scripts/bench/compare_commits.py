"""Does the network compute the same bits at two commits?

    python scripts/bench/compare_commits.py OLD NEW [--isa avx512] [--ranks 1 2 4]

Each commit is checked out and built in a temporary folder. Under each, the runner executes the same
steps (commits/bits_worker.py: prompts, chunks, decoding, drafts) on glm4-mini and on random
checkpoints of every dialect, in every format, on 1, 2 and 4 ranks. Prints one line for each
checkpoint, format and number of ranks: "same", or the steps whose logits differ on any rank and by
how much; exit code 1 if any does. OLD or NEW may also be the folder of a built tree.
"""

import argparse
import shlex
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from commits.bits_worker import FORMATS
from commits.trees import JobError, checked_out, describe_tree, environment_of, run_job
from machine import REPO, positive, run_main
from make_slice import write_random_checkpoint
from released_models import MODELS

WORKER = Path(__file__).parent / "commits" / "bits_worker.py"
MINI = REPO / "mindformers_glm" / "assets" / "glm4-mini"
# 4 ranks: 2 query heads and 771 tokens each, which is no whole number of tiles, and a key-value
# head for two of them.
_SMALL = {
    "hidden_size": 320,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "vocab_size": 3084,
    "max_position_embeddings": 2048,
    "eos_token_id": [1],
    "pad_token_id": 0,
}
_SMALL_CHATGLM = {
    "hidden_size": 256,
    "num_attention_heads": 8,
    "multi_query_group_num": 2,
    "kv_channels": 128,
    "ffn_hidden_size": 1024,
    "num_layers": 4,
    "num_hidden_layers": 4,
    "padded_vocab_size": 3200,
    "seq_length": 2048,
    "eos_token_id": [1],
    "pad_token_id": 0,
}
_DEEP, _DEEP_FORMATS = "glm4-deep", ("bfloat16", "w4a8_dynamic")
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "glm4": MODELS["9b"] | _SMALL | {"torch_dtype": "float32"},
    "glm": MODELS["glm-4-9b-chat-hf"] | _SMALL | {"torch_dtype": "bfloat16"},
    "chatglm": MODELS["glm-4-9b-chat"] | _SMALL_CHATGLM | {"torch_dtype": "float16"},
    # Without biases; so many layers that several ranks need several graphs, which take long to
    # compile: two formats must do.
    _DEEP: MODELS["32b"] | _SMALL | {"num_hidden_layers": 26, "torch_dtype": "bfloat16"},
}
_DEVIATION = 0.07  # attention scores then spread by about one
_THREADS = {1: 2}  # of a rank, by the number of ranks; else one


def write_checkpoints(folder: Path) -> list[Path]:
    """glm4-mini and the random checkpoints, which borrow its tokenizer."""
    for seed, (name, keys) in enumerate(CHECKPOINTS.items()):
        write_random_checkpoint(folder / name, name, keys, _DEVIATION, seed)
        for file in MINI.glob("tokenizer*.json"):
            shutil.copy(file, folder / name)
    return [MINI, *(folder / name for name in CHECKPOINTS)]


def run_worker(
    tree: Path, ranks: int, wanted: dict[Path, list[str]], work: Path, isa: str | None
) -> None:
    """Run checkpoints in their formats under one tree; the logits are in `work` then."""
    work.mkdir()
    variables = {"MINDFORMERS_GLM_ISA": isa} if isa else {}
    environment = environment_of(tree, MASTER_PORT="auto", **variables)
    command = [str(WORKER), "--ranks", str(ranks), "--threads", str(_THREADS.get(ranks, 1))]
    command += ["--output", str(work)]
    command += [f"{folder}={','.join(formats)}" for folder, formats in wanted.items()]
    if ranks == 1:
        command = [sys.executable, *command]
    else:
        launcher = str(tree / "scripts" / "msrun_launcher.sh")
        command = ["bash", launcher, shlex.join(command), str(ranks)]
    run_job(f"{describe_tree(tree)} on {ranks} ranks", command, work, environment)


def compare_logits(old: np.ndarray, new: np.ndarray) -> str:
    """What differs, as text; empty if every bit is the same."""
    if old.shape != new.shape:
        return f"shape {old.shape} against {new.shape}"
    differs = old.view(np.uint32) != new.view(np.uint32)
    if not differs.any():
        return ""
    with np.errstate(invalid="ignore"):
        largest = np.abs(old - new)[differs].max()
    return f"{differs.sum()} of {differs.size} logits, by up to {largest:.2e}"


def compare_runs(old: Path, new: Path, name: str, ranks: int) -> tuple[bool, str]:
    """Whether two folders hold the same bits for a checkpoint in a format, and what to print."""
    differences: dict[str, str] = {}
    num_logits, are_finite, isas = 0, True, set()
    for rank in range(ranks):
        found_old, found_new = (dict(np.load(side / f"{name}-{rank}.npz")) for side in (old, new))
        isas |= {str(found_old.pop("isa")), str(found_new.pop("isa"))}
        for step, logits in found_old.items():
            num_logits += logits.size
            are_finite &= bool(np.isfinite(logits).all())
            if difference := compare_logits(logits, found_new[step]):
                differences.setdefault(step, f"{step}: {difference} (first on rank {rank})")
    if len(isas) > 1:
        return False, f"instruction sets {' and '.join(sorted(isas))}"
    if differences:
        return False, "\n    ".join(["DIFFERENT", *differences.values()])
    note = "" if are_finite else ", not all of them finite"
    return True, f"same ({num_logits:,} logits{note}, {isas.pop()})"


def main() -> int:
    """Print the table; exit code 1 if a bit differs, 2 if something could not be run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="commit, or folder of a built tree")
    parser.add_argument("new", help="likewise")
    parser.add_argument("--isa", help="instruction set; default: the machine's best")
    parser.add_argument("--ranks", nargs="+", type=positive, default=[1, 2, 4])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    names = [MINI.name, *CHECKPOINTS]
    parser.add_argument("--checkpoints", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    is_same = True
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare_commits_")))
        begin = time.monotonic()
        sides = {"old": arguments.old, "new": arguments.new}
        trees = {s: stack.enter_context(checked_out(c, work / s)) for s, c in sides.items()}
        print(f"old {describe_tree(trees['old'])}, new {describe_tree(trees['new'])}")
        wanted = {
            folder: [f for f in arguments.formats if folder.name != _DEEP or f in _DEEP_FORMATS]
            for folder in write_checkpoints(work / "checkpoints")
            if folder.name in arguments.checkpoints
        }
        wanted = {folder: formats for folder, formats in wanted.items() if formats}
        print(f"trees and checkpoints ready after {time.monotonic() - begin:.0f} s", flush=True)
        for ranks in arguments.ranks:
            for side, tree in trees.items():
                begin = time.monotonic()
                run_worker(tree, ranks, wanted, work / f"{side}-{ranks}", arguments.isa)
                print(f"{ranks} ranks, {side}: {time.monotonic() - begin:.0f} s", flush=True)
            old, new = (work / f"{side}-{ranks}" for side in trees)
            for name, form in [(f.name, form) for f, formats in wanted.items() for form in formats]:
                same, text = compare_runs(old, new, f"{name}-{form}", ranks)
                is_same &= same
                print(f"{name:>10} {form:>13} {ranks} ranks  {text}", flush=True)
    print("every bit is the same" if is_same else "bits differ")
    return 0 if is_same else 1


if __name__ == "__main__":
    try:
        run_main(main)
    except JobError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
