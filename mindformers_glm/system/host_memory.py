"""How much memory this process can still take, and how much it has taken at most."""

from pathlib import Path

# Left to the rest of the machine and to what a Python process grows by while it runs.
_MARGIN_BYTES = 2**30
_MARGIN_SHARE = 0.1  # of what is free, on machines where 1 GiB is much


def read_available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that can be taken without swapping, less a safety margin.

    The smaller of MemAvailable and what every enclosing cgroup (v1 or v2) leaves, files cached by
    the kernel counted as free. None where the system tells nothing.

    Args:
        root: where proc and sys are; tests bring their own.
    """
    limits = [_read_mem_available(root), _read_cgroup_available(root)]
    known = [limit for limit in limits if limit is not None]
    if not known:
        return None
    available = max(min(known), 0)
    return available - min(_MARGIN_BYTES, int(available * _MARGIN_SHARE))


def read_peak_memory(root: Path = Path("/")) -> int:
    """Return the most bytes of memory this process has held; 0 where the system tells nothing."""
    return _read_table(root / "proc/self/status").get("VmHWM:", 0) * 1024


def _read_mem_available(root: Path) -> int | None:
    kibibytes = _read_table(root / "proc/meminfo").get("MemAvailable:")
    return None if kibibytes is None else kibibytes * 1024


def _read_cgroup_available(root: Path) -> int | None:
    """Return the least that any memory limit from this process's cgroup upwards leaves."""
    least: int | None = None
    for folder, limit_name, usage_name, cache_keys in _list_cgroup_folders(root):
        limit = _read_number(folder / limit_name)
        usage = _read_number(folder / usage_name)
        if limit is None or usage is None:
            continue
        stat = _read_table(folder / "memory.stat")
        available = limit - usage + sum(stat.get(key, 0) for key in cache_keys)
        least = available if least is None else min(least, available)
    return least


def _list_cgroup_folders(root: Path) -> list[tuple[Path, str, str, tuple[str, str]]]:
    """Return (folder, limit file, usage file, keys of cached files) from our group upwards."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    v2 = ("memory.max", "memory.current", ("active_file", "inactive_file"))
    v1 = (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    )
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)  # "0::/a/b" or "4:memory:/a/b"
        if controllers == "":
            top, names = root / "sys/fs/cgroup", v2
        elif "memory" in controllers.split(","):
            top, names = root / "sys/fs/cgroup/memory", v1
        else:
            continue
        group = top / path.lstrip("/")
        # Inside a container the path may name a folder that only the host sees; the top remains.
        while group != top:
            folders.append((group, *names))
            group = group.parent
        folders.append((top, *names))
    return folders


def _read_number(path: Path) -> int | None:
    """Return the number in a file; None for "max" and for a file that is not there."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _read_table(path: Path) -> dict[str, int]:
    """Return the first number behind each first word of a line."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
