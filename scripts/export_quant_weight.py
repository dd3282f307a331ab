"""The ChatGLM2 guide's eight .npy files of a float model: W8A8, or W8A8S with --sparse.

    python scripts/export_quant_weight.py --float_weight DIR --data_path FILE --quant_weight OUT \
        [--sparse]

OUT runs beside DIR: QUANT_WEIGHT_PATH=OUT. FILE holds calibration texts (docs/quantization.md);
without --data_path, those that ship with the project. Sparse weights have six files: their scales
and offsets of weights are in deq_scale.npy.
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


def main() -> int:
    """Return the exit code: that of `mindformers-glm quantize`, 1 after any wrong use."""
    from mindformers_glm.serving.cli import report_problems

    return report_problems(_export, line_code=1)


def _export() -> int:
    from mindformers_glm.config.sentence_parser import SentenceParser
    from mindformers_glm.serving.cli import main as run

    parser = SentenceParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--float_weight", metavar="DIR", required=True, help="the float model")
    parser.add_argument("--data_path", metavar="FILE", help="calibration texts")
    parser.add_argument("--quant_weight", metavar="OUT", required=True, help="a new folder")
    parser.add_argument("--sparse", action="store_true", help="W8A8S")
    arguments = parser.read(sys.argv[1:])
    words = ["--model_path", arguments.float_weight, "--save_directory", arguments.quant_weight]
    if arguments.data_path is not None:
        words += ["--calib_file", arguments.data_path]
    if arguments.sparse:
        words += ["--w_bit", "4", "--is_lowbit", "True"]
    return run(["quantize", *words, "--format", "numpy"], prog="export_quant_weight.py")


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit_at_once)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main())
