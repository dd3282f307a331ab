"""MindSpore Transformers' run_mindformer.py, for the GLM models of this project.

    python run_mindformer.py --config configs/glm4/predict_glm4.yaml --run_mode predict \
        --use_parallel False --pretrained_model_dir DIR --predict_data '请介绍一下北京'
"""

import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

_ROOT = Path(__file__).resolve().parent


# The quotes let older Pythons get as far as the sentence about them.
def _exit_at_once(signal_number: int, frame: "FrameType | None") -> NoReturn:
    """Answer Ctrl-C while the imports below run; `main` sets handlers of its own."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def _check_interpreter() -> None:
    """End with one sentence where this Python cannot run the project."""
    version = ".".join(map(str, sys.version_info[:2]))
    missing = next((name for name in ("mindspore", "mindformers") if find_spec(name) is None), "")
    if version not in ("3.10", "3.11"):
        problem = f"Python 3.10 or 3.11 is needed, and {sys.executable} is {version}"
    elif missing:
        problem = f"The interpreter {sys.executable} has no {missing}"
    else:
        return
    advice = f"enter the environment first (source {_ROOT}/.venv/bin/activate)"
    if not (_ROOT / ".venv").exists():
        advice = f"make an environment and enter it (bash {_ROOT}/scripts/quickstart.sh says how)"
    sys.exit(f"error: {problem}: {advice}.")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _exit_at_once)
    signal.signal(signal.SIGTERM, _exit_at_once)
    _check_interpreter()

    from mindformers_glm.serving.cli import main

    sys.exit(main(["predict", *sys.argv[1:]], prog="run_mindformer.py", script_folder=_ROOT))
