"""What the environment says: the launcher's variables and the package's own.

run_config.py and launch_config.py read it too; so does backends/cpu/library.py, as OpenMP does.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from mindformers_glm.config import launched
from mindformers_glm.config.guide_variables import find_quantized_folder
from mindformers_glm.config.torchrun import read_torchrun
from mindformers_glm.config.visible_devices import find_device
from mindformers_glm.core.errors import ConfigError, UnsupportedError


def packed_cache_folder(environ: Mapping[str, str] | None = None) -> Path | None:
    """The folder that MINDFORMERS_GLM_CACHE names, which need not exist yet, or None.

    Raises:
        ConfigError: it is a file.
    """
    given = (os.environ if environ is None else environ).get("MINDFORMERS_GLM_CACHE")
    if not given:
        return None
    folder = Path(os.path.expanduser(given)).absolute()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"MINDFORMERS_GLM_CACHE must name a folder, {folder} is a file.")
    return folder


def quantized_folder(environ: Mapping[str, str] | None = None) -> Path | None:
    """The folder of the quantized weights that run in the place of a checkpoint's, or None.

    Raises:
        ConfigError: the variables contradict each other (guide_variables.py).
    """
    return find_quantized_folder(os.environ if environ is None else environ)


def refuse_quantized_folder() -> None:
    """Refuse variables that ask for other weights, where a caller has named its own.

    Raises:
        UnsupportedError: they ask for quantized weights.
    """
    if (place := quantized_folder()) is not None:
        raise UnsupportedError(
            f"the environment asks for the quantized weights of {place}, which run by LLM and "
            "run_mindformer.py only: unset ENABLE_QUANT and ENABLE_SPARSE."
        )


def api_keys(
    given: Sequence[str], file: str | None, environ: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """The keys of a server: given, one a line of a file, and what MINDFORMERS_GLM_API_KEY holds.

    Raises:
        ConfigError: the file cannot be read or holds none, or a key cannot stand in a header.
    """
    keys = [(key, "--api_key or serve.api_key") for key in given]
    if file is not None:
        try:
            text = Path(os.path.expanduser(file)).read_text(encoding="ascii")
            lines = list(map(str.strip, text.splitlines()))
        except OSError as problem:
            raise ConfigError(f"Cannot read api_key_file {file}: {problem.strerror}.") from None
        except UnicodeDecodeError:
            lines = []
        if not any(lines):
            raise ConfigError(f"api_key_file {file} must hold a key of ASCII characters a line.")
        places = enumerate(lines, start=1)
        keys += [(line, f"line {place} of api_key_file {file}") for place, line in places if line]
    if from_variable := (os.environ if environ is None else environ).get("MINDFORMERS_GLM_API_KEY"):
        keys.append((from_variable, "the variable MINDFORMERS_GLM_API_KEY"))
    for key, place in keys:  # the sentence must not tell a key
        if not (key.isascii() and key.isprintable() and " " not in key and key):
            raise ConfigError(
                f"An API key must be ASCII characters without blanks, that of {place} is not."
            )
    return tuple(dict.fromkeys(key for key, _ in keys))


def launched_rank(model_parallel: object) -> int:
    """Which rank of `model_parallel` this process is; 0 where the model is not split.

    Raises:
        ConfigError: it is no number of processes, or not the number that msrun started.
    """
    return launched.find_rank(model_parallel, os.environ)


def is_launched() -> bool:
    """Whether this process is one of a job that a launcher started."""
    return launched.is_launched(os.environ)


def scheduler_host() -> str:
    """The address of the job's scheduler, which every rank reaches."""
    return os.environ.get("MS_SCHED_HOST", "127.0.0.1")


def launcher_pipe() -> int | None:
    """The file by which rank 0 tells this project's launcher of itself (launcher/wishes.py)."""
    given = os.environ.get(launched.PIPE_VARIABLE, "")
    return int(given) if given.isdecimal() and is_launched() else None


def environment_of_ranks() -> dict[str, str]:
    """The environment of a launcher whose processes find this package as this one has."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def join_torchrun() -> dict[str, str] | None:
    """Make this process one of MindSpore's job where torchrun has started it (torchrun.py).

    Returns:
        The environment of the scheduler, which this process must start: it is rank 0. Else None.
    Raises:
        ConfigError: its variables are wrong.
    """
    found = read_torchrun(os.environ)
    if found is None:
        return None
    os.environ.update(found)
    return os.environ | {"MS_ROLE": "MS_SCHED"} if found["RANK_ID"] == "0" else None


def own_device(device_id: int, num_ranks: int) -> int | None:
    """The card that this process takes, None where MindSpore chooses it (visible_devices.py).

    Raises:
        ConfigError: setting, launcher and ASCEND_RT_VISIBLE_DEVICES do not fit together.
    """
    return find_device(device_id, num_ranks, os.environ)


# What MindSpore Transformers 1.7.0 sets for a prediction where nobody else has
# (core/context/build_context.py `MFContextOperator.set_env`).
_OF_A_PREDICTION = {
    "MS_ALLOC_CONF": "enable_vmm:False",
    "MS_INTERNAL_DISABLE_CUSTOM_KERNEL_LIST": "PagedAttention",
    "CUSTOM_MATMUL_SHUFFLE": "on",
    "LCCL_DETERMINISTIC": "0",
}


def declare_prediction(is_pynative: bool, is_deterministic: bool) -> None:
    """Set what MindSpore Transformers 1.7.0 and MindSpore read there while they run on Ascend.

    Args:
        is_pynative: its layers ask for it by ENFORCE_EAGER (tools/utils.py `is_pynative`).
        is_deterministic: sums of several cards and products in one order, the values that
            infer_precision_sync sets there.
    """
    for name, value in _OF_A_PREDICTION.items():
        os.environ.setdefault(name, value)
    os.environ["RUN_MODE"] = "predict"
    os.environ["ENFORCE_EAGER"] = str(is_pynative)
    if is_deterministic:
        os.environ["LCCL_DETERMINISTIC"] = "1"
        os.environ["CUSTOM_MATMUL_SHUFFLE"] = "off"


# Ray: no reports to its makers; its replicas write their logs to files only; whoever reserves no
# card still sees those of the machine; engines do not stand back (nice 15) for other programs.
_OF_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}


def prepare_for_ray(proxy_callback: str, *, is_own_cluster: bool) -> None:
    """Set what Ray 2.60 reads while it is imported; a variable of the user's stays.

    Args:
        proxy_callback: module:function of what stands in its HTTP proxies.
        is_own_cluster: it is started by this process.

    Whoever reaches the ports of a cluster can run programs there. One of our own asks for a secret
    that nobody else knows; Ray by itself would write one into the user's home.
    """
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", proxy_callback)
    for name, value in _OF_RAY.items():
        os.environ.setdefault(name, value)
    if is_own_cluster and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def failed_meeting(problem: RuntimeError) -> ConfigError:
    """Say why the processes of this job did not find each other, given what MindSpore raised."""
    return launched.explain_failed_meeting(problem, os.environ)


def has_own_num_threads() -> bool:
    """Whether somebody chose OMP_NUM_THREADS: MindSpore's msrun sets it to 1 for every process."""
    return os.environ.get("OMP_NUM_THREADS", "") not in ("", "1")


_EXCHANGE_TIMEOUT_S = 30.0  # of MindSpore, where nobody sets MS_NODE_TIMEOUT


def exchange_timeout_s() -> float:
    """How long a rank waits for another's part of an exchange, in seconds."""
    given = os.environ.get("MS_NODE_TIMEOUT", "")
    return float(given) if given.isdecimal() and int(given) > 0 else _EXCHANGE_TIMEOUT_S


def launcher_host() -> int:
    """Which of a job's hosts the launcher counts this one as; 0 where it does not say."""
    given = os.environ.get("MS_NODE_RANK", "")
    return int(given) if given.isdecimal() else 0
