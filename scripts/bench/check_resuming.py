"""Does a quantization that is killed and goes on make the same bytes, and what does it take?

    python scripts/bench/check_resuming.py MODEL [--kills N] [--place DIR] [--num_threads N] \
        [--seed N] [-- OPTIONS]

Quantizes MODEL with OPTIONS of `mindformers-glm quantize`, takes the sha256 of every file, removes
the result and quantizes again: that run is ended by SIGKILL N times, each time within a layer that
is drawn by --seed, and started again by the same command. Prints of each run what ended it, its
time, processor time and peak memory, which counts pages of the checkpoint that are mapped. One
output lies on the disk at a time, beside the work of its layers. Exit code 1 if a byte differs.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from machine import REPO, describe_machine, positive, run_main

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.model_names import locate_folder
from mindformers_glm.core.errors import ConfigError

_POLL_S = 0.05


@dataclass(frozen=True)
class Moment:
    """When a run is killed: some seconds after so many layers lie in the work folder."""

    num_layers: int
    wait_s: float


@dataclass(frozen=True)
class Ended:
    """What a run took; `is_killed`: by its moment."""

    is_killed: bool
    wall_s: float
    processor_s: float
    peak_bytes: int


def run_once(command: list[str], work: Path, moment: Moment | None) -> Ended:
    """Run a command to its end, or until its moment.

    Raises:
        ConfigError: it failed.
    """
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            is_killed = moment is not None and _kill_at(process.pid, work, moment)
        except BaseException:
            process.kill()
            raise
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in ((0, -signal.SIGKILL) if is_killed else (0,)):
        raise ConfigError(f"The run ended with {process.returncode}: it says above why.")
    return Ended(
        is_killed and process.returncode != 0,
        time.monotonic() - began,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss * 1024,
    )


def _kill_at(process_id: int, work: Path, moment: Moment) -> bool:
    """Whether the process was still there."""
    while len(list(work.glob("layer_*.safetensors"))) < moment.num_layers:
        if os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(_POLL_S)
    time.sleep(moment.wait_s)
    os.kill(process_id, signal.SIGKILL)  # not waited for yet, so the id is its own
    return True


def draw_moments(count: int, num_layers: int, layer_s: float, seed: int) -> list[Moment]:
    """Within layers, the earliest first; several may be within one."""
    drawn = random.Random(seed)
    layers = sorted(drawn.randrange(num_layers) for _ in range(count))
    return [Moment(layer, drawn.uniform(0, layer_s)) for layer in layers]


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of each file by its name."""
    digests = {}
    for file in sorted(folder.iterdir()):
        with file.open("rb") as opened:
            digests[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return digests


def compare(model: Path, place: Path, kills: int, seed: int, options: list[str]) -> bool:
    """Run both ways, say what they took, and whether they made the same bytes."""
    output, work = place / "quantized", place / ".quantized.quantizing"
    command = [sys.executable, "-m", "mindformers_glm", "quantize", "--model_path", str(model)]
    command += ["--save_directory", str(output), *options]
    whole = run_once(command, work, None)
    expected = hash_files(output)
    size = sum(file.stat().st_size for file in output.iterdir())
    _print(f"at once, {size / 1e9:.1f} GB", whole)
    for name, digest in expected.items():
        print(f"  {digest}  {name}", flush=True)
    shutil.rmtree(output)
    num_layers = GlmConfig.from_hf(model).num_hidden_layers
    for moment in draw_moments(kills, num_layers, whole.wall_s / num_layers, seed):
        killed = run_once(command, work, moment)
        _print(f"killed after {moment.num_layers} layers" if killed.is_killed else "ended", killed)
        if output.exists():
            break
    else:
        _print("went on to the end", run_once(command, work, None))
    found = hash_files(output)
    shutil.rmtree(output)
    different = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    print(f"different: {', '.join(different)}" if different else "the same bytes in every file")
    return not different


def _print(what: str, ended: Ended) -> None:
    print(
        f"{what}: {ended.wall_s:.0f} s, {ended.processor_s:.0f} s of processor time, "
        f"peak {ended.peak_bytes / 2**30:.2f} GiB",
        flush=True,
    )


def main() -> int:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="float folder")
    parser.add_argument("--kills", type=positive, default=1)
    parser.add_argument("--place", type=Path, help="where results lie for a while")
    parser.add_argument("--num_threads", type=positive, help="OMP_NUM_THREADS of the runs")
    parser.add_argument("--seed", type=int, default=0)
    own, options = sys.argv[1:], []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parser.parse_args(own)
    if arguments.num_threads is not None:
        os.environ |= {"OMP_NUM_THREADS": str(arguments.num_threads)}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    model = Path(locate_folder(arguments.model))
    print(f"{describe_machine()}\n{model}, {' '.join(options) or 'the usual options'}", flush=True)
    with tempfile.TemporaryDirectory(prefix="check_resuming_", dir=arguments.place) as place:
        same = compare(model, Path(place), arguments.kills, arguments.seed, options)
    return 0 if same else 1


if __name__ == "__main__":
    run_main(main)
