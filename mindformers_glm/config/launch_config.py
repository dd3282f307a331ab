"""What one call of the launcher does: its arguments and the environment settled into one object.

Options have msrun's names (mindspore 2.7.1), defaults those of MindSpore Transformers' 1.7.0
scripts/msrun_launcher.sh, which both scripts pass on by position.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mindformers_glm.config.sentence_parser import CommandLineError, SentenceParser
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.system.processors import count_physical_cores

AUTO_PORTS = range(50_000, 65_536)
DEFAULT_PORT = 8118
_ROOT = Path(__file__).resolve().parents[2]
_DEFAULTS = {
    "worker_num": "8",
    "local_worker_num": "",  # as many as worker_num
    "master_addr": "127.0.0.1",
    "master_port": "",  # the environment's MASTER_PORT, else DEFAULT_PORT
    "node_rank": "0",
    "log_dir": "output/msrun_log",
    "join": "True",
    "cluster_time_out": "7200",
}


@dataclass(frozen=True)
class LaunchConfig:
    """One host's share of a job.

    command: program and arguments, the same for every process.
    num_workers, num_local_workers: processes of the whole job, and on this host.
    master_port: None takes a free one.
    is_port_chosen: somebody named it; the default gives way to a free one where it is taken.
    log_dir: relative to the working directory, as the user typed it.
    is_joined: wait for the processes and return their exit code.
    cluster_timeout_s: how long processes wait for each other at the start; -1: without end.
    environment: what every process gets, beside what tells it its rank.
    """

    command: tuple[str, ...]
    num_workers: int
    num_local_workers: int
    master_addr: str
    master_port: int | None
    is_port_chosen: bool
    node_rank: int
    log_dir: Path
    is_joined: bool
    cluster_timeout_s: int
    environment: Mapping[str, str]

    @property
    def is_single_host(self) -> bool:
        """Whether all processes run here, so that no other host is involved."""
        return self.num_local_workers == self.num_workers

    @property
    def ranks(self) -> range:
        """The ranks that run on this host."""
        first = 0 if self.is_single_host else self.node_rank * self.num_local_workers
        return range(first, first + self.num_local_workers)


def load_launch_config(
    argv: Sequence[str], environ: Mapping[str, str] | None = None
) -> LaunchConfig:
    """Settle the launcher's arguments.

    Args:
        argv: options by msrun's names, then the command as one text.
        environ: os.environ unless given.

    Raises:
        CommandLineError: an argument is missing, unknown or no such value.
        ConfigError: the command's program is not there, or the numbers do not fit together.
    """
    environ = os.environ if environ is None else environ
    given = _parse(argv)
    num_workers = _whole_number(given, "worker_num", least=1)
    num_local_workers = num_workers
    if given["local_worker_num"]:
        num_local_workers = _whole_number(given, "local_worker_num", least=1)
    _check_hosts(num_workers, num_local_workers, _whole_number(given, "node_rank", least=0))
    if not given["log_dir"]:
        raise CommandLineError("LOG_DIR is empty: give the name of a folder.")
    port = given["master_port"] or environ.get("MASTER_PORT")
    suffix = f"_{environ['MF_LOG_SUFFIX']}" if environ.get("MF_LOG_SUFFIX") else ""
    config = LaunchConfig(
        command=_read_command(given["command"]),
        num_workers=num_workers,
        num_local_workers=num_local_workers,
        master_addr=given["master_addr"],
        master_port=_port(port or str(DEFAULT_PORT)),
        is_port_chosen=bool(port),
        node_rank=_whole_number(given, "node_rank", least=0),
        log_dir=Path(os.path.expanduser(given["log_dir"] + suffix)),
        is_joined=_boolean(given, "join"),
        cluster_timeout_s=_seconds(given, "cluster_time_out"),
        environment=_environment(environ, num_local_workers, suffix),
    )
    if config.master_port is None and not config.is_single_host:
        raise ConfigError(
            "MASTER_PORT auto works on one host only, since the others could not know the port: "
            f"give the same number from {AUTO_PORTS[0]} to {AUTO_PORTS[-1]} on every host."
        )
    return config


class _Parser(SentenceParser):
    def error(self, message: str) -> NoReturn:
        raise CommandLineError(f"The launcher's command line is wrong: {message}.")


def _parse(argv: Sequence[str]) -> dict[str, str]:
    parser = _Parser(
        prog="python -m mindformers_glm.launcher",
        allow_abbrev=False,
        description="Start a command in several processes and watch them.",
    )
    for name, default in _DEFAULTS.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("command", help="program and arguments as one text")
    return vars(parser.parse_args(argv))


def _whole_number(given: Mapping[str, str], name: str, least: int) -> int:
    text = given[name]
    if not text.isdecimal() or int(text) < least:
        raise CommandLineError(
            f"{_upper(name)} must be a whole number from {least} on, got {text!r}."
        )
    return int(text)


def _seconds(given: Mapping[str, str], name: str) -> int:
    text = given[name]
    if text == "-1":
        return -1
    if not text.isdecimal() or int(text) < 1:
        raise CommandLineError(
            f"{_upper(name)} must be a whole number of seconds, or -1 to wait without end, "
            f"got {text!r}."
        )
    return int(text)


def _boolean(given: Mapping[str, str], name: str) -> bool:
    values = {"true": True, "false": False}
    if given[name].lower() not in values:
        raise CommandLineError(f"{_upper(name)} must be True or False, got {given[name]!r}.")
    return values[given[name].lower()]


def _port(text: str) -> int | None:
    if text.lower() == "auto":
        return None
    if not text.isdecimal() or not 1024 <= int(text) <= 65_535:
        raise CommandLineError(
            f"MASTER_PORT must be a port from 1024 to 65535, or auto, got {text!r}."
        )
    return int(text)


def _upper(name: str) -> str:
    # Positional arguments have these names in the script's usage.
    return "LOCAL_WORKER" if name == "local_worker_num" else name.upper()


def _check_hosts(num_workers: int, num_local_workers: int, node_rank: int) -> None:
    """Hold the numbers together: every host runs the same number of processes."""
    if num_workers % num_local_workers:
        raise ConfigError(
            f"WORKER_NUM {num_workers} cannot be spread over hosts that run LOCAL_WORKER "
            f"{num_local_workers} processes each: it must be a multiple of it."
        )
    num_hosts = num_workers // num_local_workers
    if num_hosts > 1 and node_rank >= num_hosts:
        raise ConfigError(
            f"NODE_RANK must be a whole number from 0 to {num_hosts - 1}, since WORKER_NUM "
            f"{num_workers} with LOCAL_WORKER {num_local_workers} are {num_hosts} hosts, "
            f"got {node_rank}."
        )


def _read_command(text: str) -> tuple[str, ...]:
    """Split the command as a shell does and find its program.

    Quotes and backslashes count; variables, patterns and command substitution do not, so that a
    prompt may hold any character.
    """
    try:
        words = shlex.split(text.replace("\\\n", " "))
    except ValueError as problem:
        raise CommandLineError(f"The command {text!r} cannot be read: {problem}.") from None
    if not words:
        raise CommandLineError('The command is empty: give one, such as "run_mindformer.py ...".')
    program, *arguments = words
    return (*_find_program(program), *arguments)


def _find_program(name: str) -> tuple[str, ...]:
    if name in ("python", "python3"):
        return (sys.executable,)
    if name.endswith(".py"):
        # A script of this project is found from any folder.
        for path in (Path(os.path.expanduser(name)), _ROOT / name):
            if path.is_file():
                return (sys.executable, str(path))
    else:
        # Also what is installed beside the interpreter, whose environment may not be activated.
        for folders in (None, str(Path(sys.executable).parent)):
            if program := shutil.which(name, path=folders):
                return (program,)
    raise ConfigError(
        f"The program {name} of the command does not exist (working directory {Path.cwd()})."
    )


def _environment(environ: Mapping[str, str], num_local_workers: int, suffix: str) -> dict[str, str]:
    """The variables of all processes of the job; what the user has set stays as it is."""
    output = Path.cwd() / "output"
    defaults = {
        "LOG_MF_PATH": str(output / f"log{suffix}"),
        # One thread on each core, whatever the number of processes; no process is tied to cores.
        "OMP_NUM_THREADS": str(max(1, count_physical_cores() // num_local_workers)),
        "PYTHONUNBUFFERED": "1",  # output is shown as it comes, and a killed process loses none
    }
    # MindSpore's heartbeat: after that many seconds without one from a worker on another host the
    # job ends. Its own default is 30.
    defaults["MS_NODE_TIMEOUT"] = "20"
    if environ.get("PLOG_REDIRECT_TO_OUTPUT", "False") not in ("", "False"):
        defaults["ASCEND_PROCESS_LOG_PATH"] = str(output / f"plog{suffix}")
    return defaults | {
        name: value for name, value in environ.items() if value or name not in defaults
    }
