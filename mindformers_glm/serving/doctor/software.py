"""Python and its packages, held against the tested versions, and whether MindSpore starts."""

import re
import sys
import textwrap
from collections.abc import Iterator

from mindformers_glm.config.supported_versions import (
    PINNED,
    PYTHON_VERSIONS,
    VersionSet,
    find_set,
    matches,
    parse_version,
)
from mindformers_glm.core.finding import Finding
from mindformers_glm.system.host import Host, ProgramOutput

_SECTION = "software"
_MAX_REASON = 200
DEFAULT_PROBE = "import mindspore"
_START_TIMEOUT_S = 120.0  # takes 2 s; 20 s after a start of the machine, or where a card is opened
_MISSING_LIBRARY = re.compile(r"\S+\.so\S*: cannot open shared object file")
_ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*", re.MULTILINE)
INSTALL = (
    "Enter the environment (source .venv/bin/activate in the source folder), or make one: "
    "scripts/quickstart.sh."
)
# What MindSpore's start ends with -> what to do; the first that fits counts.
_START_FAILURES = {
    "static TLS block": "Run `export LD_PRELOAD={libgomp}` first: libgomp has to be loaded "
    "before everything else.",
    "libgomp.so.1: cannot open": "Install libgomp1 (apt) or libgomp (yum).",
    "GLIBC": "Use a newer system, or a container with one: the C or C++ library of this one is "
    "older than what MindSpore was built for.",
}


def examine_software(host: Host, probe: str) -> Iterator[Finding]:
    """Look at versions; the packages of one release of MindSpore Transformers belong together.

    Args:
        probe: Python code that starts MindSpore on the device that is to be used.
    """
    yield _examine_python(host)
    tested = find_set(host.find_version("mindformers"))
    for name in PINNED.packages:
        yield _examine_package(host, name, tested)
    if host.find_version("mindspore") is not None:
        yield _examine_start(host, probe)


def _examine_python(host: Host) -> Finding:
    found = ".".join(map(str, host.python))
    there_is = f"{found}, {sys.executable}"
    if f"{host.python[0]}.{host.python[1]}" in PYTHON_VERSIONS:
        return Finding(_SECTION, "python", there_is)
    is_old = parse_version(found) < parse_version(PYTHON_VERSIONS[0])
    advice = f"Use Python {' or '.join(PYTHON_VERSIONS)}: PYTHON=python3.11 scripts/quickstart.sh."
    return Finding(_SECTION, "python", there_is, "problem" if is_old else "hint", advice)


def _examine_package(host: Host, name: str, tested: VersionSet | None) -> Finding:
    wanted = (tested or PINNED).packages[name]
    found = host.find_version(name)
    if found is None:
        return Finding(_SECTION, name, "not installed", "problem", INSTALL)
    if matches(found, wanted):
        return Finding(_SECTION, name, found)
    partner = "" if tested is None else f" beside mindformers {tested.packages['mindformers']}"
    advice = f"{name} {wanted} was tested{partner}; with another one, results may differ or fail."
    return Finding(_SECTION, name, found, "hint", advice)


def _examine_start(host: Host, probe: str) -> Finding:
    """Start MindSpore in a process of its own: only this tells whether all it needs is there."""
    name = "mindspore start"
    output = host.run((sys.executable, "-c", probe), _START_TIMEOUT_S, host.environ)
    if not output.problem:
        return Finding(_SECTION, name, "works")
    if output.problem.startswith("no answer"):
        advice = f'Run `python -c "{probe}"`: the disk may be slow, or the driver of a card hangs.'
        return Finding(_SECTION, name, output.problem, "hint", advice)
    advice = f'Run `python -c "{probe}"` to see all of what went wrong.'
    for sign, known in _START_FAILURES.items():
        if sign in output.text:
            advice = known.format(libgomp=_find_libgomp(host))
            break
    return Finding(_SECTION, name, _find_reason(output), "problem", advice)


def _find_reason(output: ProgramOutput) -> str:
    """What of a long story says why: a library that is missing, or else the first error."""
    for pattern in (_MISSING_LIBRARY, _ERROR):
        if match := pattern.search(output.text):
            return textwrap.shorten(match[0], _MAX_REASON, placeholder=" ...")
    lines = [line.strip() for line in output.text.splitlines() if line.strip()]
    return textwrap.shorten(lines[-1], _MAX_REASON, placeholder=" ...") if lines else output.problem


def _find_libgomp(host: Host) -> str:
    """Where the system's libgomp is, or should be."""
    triple = f"{host.architecture}-linux-gnu"
    places = (f"/lib/{triple}", f"/usr/lib/{triple}", "/usr/lib64", "/lib64")
    paths = [f"{place}/libgomp.so.1" for place in places]
    return next((path for path in paths if host.exists(path)), paths[0])
