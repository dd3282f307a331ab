"""Ten thousand damaged files of scripts/fuzz, in a process of their own."""

import re
import subprocess
import sys

from tests.conftest import REPO


def test_ten_thousand_damaged_files_end_in_one_sentence_each() -> None:
    command = [sys.executable, REPO / "scripts" / "fuzz" / "fuzz.py", "--share", "0.01"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"(\d+) refused, (\d+) read, 0 failed", done.stdout)
    assert sum(int(refused) + int(read) for refused, read in counts) == 10_000
