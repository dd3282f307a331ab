"""Where driver and CANN are installed, and what of them the environment knows."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from mindformers_glm.system.host import Host

_INSTALL_INFO = "/etc/ascend_install.info"
_TOOLKITS = (
    "/usr/local/Ascend/ascend-toolkit/latest",
    "/usr/local/Ascend/cann",  # from CANN 8.5 on
    "/usr/local/Ascend/latest",
)
_HOME_TOOLKITS = ("Ascend/ascend-toolkit/latest", "Ascend/cann")  # installed without root
_VERSION = re.compile(r"^\s*version\s*=\s*([\w.]+)", re.IGNORECASE | re.MULTILINE)
_RUNNING_VERSION = re.compile(r"running_version\s*=\s*\[[^:\]]*:([\w.]+)\]")


@dataclass(frozen=True)
class Driver:
    """The driver of the host, as far as this system shows it.

    version: None where it is not told. library: path of libascend_hal.so, or None.
    """

    folder: str
    version: str | None
    library: str | None


@dataclass(frozen=True)
class Toolkit:
    """One installation of CANN.

    set_env: the script to source. is_named: the environment names this one.
    """

    folder: str
    version: str | None
    set_env: str
    is_named: bool


def find_driver(host: Host) -> Driver:
    """Look where the driver's installer has written that it is, else in its default place."""
    told = re.search(r"Driver_Install_Path_Param=(\S+)", host.read(_INSTALL_INFO) or "")
    folder = f"{told[1] if told else '/usr/local/Ascend'}/driver"
    version = _VERSION.search(host.read(f"{folder}/version.info") or "")
    name = "libascend_hal.so"
    places = [f"{folder}/lib64/driver", f"{folder}/lib64", *library_folders(host)]
    library = next((f"{place}/{name}" for place in places if host.exists(f"{place}/{name}")), None)
    return Driver(folder, version[1] if version else None, library)


def find_toolkit(host: Host) -> Toolkit | None:
    """The CANN that the environment names, else the first that is installed in a usual place."""
    named = [host.environ.get(name, "") for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")]
    home = host.environ.get("HOME", "")
    at_home = [f"{home}/{place}" for place in _HOME_TOOLKITS] if home else []
    for folder in filter(None, (*named, *_TOOLKITS, *at_home)):
        if host.exists(folder):
            folder = folder.rstrip("/")
            set_env = _find_set_env(host, folder)
            return Toolkit(folder, _find_version(host, folder), set_env, folder in named)
    return None


def _find_version(host: Host, folder: str) -> str | None:
    places = (
        (f"{host.architecture}-linux/ascend_toolkit_install.info", _VERSION),
        ("ascend_toolkit_install.info", _VERSION),
        ("version.cfg", _VERSION),
        ("version.cfg", _RUNNING_VERSION),
        ("version.info", _VERSION),
    )
    for name, pattern in places:
        if match := pattern.search(host.read(f"{folder}/{name}") or ""):
            return match[1]
    return None


def _find_set_env(host: Host, folder: str) -> str:
    parent = str(PurePosixPath(folder).parent)
    places = (f"{parent}/set_env.sh", f"{folder}/set_env.sh")
    return next((place for place in places if host.exists(place)), places[0])


def library_folders(host: Host) -> list[str]:
    """Folders of LD_LIBRARY_PATH."""
    return [folder for folder in host.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]


def find_missing(host: Host) -> list[str]:
    """What set_env.sh would bring and is not there; MindSpore 2.7.1 looks for all of it."""
    folders = library_folders(host)
    places = {
        name: host.environ.get(name) or None for name in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH")
    }
    there_is = {
        **{name: place is not None and host.exists(place) for name, place in places.items()},
        "libge_runner.so in LD_LIBRARY_PATH": any(
            host.exists(f"{folder}/libge_runner.so") for folder in folders
        ),
        "Python's acl": host.has_module("acl"),
        "Python's te": host.has_module("te"),
    }
    return [name for name, is_there in there_is.items() if not is_there]
