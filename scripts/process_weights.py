"""Cut a checkpoint once for N ranks, so that each start reads one file per rank.

    python scripts/process_weights.py --model_path DIR --tp_size N [--output OUT]

OUT holds a safetensors file for each rank (model-rank-00-of-02.safetensors), a manifest, and copies
of the configuration and the tokenizer; it is given as --pretrained_model_dir to N processes, with
or without --auto_trans_ckpt. Ranks can also cut DIR while they load it (--auto_trans_ckpt True).
DIR may be quantized: OUT then holds the same integers, scales and zero points in a form of its own.
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


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _exit_at_once)

from mindformers_glm.config.environment import quantized_folder  # noqa: E402
from mindformers_glm.config.model_names import locate_folder  # noqa: E402
from mindformers_glm.config.sentence_parser import SentenceParser  # noqa: E402
from mindformers_glm.core.errors import ConfigError  # noqa: E402
from mindformers_glm.quantization.share_format import ShareEncoder  # noqa: E402
from mindformers_glm.quantization.stored_format import find_format  # noqa: E402
from mindformers_glm.serving.cli import report_problems  # noqa: E402
from mindformers_glm.system.log import note  # noqa: E402
from mindformers_glm.system.sizes import format_bytes  # noqa: E402
from mindformers_glm.weights.share_writer import write_shares  # noqa: E402


def main() -> int:
    """Return the exit code: 1 after an error of the user, 2 of the line, 130 if interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):  # unwinds, so nothing is left
        signal.signal(number, signal.default_int_handler)
    return report_problems(_cut)


def _cut() -> int:
    parser = SentenceParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model_path", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--tp_size", type=int, required=True, help="number of ranks")
    parser.add_argument("--output", type=Path, help="new folder (default: DIR-tpN beside DIR)")
    arguments = parser.read(sys.argv[1:])
    source = _as_absolute(Path(locate_folder(arguments.model_path)))
    output = _as_absolute(arguments.output or _default_output(source, arguments.tp_size))
    sizes = write_shares(
        source, output, arguments.tp_size, find_format, ShareEncoder(), quantized_folder()
    )
    note(
        f"{output} ({format_bytes(sum(sizes))}) is ready for {len(sizes)} ranks, which read "
        f"{_describe_sizes(sizes)}"
    )
    return 0


def _describe_sizes(sizes: list[int]) -> str:
    least, most = format_bytes(min(sizes)), format_bytes(max(sizes))
    return f"{least} each" if least == most else f"{least} to {most}"


def _default_output(source: Path, size: int) -> Path:
    if not source.name:
        raise ConfigError(f"There is no place beside {source}: give --output.")
    return source.with_name(f"{source.name}-tp{size}")


def _as_absolute(path: Path) -> Path:
    """Without "..", which has no name of its own; `absolute` would keep it."""
    return Path(os.path.abspath(os.path.expanduser(path)))


if __name__ == "__main__":
    sys.exit(main())
