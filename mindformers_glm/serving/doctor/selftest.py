"""`mindformers-glm doctor --ascend-selftest`: does the card compute what the CPU computes?"""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from mindformers_glm.backends import run_ascend_selftest
from mindformers_glm.config.model_names import locate_folder
from mindformers_glm.config.run_config import shipped_checkpoint, silence_imports


def print_selftest(folder: str, dtype: str | None, as_json: bool) -> int:
    """Run the self-test and print its report.

    Args:
        folder: of the checkpoint; empty: the one that comes with this package.
        dtype: of weights and activations; None: the checkpoint's.
    Returns:
        The exit code: 1 where the two differ, else 0.
    Raises:
        UnsupportedError: there is no card, or one of the two cannot run the checkpoint.
        MemoryBudgetError: it does not fit on the card, or once more into the host's memory.
        CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
    """
    path = Path(locate_folder(folder)).expanduser() if folder else shipped_checkpoint()
    silence_imports()
    with redirect_stdout(sys.stderr):  # MindSpore Transformers writes its log to stdout
        report = run_ascend_selftest(path, dtype)
    if as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        print("\n".join(report.lines()))
    return int(not report.is_equal)
