"""Do all readers end in one sentence and in bounded time and memory, whatever a file holds?

    python scripts/fuzz/fuzz.py [KIND ...] [--seed S] [--count N | --share F]

Case number i of a kind is the file that `random.Random("KIND i")` makes; it is read as the program
reads it. A case fails that raises anything but the project's own errors, ends the process by a
signal, takes 5 s of a processor or 1 GB of memory, or whose message is not one line. Failures are
printed with their number: `--seed i --count 1` repeats one. Without --count the kinds have together
a million cases, each from --seed on, and `--share 0.01` a hundredth of that.
"""

import argparse
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import text_files
import weight_files

from mindformers_glm.core.errors import GlmError

READERS: dict[str, tuple[int, Callable[[random.Random, Path], None]]] = (
    weight_files.READERS | text_files.READERS
)
_BATCH = 500  # cases that one process reads
_PROCESSOR_S = 5.0
_WAIT_S = 60.0  # without a sign of life: it waits for something
_MEMORY_BYTES = 2**30
_MAX_MESSAGE = 2_100


def run_case(kind: str, number: int, folder: Path) -> str:
    """Return "read", "refused", or what is wrong."""
    rng = random.Random(f"{kind} {number}")
    if kind != "cache":  # whose sound file is made once
        shutil.rmtree(folder)
        folder.mkdir()
    try:
        READERS[kind][1](rng, folder)
    except GlmError as problem:
        message = str(problem)
        cause: BaseException | None = problem
        while cause is not None:
            if isinstance(cause, MemoryError):
                return "takes too much memory"
            cause = cause.__context__
        if not message or "\n" in message or len(message) > _MAX_MESSAGE:
            return f"a message of {len(message)} characters: {message[:200]!r}"
        return "refused"
    except BaseException as problem:  # a panic of a library in Rust is no Exception
        place = traceback.extract_tb(problem.__traceback__)[-1]
        what = f"{type(problem).__name__}: {str(problem)[:200]!r}"
        return f"{what} in {place.filename}:{place.lineno}"
    return "read"


def _read_batch(kind: str, begin: int, end: int, pipe: int) -> None:
    """Run cases in a process of its own; write each one's number before and its outcome after."""
    warnings.simplefilter("ignore")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # In memory where there is such a place.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="glm-fuzz-", dir=place) as name:
        folder = Path(name) / "model"
        folder.mkdir()
        for number in range(begin, end):
            os.write(pipe, f"{number}\n".encode())
            signal.setitimer(signal.ITIMER_PROF, _PROCESSOR_S)  # ends the process
            outcome = run_case(kind, number, folder)
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(pipe, f"{outcome}\n".encode(errors="backslashreplace"))


def run_batch(kind: str, begin: int, end: int, outcomes: Counter[str]) -> dict[int, str]:
    """Run cases [begin, end) and count how they end; return what is wrong, by number."""
    failures: dict[int, str] = {}
    while begin < end:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                _read_batch(kind, begin, end, writer)
            finally:
                os._exit(0)
        os.close(writer)
        lines, is_waiting = _listen(reader)
        os.close(reader)
        if is_waiting:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for number, outcome in zip(map(int, lines[0::2]), lines[1::2], strict=False):
            if outcome not in ("read", "refused"):
                failures[number] = outcome
            outcomes[outcome if outcome in ("read", "refused") else "failed"] += 1
            begin = number + 1
        if len(lines) % 2:  # the last case has no outcome
            ends = {-signal.SIGPROF: f"takes {_PROCESSOR_S:g} s"}
            what = ends.get(status, f"ends the process: {status}")
            failures[begin] = f"waits for {_WAIT_S:g} s" if is_waiting else what
            outcomes["failed"] += 1
            begin += 1
        elif begin < end:
            failures[begin] = f"ended early: {status}"
            begin += 1
    return failures


def _listen(pipe: int) -> tuple[list[str], bool]:
    """Return the lines written to a pipe, and whether the writer has stopped without closing it."""
    content = b""
    while select.select([pipe], [], [], _WAIT_S)[0]:
        piece = os.read(pipe, 2**16)
        if not piece:
            return content.decode().splitlines(), False
        content += piece
    return content.decode().splitlines(), True


def main() -> int:
    """Run what the command line asks for; the exit code is 1 if a case fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[[], *READERS], metavar="KIND")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int)
    parser.add_argument("--share", type=float, default=1.0)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else the library warns of every fork
    text_files.prepare_tokenizers()
    exit_code = 0
    for kind in arguments.kinds or READERS:
        count = arguments.count or round(READERS[kind][0] * arguments.share)
        first, begin = arguments.seed, time.monotonic()
        outcomes: Counter[str] = Counter()
        for number in range(first, first + count, _BATCH):
            end = min(number + _BATCH, first + count)
            for case, what in run_batch(kind, number, end, outcomes).items():
                print(f"{kind} {case}: {what}", flush=True)
                exit_code = 1
            if number // 10_000 != end // 10_000:
                print(f"{kind}: {end} reached, {dict(outcomes)}", file=sys.stderr, flush=True)
        print(
            f"{kind}: cases {first} to {first + count - 1}: {outcomes['refused']} refused, "
            f"{outcomes['read']} read, {outcomes['failed']} failed, "
            f"{time.monotonic() - begin:.0f} s",
            flush=True,
        )
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
