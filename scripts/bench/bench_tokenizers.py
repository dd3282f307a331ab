"""How fast are the family's tokenizers: loading, text to ids, ids to text?

Texts of about a megabyte in UTF-8, each encoded as one prompt: ordinary ones made of the project's
own words and code, and a few that tokenizers are known to be slow at. Ids are decoded whole and one
by one, as an answer is streamed. Each folder is loaded in a process of its own, twice: the first
load includes the imports of its libraries. Times are those of the CPU, of which all this uses one:
they stay the same on a machine that others use too.

    python scripts/bench/bench_tokenizers.py FOLDER [FOLDER ...] [--repeats 5]
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

from machine import REPO, describe_machine, positive, run_main

from mindformers_glm.tokenizer import GlmTokenizer, load_tokenizer

TEXT_BYTES = 1_000_000


def fill(text: str) -> str:
    """Repeat a text up to a megabyte."""
    return text * -(-TEXT_BYTES // len(text.encode()))


def read_texts() -> dict[str, str]:
    """Return the texts by name."""
    code = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(REPO.glob("mindformers_glm/**/*.py"))
    )
    return {
        "English": fill((REPO / "docs" / "structure.md").read_text(encoding="utf-8")),
        "Chinese": fill((REPO / "README_CN.md").read_text(encoding="utf-8")),
        "Python": fill(code),
        "one letter": "a" * TEXT_BYTES,
        "one character": "好" * (TEXT_BYTES // 3),
        "blanks": fill(" " * 400_000 + "x"),
        "special tokens": fill("<|user|>[gMASK]sop"),
    }


def measure(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds, by the median, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return median(times)


def report(tokenizer: GlmTokenizer, name: str, text: str, repeats: int) -> None:
    """Print the line of one text."""
    num_megabytes = len(text.encode()) / 1e6
    ids = tokenizer.encode_segments([text])

    def stream() -> None:
        detokenizer = tokenizer.new_detokenizer()
        for token_id in ids:
            detokenizer.feed(token_id)

    ways = (
        lambda: tokenizer.encode(text),
        lambda: tokenizer.encode_segments([text]),
        lambda: tokenizer.decode(ids),
        stream,
    )
    speeds = [num_megabytes / measure(way, repeats) for way in ways]
    print(f"{name:>16} {len(ids):9}", *(f"{speed:11.1f}" for speed in speeds), flush=True)


def run(folder: str, repeats: int) -> None:
    """Measure one folder in this process."""
    seconds = []
    for _ in range(2):
        begin = time.process_time()
        tokenizer = load_tokenizer(folder)
        seconds.append(time.process_time() - begin)
    print(
        f"\n{folder}: {tokenizer.vocabulary.source}, {tokenizer.num_token_ids} ids; "
        f"loaded in {seconds[0]:.2f} s, again in {seconds[1]:.2f} s"
    )
    names = ("tokens", "encode", "text only", "decode", "one by one")
    print(f"{'MB/s':>16} {names[0]:>9}", *(f"{name:>11}" for name in names[1:]))
    for name, text in read_texts().items():
        report(tokenizer, name, text, repeats)


def main() -> int:
    """Print a table for each folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        run(arguments.folders[0], arguments.repeats)
        return 0
    print(describe_machine(), flush=True)
    for folder in arguments.folders:
        command = [sys.executable, __file__, folder, "--repeats", str(arguments.repeats), "--alone"]
        subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    run_main(main)
