"""MindSpore Transformers' run_mindformer.py, for the GLM models of this project.

    python run_mindformer.py --config configs/glm4/predict_glm4.yaml --run_mode predict \
        --use_parallel False --pretrained_model_dir DIR --predict_data '请介绍一下北京'
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def _exit_at_once(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Answer Ctrl-C while the imports below run; `main` sets handlers of its own."""
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _exit_at_once)
    signal.signal(signal.SIGTERM, _exit_at_once)

    from pathlib import Path

    from mindformers_glm.serving.cli import main

    folder = Path(__file__).resolve().parent
    sys.exit(main(["predict", *sys.argv[1:]], prog="run_mindformer.py", script_folder=folder))
