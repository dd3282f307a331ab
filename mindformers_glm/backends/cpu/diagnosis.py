"""What `mindformers-glm doctor` says about running on this machine's processors."""

import re
from collections.abc import Iterator

from mindformers_glm.backends.cpu import library
from mindformers_glm.core.errors import GlmError
from mindformers_glm.core.finding import Finding
from mindformers_glm.system.host import Host
from mindformers_glm.system.processors import count_physical_cores

_SECTION = "CPU"
_SLOW = ("portable", "neon")  # no instructions for products of bfloat16 or int8
_HUGE_PAGES = "sys/kernel/mm/transparent_hugepage/enabled"


def diagnose(host: Host) -> Iterator[Finding]:
    """Look at the operators, their threads and their memory."""
    yield _examine_operators(host)
    yield _examine_threads(host)
    yield _examine_huge_pages(host)


def _examine_operators(host: Host) -> Finding:
    name = "operators"
    try:
        kernels = library.load()
    except (GlmError, OSError) as problem:
        advice = str(problem)
        if isinstance(problem, OSError):
            advice = f"Run `pip install -e .` in the source folder: {problem}"
        return Finding(_SECTION, name, "not usable", "problem", advice)
    isa, others = library.isa(), library.available_isas()
    found = f"{isa}, {library.describe_build()}"
    if kernels.glm_left_out():
        advice = "Run `CXX=g++-12 pip install -e .`: this compiler could not build the fast ones."
        return Finding(_SECTION, name, found, "hint", advice)
    if isa != others[0]:
        advice = f"Unset {library.ISA_VARIABLE}, which asks for it: {others[0]} is faster here."
        return Finding(_SECTION, name, found, "hint", advice)
    if isa in _SLOW:
        advice = "Use a processor with AVX2, or with Arm's dot products: this one is very slow."
        return Finding(_SECTION, name, found, "hint", advice)
    return Finding(_SECTION, name, found)


def _examine_threads(host: Host) -> Finding:
    name, variable = "threads", library.THREADS_VARIABLE
    cores = count_physical_cores(host.processors, host.root)
    given = host.environ.get(variable, "")
    if not given:
        return Finding(_SECTION, name, f"{cores}, one on each core")
    found = f"{variable} is {given}"
    first, _, _ = given.partition(",")  # OpenMP takes a number for each level of nesting
    if not first.strip().isdecimal() or int(first) < 1:
        return Finding(_SECTION, name, found, "hint", f"Unset {variable}: it must be a number.")
    if int(first) < cores:
        advice = (
            f"Unset {variable}, or give --num_threads {cores}: the operators use that many of "
            f"{cores} cores. What OpenBLAS warns of ends with OPENBLAS_NUM_THREADS=1 as well."
        )
        return Finding(_SECTION, name, found, "hint", advice)
    if int(first) > cores:
        advice = f"Unset {variable}: there are {cores} cores, and more threads slow each other."
        return Finding(_SECTION, name, found, "hint", advice)
    return Finding(_SECTION, name, found)


def _examine_huge_pages(host: Host) -> Finding:
    name = "huge pages"
    chosen = re.search(r"\[(\w+)\]", host.read(_HUGE_PAGES) or "")
    if chosen is None:
        return Finding(_SECTION, name, "not told by this system")
    if chosen[1] != "never":
        return Finding(_SECTION, name, f"transparent_hugepage is {chosen[1]}")
    advice = f"Run `echo madvise > /{_HUGE_PAGES}` as root: weights are read 15 to 20 % slower."
    return Finding(_SECTION, name, "transparent_hugepage is never", "hint", advice)
