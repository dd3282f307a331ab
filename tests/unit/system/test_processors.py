from pathlib import Path

import pytest

from mindformers_glm.config.num_threads import check_num_threads
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.system import processors
from mindformers_glm.system.processors import count_physical_cores


def _write_siblings(root: Path, lists: dict[int, str]) -> None:
    for processor, siblings in lists.items():
        folder = root / f"sys/devices/system/cpu/cpu{processor}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")


def test_two_hyperthreads_are_one_core(tmp_path: Path) -> None:
    _write_siblings(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    assert count_physical_cores(range(4), tmp_path) == 2


def test_only_processors_of_the_mask_count(tmp_path: Path) -> None:
    _write_siblings(tmp_path, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 4: "4-5", 5: "4-5"})
    assert count_physical_cores([1, 4, 5], tmp_path) == 2
    assert count_physical_cores([3], tmp_path) == 1


def test_processors_that_are_not_described_count_each(tmp_path: Path) -> None:
    assert count_physical_cores([0, 1, 2], tmp_path) == 3


def test_this_process_may_use_at_least_one_core() -> None:
    assert 1 <= count_physical_cores() <= len(processors.usable_processors())


@pytest.mark.parametrize("good", [None, 1, 4])
def test_numbers_up_to_the_machines_processors_are_fine(
    good: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors.os, "cpu_count", lambda: 4)
    check_num_threads(good)


@pytest.mark.parametrize("wrong", [0, 5, -1, 2.0, "2", False])
def test_other_numbers_are_refused(wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors.os, "cpu_count", lambda: 4)
    with pytest.raises(ConfigError, match=f"num_threads must be .* from 1 to 4, .* got {wrong!r}"):
        check_num_threads(wrong)
