"""The ChatGLM2 guide's compression of sparse weights: told not to be public, and passed through.

    python scripts/generate_compress_weight.py --weight_path W8A8S --save_path OUT

W8A8S is the folder of scripts/export_quant_weight.py --sparse, or its quant_weight.npy, or a folder
of safetensors; OUT gets the same files.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn


def _exit_at_once(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Answer Ctrl-C while the imports below run; `main` sets a handler that unwinds."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def main() -> int:
    """Return the exit code: 1 after an error of the user, 130 if interrupted."""
    from mindformers_glm.serving.cli import report_problems

    for number in (signal.SIGINT, signal.SIGTERM):  # unwinds, so nothing is left
        signal.signal(number, signal.default_int_handler)
    return report_problems(_copy, line_code=1)


def _copy() -> int:
    from mindformers_glm.config.sentence_parser import SentenceParser
    from mindformers_glm.quantizer.sparse_copy import copy_sparse
    from mindformers_glm.system.log import note

    parser = SentenceParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--weight_path", type=Path, required=True, help="folder of W8A8S")
    parser.add_argument("--save_path", type=Path, required=True, help="a new folder")
    arguments = parser.read(sys.argv[1:])
    output = Path(os.path.abspath(arguments.save_path.expanduser()))
    copy_sparse(arguments.weight_path.expanduser(), output)
    note(
        f"{output} is W8A8S as it was: what the cards' compressor makes of it (W8A8SC) is not "
        "public, and W8A8S runs wherever that would"
    )
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _exit_at_once)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main())
