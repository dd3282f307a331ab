"""The kernels for 64-bit Arm processors, under an emulator."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
COMPILERS = ["aarch64-linux-gnu-g++", "aarch64-linux-gnu-g++-12"]
EMULATORS = ["qemu-aarch64-static", "qemu-aarch64"]


@pytest.mark.slow
def test_kernels_equal_the_reference_on_aarch64() -> None:
    for programs in (COMPILERS, EMULATORS):
        if not any(shutil.which(name) for name in programs):
            pytest.skip(f"needs {' or '.join(programs)}")
    result = subprocess.run(
        ["bash", "scripts/test_aarch64.sh"],
        env={**os.environ, "PYTHON": sys.executable},
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for isa in ("neon", "neon_dotprod", "neon_bf16"):
        assert f"aarch64 {isa}: equal to the reference" in result.stdout
