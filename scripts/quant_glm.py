"""msModelSlim's example/GLM/quant_glm.py, by its options: `mindformers-glm quantize`.

    python scripts/quant_glm.py --model_path DIR --save_directory OUT --w_bit 8 --a_bit 8

docs/quantization.md says which recipe to take when; --help lists all options. Wrong use is one
sentence and exit code 1.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn


def _exit_at_once(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Answer Ctrl-C while the imports below run; the command sets handlers of its own."""
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit_at_once)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

    from mindformers_glm.serving.cli import main

    sys.exit(main(["quantize", *sys.argv[1:]], prog="quant_glm.py", line_code=1))
