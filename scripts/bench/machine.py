"""What every benchmark says of where it ran."""

import platform
import subprocess
from pathlib import Path

import numpy as np

from mindformers_glm.kernels.cpu import library
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
