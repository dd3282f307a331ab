"""What every benchmark says of where it ran, and how it ends."""

import argparse
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np

from mindformers_glm.backends.cpu import library
from mindformers_glm.core.errors import GlmError
from mindformers_glm.version import __version__

REPO = Path(__file__).resolve().parents[2]


def describe_machine() -> str:
    """Machine, threads, versions and commit, as every benchmark says them."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPO, capture_output=True, text=True
    ).stdout.strip()
    return (
        f"{cpu}, {library.num_threads()} threads, "
        f"instruction sets {', '.join(library.available_isas())}\n"
        f"mindformers_glm {__version__} ({commit}), Python {platform.python_version()}, "
        f"numpy {np.__version__}"
    )


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """End the process with what `main` returns, or with one sentence of what was wrong.

    SIGTERM ends it as Ctrl-C does, with what it has started: that has groups of its own.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:  # which has said itself what was wrong
        sys.exit(error.returncode)
    except (GlmError, OSError) as error:
        sys.exit(f"error: {error}")


def positive(text: str) -> int:
    """An argument that counts something, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return int(text)
