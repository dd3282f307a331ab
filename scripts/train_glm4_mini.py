"""Make or score glm4-mini, the small trained checkpoint in mindformers_glm/assets/glm4-mini.

    python scripts/train_glm4_mini.py --output DIR          # train, write the folder, score it
    python scripts/train_glm4_mini.py --output DIR --start_from DIR2   # train on from a folder
    python scripts/train_glm4_mini.py --score DIR           # score a folder with Hugging Face alone
    python scripts/train_glm4_mini.py --score DIR --quantization w8a16   # with this project instead

Needs torch >= 2.9 and transformers 4.51 (development dependencies only).
"""

import argparse
import dataclasses
import time
from pathlib import Path

import torch
from glm4_mini.asset import write_asset, write_heldout
from glm4_mini.corpus import known_examples
from glm4_mini.score import Score, read_heldout, score_folder, score_model, score_quantized
from glm4_mini.tokenizer import to_hugging_face, train_tokenizer
from glm4_mini.training import TrainingSettings, train
from transformers import AutoTokenizer, Glm4ForCausalLM

CONTEXT_LENGTH = 2048


def main() -> None:
    """Parse the command line and train or score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="train and write the checkpoint folder here")
    parser.add_argument(
        "--start_from",
        type=Path,
        metavar="DIR",
        help="train on from this folder, with its tokenizer",
    )
    parser.add_argument("--score", type=Path, metavar="DIR", help="score the checkpoint folder DIR")
    parser.add_argument(
        "--quantization",
        metavar="SCHEME",
        help="score with this project, weights quantized by SCHEME, or float with `none`",
    )
    parser.add_argument("--quantization_group_size", type=int, metavar="N")
    parser.add_argument("--threads", type=int, default=2)
    for setting in dataclasses.fields(TrainingSettings):
        kind = type(setting.default)
        parser.add_argument(f"--{setting.name}", type=kind, default=setting.default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.output:
        names = [setting.name for setting in dataclasses.fields(TrainingSettings)]
        settings = TrainingSettings(**{name: getattr(arguments, name) for name in names})
        train_folder(arguments.output, settings, arguments.start_from)
    folder = arguments.score or arguments.output
    if folder and arguments.quantization:
        print_quantized_score(folder, arguments.quantization, arguments.quantization_group_size)
    elif folder:
        print_score(folder)
    else:
        parser.error("give --output DIR to train or --score DIR to score")


def train_folder(folder: Path, settings: TrainingSettings, start_from: Path | None) -> None:
    """Train tokenizer and model; the folder is complete (and rewritten) at every scoring step."""
    started_s = time.monotonic()
    start = None
    if start_from:
        tokenizer = AutoTokenizer.from_pretrained(start_from)
        start = Glm4ForCausalLM.from_pretrained(start_from, torch_dtype=torch.float32)
    else:
        tokenizer = to_hugging_face(train_tokenizer(), CONTEXT_LENGTH)
    folder.mkdir(parents=True, exist_ok=True)
    write_heldout(folder, settings.seed)
    heldout = read_heldout(folder)

    def on_score(model: Glm4ForCausalLM, step: int) -> None:
        write_asset(model, tokenizer, folder)
        score = score_model(model, tokenizer, heldout)
        print(f"-- step {step}, {time.monotonic() - started_s:.0f} s\n{score.table()}", flush=True)

    train(tokenizer, settings, start, on_score)


def print_score(folder: Path) -> None:
    """Held-out and known questions, in both dtypes; every miss is shown."""
    for dtype in (torch.bfloat16, torch.float32):
        for title, examples in (
            ("held out", read_heldout(folder)),
            ("known wording", known_examples()),
        ):
            print_result(f"{title}, {dtype}", score_folder(folder, dtype, examples))


def print_quantized_score(folder: Path, scheme: str, group_size: int | None) -> None:
    """Held-out questions, answered by this project's operators."""
    quantization = None if scheme == "none" else scheme
    score = score_quantized(folder, quantization, group_size, read_heldout(folder))
    print_result(f"held out, quantization {scheme}, group size {group_size or 'default'}", score)


def print_result(title: str, score: Score) -> None:
    """The table and every miss."""
    print(f"== {title}\n{score.table()}")
    for miss in score.misses:
        print(f"  {miss.category}: {miss.prompt!r} -> {miss.text!r}, expected {miss.expected!r}")


if __name__ == "__main__":
    main()
