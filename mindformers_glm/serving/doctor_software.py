"""The interpreter and the packages, held against the supported versions."""

from importlib.metadata import PackageNotFoundError, version

from mindformers_glm.config.supported_versions import PINNED
from mindformers_glm.core.finding import Finding
from mindformers_glm.system.host import Host


def examine_software(host: Host) -> list[Finding]:
    """Versions of Python and of the packages."""
    return [_examine_package(name, wanted) for name, wanted in PINNED.packages.items()]


def _examine_package(name: str, wanted: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding("software", name, "not installed", "problem", "Install it.")
    if found != wanted:
        return Finding("software", name, found, "hint", f"Tested was {wanted}.")
    return Finding("software", name, found)
