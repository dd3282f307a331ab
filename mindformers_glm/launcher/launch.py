"""One call of the launcher, from its arguments to its exit code."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from ipaddress import ip_address

from mindformers_glm.config.launch_config import LaunchConfig, load_launch_config
from mindformers_glm.config.sentence_parser import CommandLineError
from mindformers_glm.core.errors import ConfigError, GlmError
from mindformers_glm.launcher.background import run_in_background
from mindformers_glm.launcher.job import Job, run_job
from mindformers_glm.launcher.log_folder import LogFolder
from mindformers_glm.launcher.ports import (
    PortTaken,
    ReservedPort,
    is_local_address,
    reserve_free_port,
    resolve_address,
)
from mindformers_glm.system.log import note


def launch(argv: Sequence[str]) -> int:
    """Run one job; errors become one sentence on stderr.

    Returns:
        The exit code of `run_job`; 1 after an error of the user; 2 if the command line cannot be
        understood.
    """
    try:
        return _run(load_launch_config(argv))
    except GlmError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2 if isinstance(problem, CommandLineError) else 1


def _run(config: LaunchConfig) -> int:
    address = _find_address(config)
    has_scheduler = config.is_single_host or is_local_address(address)
    with _reserve(config, address) if has_scheduler else nullcontext() as reserved:
        port = config.master_port if reserved is None else reserved.port
        assert port is not None
        node_rank = None if config.is_single_host else config.node_rank
        folder = LogFolder(config.log_dir, port, node_rank)
        job = Job(config, address, port, folder.path, has_scheduler)
        ranks = f"{name_ranks(config.ranks)} of {config.num_workers}"
        note(f"{ranks}, {address}:{port}, logs in {folder.path}")
        if config.is_joined:
            return run_job(job)
        return run_in_background(lambda: run_job(job), folder.path / "launcher.log")


def name_ranks(ranks: range) -> str:
    """Return "rank 1", "ranks 0 and 1" or "ranks 0 to 7"."""
    first, last = ranks[0], ranks[-1]
    if first == last:
        return f"rank {first}"
    return f"ranks {first} {'and' if last == first + 1 else 'to'} {last}"


def _find_address(config: LaunchConfig) -> str:
    if config.is_single_host:
        # It has no use for the host's other addresses, nor has upstream's script.
        return "127.0.0.1"
    address = resolve_address(config.master_addr)
    found = ip_address(address)
    if found.is_loopback or found.is_unspecified:
        resolved = "" if address == config.master_addr else f" ({address})"
        raise ConfigError(
            f"MASTER_ADDR {config.master_addr!r}{resolved} is this host alone, and the job has "
            f"{config.num_workers // config.num_local_workers} hosts: give the address by which "
            "the other hosts reach host 0."
        )
    return address


def _reserve(config: LaunchConfig, address: str) -> ReservedPort:
    if config.master_port is None:
        return reserve_free_port(address)
    try:
        return ReservedPort(address, config.master_port)
    except PortTaken:
        if config.is_port_chosen or not config.is_single_host:
            raise
    reserved = reserve_free_port(address)
    note(f"port {config.master_port} of {address} is taken: this job takes {reserved.port}")
    return reserved
