from pathlib import Path

import psutil
import pytest

from mindformers_glm.system.host_memory import read_available_memory

GIB = 2**30
MARGIN = GIB  # above 10 GiB


def _write(root: Path, **files: str) -> None:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _write(tmp_path, proc__meminfo=f"MemTotal: 99 kB\nMemAvailable: {64 * GIB // 1024} kB\n")
    return tmp_path


def test_mem_available_counts_where_there_is_no_cgroup(root: Path) -> None:
    assert read_available_memory(root) == 64 * GIB - MARGIN


def test_a_small_machine_keeps_a_smaller_margin(tmp_path: Path) -> None:
    _write(tmp_path, proc__meminfo=f"MemAvailable: {GIB // 1024} kB\n")
    assert read_available_memory(tmp_path) == GIB - int(0.1 * GIB)


def test_a_cgroup_v2_limit_counts_with_its_file_cache_as_free(root: Path) -> None:
    _write(root, proc__self__cgroup="0::/\n")
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{32 * GIB}\n")
    (group / "memory.current").write_text(f"{12 * GIB}\n")
    (group / "memory.stat").write_text(
        f"anon {8 * GIB}\nactive_file {GIB}\ninactive_file {3 * GIB}\n"
    )
    assert read_available_memory(root) == 24 * GIB - MARGIN


def test_the_tightest_enclosing_group_counts(root: Path) -> None:
    _write(root, proc__self__cgroup="0::/outer/inner\n")
    inner = root / "sys/fs/cgroup/outer/inner"
    inner.mkdir(parents=True)
    for folder, limit in ((inner, "max"), (inner.parent, f"{16 * GIB}")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("0")
    assert read_available_memory(root) == 16 * GIB - MARGIN


def test_a_cgroup_v1_limit_counts(root: Path) -> None:
    _write(root, proc__self__cgroup="5:cpu:/\n4:memory:/seen/by/the/host/only\n0::/\n")
    group = root / "sys/fs/cgroup/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{32 * GIB}")
    (group / "memory.usage_in_bytes").write_text(f"{2 * GIB}")
    (group / "memory.stat").write_text(f"total_inactive_file {GIB}\n")
    assert read_available_memory(root) == 31 * GIB - MARGIN


def test_a_v1_group_without_limit_changes_nothing(root: Path) -> None:
    _write(root, proc__self__cgroup="4:memory:/\n")
    group = root / "sys/fs/cgroup/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("9223372036854771712")
    (group / "memory.usage_in_bytes").write_text(f"{GIB}")
    assert read_available_memory(root) == 64 * GIB - MARGIN


def test_an_overfull_group_leaves_nothing(root: Path) -> None:
    _write(root, proc__self__cgroup="0::/\n")
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("10")
    (group / "memory.current").write_text("20")
    assert read_available_memory(root) == 0


def test_a_system_that_tells_nothing_has_no_known_limit(tmp_path: Path) -> None:
    assert read_available_memory(tmp_path) is None


def test_this_machine_can_be_read() -> None:
    available = read_available_memory()
    assert available is not None
    assert 0 < available < psutil.virtual_memory().total
