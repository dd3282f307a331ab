"""The machine: processors, memory, disk, and the port that processes meet at."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mindformers_glm.config.environment import packed_cache_folder
from mindformers_glm.config.launch_config import AUTO_PORTS, DEFAULT_PORT
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.finding import Finding
from mindformers_glm.system.host import Host
from mindformers_glm.system.host_memory import read_available_memory
from mindformers_glm.system.processors import count_physical_cores
from mindformers_glm.system.sizes import format_bytes

_SECTION = "machine"
# As /proc/cpuinfo calls them on x86-64 and on 64-bit Arm -> as people do.
_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX512-BF16",
    "avx512_vnni": "VNNI",
    "avx_vnni": "VNNI",
    "amx_bf16": "AMX",
    "asimd": "NEON",
    "asimddp": "dot products",
    "bf16": "BF16",
    "i8mm": "I8MM",
}
# GLM-4-9B in int4 with a short context (docs/models.md); glm4-mini needs next to nothing.
_LEAST_BYTES = 7 * 2**30
_LEAST_DISK_BYTES = 20 * 2**30  # the 9B in bfloat16


def examine_machine(host: Host) -> Iterator[Finding]:
    """Look at what all devices share."""
    yield _examine_processor(host)
    yield _examine_cores(host)
    yield _examine_governor(host)
    yield _examine_memory(host)
    yield _examine_cache_disk(host)
    yield _examine_port(host)


def _examine_processor(host: Host) -> Finding:
    rows = _read_cpuinfo(host)
    if not rows:
        return Finding(_SECTION, "processor", f"{host.architecture}, /proc/cpuinfo cannot be read")
    model = rows.get("model name") or rows.get("Model") or f"{host.architecture} processor"
    flags = (rows.get("flags") or rows.get("Features") or "").split()
    features = dict.fromkeys(name for flag, name in _FEATURES.items() if flag in flags)
    return Finding(_SECTION, "processor", f"{model}: {', '.join(features) or 'no SIMD'}")


def _read_cpuinfo(host: Host) -> dict[str, str]:
    """Keys and values of the first processor."""
    first, _, _ = (host.read("proc/cpuinfo") or "").partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _examine_cores(host: Host) -> Finding:
    cores = count_physical_cores(host.processors, host.root)
    place = ", in a container" if host.is_container() else ""
    found = f"{cores}, {len(host.processors)} hardware threads{place}"
    quota = read_cpu_quota(host)
    if quota is None or quota >= cores:
        return Finding(_SECTION, "cores", found)
    threads = max(1, int(quota))
    advice = (
        f"The cgroup grants the time of {quota:g} cores: raise it (docker run --cpus), or give "
        f"--num_threads {threads}, since more threads only wait for each other."
    )
    return Finding(_SECTION, "cores", f"{found}, time of {quota:g}", "hint", advice)


def read_cpu_quota(host: Host) -> float | None:
    """How many cores' time the cgroup grants (v2, else v1); None: no limit is known."""
    group = ""
    for line in (host.read("proc/self/cgroup") or "").splitlines():
        if line.startswith("0::"):
            group = line[3:].strip("/")
    # Inside a container the path may be one that only the host sees; the top remains.
    for folder in dict.fromkeys((f"sys/fs/cgroup/{group}", "sys/fs/cgroup")):
        words = (host.read(f"{folder}/cpu.max") or "").split()
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
            return int(words[0]) / int(words[1])
    quota = host.read("sys/fs/cgroup/cpu/cpu.cfs_quota_us") or ""
    period = host.read("sys/fs/cgroup/cpu/cpu.cfs_period_us") or ""
    if quota.isdecimal() and period.isdecimal() and int(period):
        return int(quota) / int(period)
    return None


def _examine_governor(host: Host) -> Finding:
    folder = "sys/devices/system/cpu"
    names = (host.read(f"{folder}/cpu{n}/cpufreq/scaling_governor") for n in host.processors)
    governors = Counter(name for name in names if name)
    if not governors:
        return Finding(_SECTION, "governor", "not told (a virtual machine, or fixed clocks)")
    found = ", ".join(
        name if len(governors) == 1 else f"{name} on {count}" for name, count in governors.items()
    )
    if set(governors) == {"performance"}:
        return Finding(_SECTION, "governor", found)
    advice = "Run `cpupower frequency-set -g performance` as root on the host, for steady speed."
    return Finding(_SECTION, "governor", found, "hint", advice)


def _examine_memory(host: Host) -> Finding:
    available = read_available_memory(host.root)
    match = re.search(r"^MemTotal:\s*(\d+)", host.read("proc/meminfo") or "", re.MULTILINE)
    if available is None:
        advice = "Mount /proc into the container: without it nobody knows how much memory is left."
        return Finding(_SECTION, "memory", "/proc/meminfo cannot be read", "hint", advice)
    total = f" of {format_bytes(int(match[1]) * 1024)}" if match else ""
    found = f"{format_bytes(available)} available{total}"
    if available >= _LEAST_BYTES:
        return Finding(_SECTION, "memory", found)
    advice = (
        "GLM-4-9B does not fit even in int4: end other programs, or raise the container's limit; "
        "`mindformers-glm inspect DIR` says what a checkpoint needs."
    )
    return Finding(_SECTION, "memory", found, "hint", advice)


def _examine_cache_disk(host: Host) -> Finding:
    name = "cache folder"
    try:
        folder = packed_cache_folder(host.environ)
    except ConfigError as problem:
        return Finding(_SECTION, name, "MINDFORMERS_GLM_CACHE is a file", "problem", str(problem))
    place = "beside the checkpoints" if folder is None else str(folder)
    free = host.free_bytes(Path.cwd() if folder is None else folder)
    found = place if free is None else f"{place}, {format_bytes(free)} free"
    if folder is not None and host.exists(folder) and not host.can_use(folder):
        advice = f"Make {folder} writable, or let MINDFORMERS_GLM_CACHE name another folder."
        return Finding(_SECTION, name, f"{found}, not writable", "hint", advice)
    if free is not None and free < _LEAST_DISK_BYTES:
        advice = (
            "A packed cache is as large as the weights in memory, 18 GB for GLM-4-9B in bfloat16: "
            "let MINDFORMERS_GLM_CACHE name a folder with more room, or a start takes longer."
        )
        return Finding(_SECTION, name, found, "hint", advice)
    return Finding(_SECTION, name, found)


def _examine_port(host: Host) -> Finding:
    given = host.environ.get("MASTER_PORT", "")
    if given.lower() == "auto":
        return Finding(_SECTION, "launcher port", "MASTER_PORT auto: a free one is taken")
    if given and not (given.isdecimal() and 1024 <= int(given) <= AUTO_PORTS[-1]):
        advice = f"Let MASTER_PORT be auto, or a number from 1024 to {AUTO_PORTS[-1]}."
        return Finding(_SECTION, "launcher port", f"MASTER_PORT is {given!r}", "hint", advice)
    port = int(given) if given else DEFAULT_PORT
    if host.is_port_free(port):
        return Finding(_SECTION, "launcher port", f"{port} is free")
    if not given:
        note = f"{port} is taken: on one host the launcher takes a free one"
        return Finding(_SECTION, "launcher port", note)
    advice = (
        f"Set MASTER_PORT to auto, or to a free port from {AUTO_PORTS[0]} to {AUTO_PORTS[-1]}: "
        "scripts/msrun_launcher.sh cannot use this one."
    )
    return Finding(_SECTION, "launcher port", f"{port} is taken", "hint", advice)
