"""What msrun tells the processes it starts, held against the settings.

environment.py reads the environment; here it is a mapping.
"""

from collections.abc import Mapping

from mindformers_glm.core.errors import ConfigError, first_words

# msrun runs the program in its scheduler process too, as far as it connects to the others.
_ROLES = ("MS_WORKER", "MS_SCHED")
# Where this project's launcher reads what rank 0 says of signals (launcher/wishes.py).
PIPE_VARIABLE = "MINDFORMERS_GLM_LAUNCHER_PIPE"
_LAUNCH = 'bash scripts/msrun_launcher.sh "{} ..." {}'


def check_parallel(use_parallel: bool, model_parallel: int, environ: Mapping[str, str]) -> int:
    """Hold use_parallel, model_parallel and the launcher's processes together; return the rank.

    Raises:
        ConfigError: they do not fit.
    """
    ranks = count_launched(environ)
    if ranks is not None and ranks != model_parallel:
        raise ConfigError(
            f"The launcher started {ranks} processes, but parallel_config.model_parallel is "
            f"{model_parallel}: they must be equal."
        )
    if ranks is None and (use_parallel or model_parallel > 1):
        asked = (
            f"parallel_config.model_parallel {model_parallel}"
            if model_parallel > 1
            else "use_parallel True"
        )
        launch = _LAUNCH.format("run_mindformer.py", max(model_parallel, 2))
        raise ConfigError(
            f"{asked} needs processes that a launcher starts: {launch}, or run one process with "
            "--use_parallel False --parallel_config.model_parallel 1."
        )
    if model_parallel > 1 and not use_parallel:
        raise ConfigError(
            f"parallel_config.model_parallel {model_parallel} needs --use_parallel True."
        )
    return find_rank(model_parallel, environ)


def find_rank(model_parallel: object, environ: Mapping[str, str]) -> int:
    """Which rank of `model_parallel` this process is; 0 where the model is not split.

    Raises:
        ConfigError: it is no number of processes, or not the number that msrun started.
    """
    if type(model_parallel) is not int or model_parallel < 1:
        raise ConfigError(
            f"model_parallel must be a whole number of at least 1, got {model_parallel!r}."
        )
    if model_parallel == 1:
        return 0
    ranks = count_launched(environ)
    if ranks is None:
        raise ConfigError(
            f"model_parallel {model_parallel} needs {model_parallel} processes, and this one was "
            f"started without a launcher: {_LAUNCH.format('SCRIPT.py', model_parallel)}, or leave "
            "model_parallel out."
        )
    if ranks != model_parallel:
        raise ConfigError(
            f"The launcher started {ranks} processes, but model_parallel is {model_parallel}: "
            "they must be equal."
        )
    given = environ.get("RANK_ID", "")
    if not given.isdecimal() or int(given) >= ranks:
        raise ConfigError(
            f"The environment variable RANK_ID must be this process's number from 0 to {ranks - 1},"
            f" got {given!r}: start with msrun, on several machines with --node_rank."
        )
    return int(given)


def explain_failed_meeting(problem: RuntimeError, environ: Mapping[str, str]) -> ConfigError:
    """Say why the processes of a job did not find each other.

    Args:
        problem: what MindSpore's `init` has raised (2.7.1: always a RuntimeError).
    """
    address = f"{environ.get('MS_SCHED_HOST')}:{environ.get('MS_SCHED_PORT')}"
    if "Repeated registration" in str(problem):
        return ConfigError(
            f"The job at {address} has another rank {environ.get('RANK_ID')} already: give every "
            "host a NODE_RANK of its own, and every job a MASTER_PORT of its own."
        )
    if "Failed to initialize distributed job cluster" not in str(problem):
        return ConfigError(
            f"MindSpore could not connect the processes of the job at {address}, scheduler.log on "
            f"host 0 may say why: {first_words(problem)}"
        )
    timeout = environ.get("MS_TOPO_TIMEOUT", "-1")
    within = "" if timeout == "-1" else f" within {timeout} seconds"
    return ConfigError(
        f"Not all {environ.get('MS_WORKER_NUM')} processes of the job met at {address}{within}: "
        "start the same command on every host, each with a NODE_RANK of its own; scheduler.log on "
        "host 0 names those that came."
    )


def is_launched(environ: Mapping[str, str]) -> bool:
    """Whether msrun, or a launcher like it, started this process."""
    return environ.get("MS_ROLE") in _ROLES


def count_launched(environ: Mapping[str, str]) -> int | None:
    """How many ranks msrun started this process with, or None when it was started alone."""
    if not is_launched(environ):
        return None
    given = environ.get("MS_WORKER_NUM", "1")
    try:
        ranks = int(given)
    except ValueError:
        ranks = 0
    if ranks < 1:
        raise ConfigError(
            f"The environment variable MS_WORKER_NUM must be a whole number above 0, got {given!r}:"
            " start with msrun, or unset MS_ROLE to run one process alone."
        )
    return ranks
