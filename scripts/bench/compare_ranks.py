"""Do N ranks answer as one process does where weights are quantized?

    python scripts/bench/compare_ranks.py [--ranks 2 4] [--formats w8a16 w4a8_dynamic/32]
    python scripts/bench/compare_ranks.py --folders [NAME ...] [--ranks 2 4 8]

Ten random checkpoints of all dialects, whose sizes are multiples of no group of columns, and
glm4-mini run in each format (FORMAT/GROUP: int4 in groups of GROUP) on one process and on several
ranks (ranks/answers_worker.py). Prints for each the relative L2 error of the logits against one
process, and how many greedy tokens came before the first that differs. Exit code 1 if an error is
above 1e-3 (2e-2 with 8-bit activations), or a token differs though the two best logits of one
process were further apart than that.

With --folders the checkpoints are quantized already: random folders of every format and scheme
(tests/quantized_folders.py), which ranks read whole, and cut by process_weights.py for them. Those
of weights alone are also compared with the float folder of the same matrices, in products of
float32: exit code 1 above 1e-5.
"""

import argparse
import shlex
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from commits.trees import JobError, environment_of, run_job
from machine import REPO, describe_machine, positive, run_main
from make_slice import write_random_checkpoint
from released_models import MODELS

from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.quantization_scheme import SCHEMES
from mindformers_glm.quantization.share_format import ShareEncoder
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.weights.share_writer import write_shares

sys.path.insert(0, str(REPO))

from tests import quantized_folders
from tests.unit.quantization.float_folder import write_float_folder

WORKER = Path(__file__).parent / "ranks" / "answers_worker.py"
MINI = REPO / "mindformers_glm" / "assets" / "glm4-mini"
_ENDS = {"eos_token_id": [1], "pad_token_id": 0, "torch_dtype": "float32"}


def _glm(model: str, heads: tuple[int, int, int], inner: int, vocabulary: int) -> dict[str, Any]:
    """A small GLM or GLM-4-0414: query heads, key-value heads and head_dim; inner columns."""
    sizes = {
        "hidden_size": 192,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
    }
    return MODELS[model] | sizes | _ENDS


def _chatglm(heads: tuple[int, int, int], inner: int, vocabulary: int) -> dict[str, Any]:
    sizes = {
        "hidden_size": 192,
        "num_attention_heads": heads[0],
        "multi_query_group_num": heads[1],
        "kv_channels": heads[2],
        "ffn_hidden_size": inner,
        "num_layers": 2,
        "num_hidden_layers": 2,
        "padded_vocab_size": vocabulary,
        "seq_length": 2048,
    }
    return MODELS["glm-4-9b-chat"] | sizes | _ENDS


CHECKPOINTS = {
    "glm4-64": _glm("9b", (8, 2, 64), 856, 3083),
    "glm4-16": _glm("9b", (4, 2, 16), 136, 3073),
    "glm4-80": _glm("32b", (4, 4, 80), 1000, 3187),
    "glm4-128": _glm("9b", (4, 2, 128), 1712, 3500),
    "glm-96": _glm("glm-4-9b-chat-hf", (8, 2, 96), 344, 3333),
    "glm-32": _glm("glm-4-9b-chat-hf", (12, 4, 32), 700, 3099) | {"tie_word_embeddings": True},
    "glm-48": _glm("glm-4-9b-chat-hf", (4, 1, 48), 1284, 3081),
    "chatglm-128": _chatglm((4, 2, 128), 1370, 3101),
    "chatglm-64": _chatglm((8, 2, 64), 420, 3250),
    "chatglm-40": _chatglm((4, 2, 40), 97, 3511),
}
_DEVIATION = 0.1  # attention scores then spread by about one
_MAX_ERROR = {16: 1e-3, 8: 2e-2}  # by the bits of activations
_MAX_EXACT_ERROR = 1e-5
# Weights of these folders deviate from zero as a network's do; 8 ranks have a query head each.
_FOLDER_SIZES = {
    "hidden_size": 128,
    "num_attention_heads": 8,
    "head_dim": 32,
    "intermediate_size": 1120,
    "vocab_size": 521,
}
FOLDERS = (
    quantized_folders.WEIGHT_ONLY | quantized_folders.CHATGLM | quantized_folders.WITH_ACTIVATIONS
)


def write_checkpoints(folder: Path) -> list[Path]:
    """The random checkpoints, which borrow glm4-mini's tokenizer, and it."""
    for seed, (name, keys) in enumerate(CHECKPOINTS.items()):
        write_random_checkpoint(folder / name, name, keys, _DEVIATION, seed)
        for file in MINI.glob("tokenizer*.json"):
            shutil.copy(file, folder / name)
    return [*(folder / name for name in CHECKPOINTS), MINI]


def write_folders(folder: Path, names: list[str]) -> list[Path]:
    """The random quantized folders, and NAME-meant, the float one that a weight-only one means."""
    folder.mkdir()
    sources = {
        kind: write_float_folder(folder / kind, kind, **_FOLDER_SIZES)
        for kind in ("glm4", "chatglm")
    }
    found = []
    for name in names:
        source = sources["chatglm" if name in quantized_folders.CHATGLM else "glm4"]
        meant = quantized_folders.write(source, folder / name, FOLDERS[name])
        found.append(folder / name)
        if name not in quantized_folders.WITH_ACTIVATIONS:
            quantized_folders.write_meant(source, folder / f"{name}-meant", meant)
    return found


def cut_folders(folders: list[Path], work: Path, ranks: int) -> list[Path]:
    """The same folders, cut for so many ranks: NAME-cut; without those that say they cannot be."""
    cut = []
    for folder in folders:
        output = work / f"{folder.name}-cut"
        with suppress(UnsupportedError):
            write_shares(folder, output, ranks, find_format, ShareEncoder())
            cut.append(output)
    return cut


def run_worker(ranks: int, folders: list[Path], formats: list[str], work: Path) -> None:
    """Answer on all checkpoints in all formats; the answers are in `work` then."""
    work.mkdir()
    command = [str(WORKER), "--ranks", str(ranks), "--output", str(work), "--formats", *formats]
    command += ["--", *map(str, folders)]
    if ranks == 1:
        command = [sys.executable, *command]
    else:
        launcher = str(REPO / "scripts" / "msrun_launcher.sh")
        command = ["bash", launcher, shlex.join(command), str(ranks)]
    run_job(f"{ranks} ranks", command, work, environment_of(REPO, MASTER_PORT="auto"))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """L2 norm of the difference to that of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def compare_tokens(
    found: np.ndarray, expected: np.ndarray, logits: np.ndarray, bound: float
) -> tuple[int, bool]:
    """How many tokens are equal up to the first that is not, and whether they may part there.

    Args:
        logits: [tokens, vocab_size], those of which `expected` are the best.
        bound: how far apart the two best may be then, in relation to the row's logits.
    """
    differs = found != expected
    if not differs.any():
        return len(expected), True
    step = int(differs.argmax())
    row = np.sort(logits[step])
    size = float(np.linalg.norm(row) / np.sqrt(len(row)))
    return step, bool(row[-1] - row[-2] <= bound * size)


def compare_answers(
    alone: Path, split: Path, name: str, ranks: int, bound: float, alone_name: str | None = None
) -> tuple[bool, str]:
    """Whether the ranks answered as one process did, and what to print.

    Args:
        name, alone_name: of the ranks' answers and of the process's; None: the same.
    """
    expected = dict(np.load(alone / f"{alone_name or name}-0.npz"))
    is_good, error, equal, total = True, 0.0, 0, 0
    for rank in range(ranks):
        found = dict(np.load(split / f"{name}-{rank}.npz"))
        error = max(error, relative_error(found["logits"], expected["logits"]))
        for tokens in (key for key in expected if key.startswith("tokens")):
            logits = expected[tokens.replace("tokens", "logits")]
            num_equal, may_part = compare_tokens(found[tokens], expected[tokens], logits, bound)
            equal, total = equal + num_equal, total + len(expected[tokens])
            is_good &= may_part
    is_good &= error <= bound
    return is_good, f"{error:.1e}  {equal:4} of {total} tokens{'' if is_good else '  TOO FAR'}"


def compare_folders(work: Path, names: list[str], all_ranks: list[int]) -> bool:
    """Print a line for each quantized folder, number of ranks and way to read it."""
    folders = write_folders(work / "folders", names)
    exact = [folder for folder in folders if folder.with_name(f"{folder.name}-meant").exists()]
    run_worker(1, folders, ["stored"], work / "1")
    meant = [folder.with_name(f"{folder.name}-meant") for folder in exact]
    if meant:
        run_worker(1, meant, ["stored"], work / "meant")
    all_good = True
    for folder in exact:
        is_good, text = compare_answers(
            *(work / "meant", work / "1", f"{folder.name}-stored", 1, _MAX_EXACT_ERROR),
            f"{folder.name}-meant-stored",
        )
        all_good &= is_good
        print(f"{folder.name:>32} float32 products  {text}", flush=True)
    for ranks in all_ranks:
        ways = {"whole": folders, "cut": cut_folders(folders, work, ranks)}
        for way, wanted in ways.items():
            run_worker(ranks, wanted, ["stored"], work / f"{way}-{ranks}")
            for one in wanted:
                name = one.name.removesuffix("-cut")
                is_integer = name in quantized_folders.WITH_ACTIVATIONS
                is_good, text = compare_answers(
                    *(work / "1", work / f"{way}-{ranks}", f"{one.name}-stored", ranks),
                    _MAX_ERROR[8 if is_integer else 16],
                    f"{name}-stored",
                )
                all_good &= is_good
                print(f"{name:>32} {way:>5} {ranks} ranks  {text}", flush=True)
        for folder in ways["cut"]:
            shutil.rmtree(folder)
    return all_good


def compare_formats(work: Path, arguments: argparse.Namespace) -> bool:
    """Print a line for each float checkpoint, format and number of ranks."""
    folders = [
        folder
        for folder in write_checkpoints(work / "checkpoints")
        if folder.name in arguments.checkpoints
    ]
    all_good = True
    for ranks in (1, *arguments.ranks):
        begin = time.monotonic()
        run_worker(ranks, folders, arguments.formats, work / str(ranks))
        print(f"{ranks} ranks ran for {time.monotonic() - begin:.0f} s", flush=True)
        for folder in folders if ranks > 1 else []:
            for form in arguments.formats:
                scheme = SCHEMES[form.partition("/")[0]]
                is_good, text = compare_answers(
                    work / "1",
                    work / str(ranks),
                    f"{folder.name}-{form.replace('/', '')}",
                    ranks,
                    _MAX_ERROR[scheme.activation_bits],
                )
                all_good &= is_good
                print(f"{folder.name:>12} {form:>15} {ranks} ranks  {text}", flush=True)
    return all_good


def main() -> int:
    """Print the table; exit code 1 if an answer is too far away."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", nargs="+", type=positive, default=[2, 4])
    parser.add_argument("--formats", nargs="+", default=list(SCHEMES), metavar="FORMAT[/GROUP]")
    names = [*CHECKPOINTS, MINI.name]
    parser.add_argument("--checkpoints", nargs="+", choices=names, default=names)
    parser.add_argument("--folders", nargs="*", choices=FOLDERS, metavar="NAME")
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="compare_ranks_") as name:
        if arguments.folders is None:
            all_good = compare_formats(Path(name), arguments)
        else:
            names = arguments.folders or list(FOLDERS)
            all_good = compare_folders(Path(name), names, arguments.ranks)
    print("ranks answer as one process does" if all_good else "answers are too far away")
    return 0 if all_good else 1


if __name__ == "__main__":
    try:
        run_main(main)
    except JobError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
