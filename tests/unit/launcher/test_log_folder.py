"""Which folder a job's logs go to, and what of earlier jobs is left there."""

from pathlib import Path

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.launcher.log_folder import LogFolder


def test_a_second_job_takes_a_folder_beside_the_first(tmp_path: Path) -> None:
    first = LogFolder(tmp_path / "logs", 8118)
    second = LogFolder(tmp_path / "logs", 8119)
    assert (first.path, second.path) == (tmp_path / "logs", tmp_path / "logs_8119")


@pytest.mark.parametrize(
    ("given", "second"),
    [(".", "msrun_log_8119"), ("..", "../msrun_log_8119"), ("sub/..", "sub/../msrun_log_8119")],
)
def test_a_folder_without_a_name_of_its_own(
    given: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    monkeypatch.chdir(work)
    first = LogFolder(Path(given), 8118)
    assert first.path == Path(given)
    assert LogFolder(Path(given), 8119).path == Path(second)


def test_the_hosts_of_one_job_share_a_folder(tmp_path: Path) -> None:
    held = [LogFolder(tmp_path, 8118, node_rank) for node_rank in (0, 1)]
    assert [folder.path for folder in held] == [tmp_path, tmp_path]


def test_a_job_on_one_host_does_not_join_the_hosts_of_another(tmp_path: Path) -> None:
    host_1 = LogFolder(tmp_path / "logs", 8118, 1)
    log = host_1.path / "worker_1.log"
    log.write_text("it runs")
    assert LogFolder(tmp_path / "logs", 8119).path == tmp_path / "logs_8119"
    assert log.read_text() == "it runs"


def test_logs_of_earlier_ranks_go(tmp_path: Path) -> None:
    gone = {"worker_0.log", "worker_12.log"}
    kept = {"worker_x.log", "worker_1.log.old", "my.log", "launcher.log"}
    for name in gone | kept:
        (tmp_path / name).touch()
    LogFolder(tmp_path, 8118)
    assert {path.name for path in tmp_path.iterdir()} == kept | {".node_0.lock"}


def test_logs_of_earlier_ranks_stay_where_hosts_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "worker_0.log").touch()
    LogFolder(tmp_path, 8118, 1)
    assert (tmp_path / "worker_0.log").exists()


def test_a_log_that_cannot_be_removed_is_told(tmp_path: Path) -> None:
    (tmp_path / "worker_3.log").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written to: .*another LOG_DIR"):
        LogFolder(tmp_path, 8118)


def test_the_root_has_no_name_of_its_own_either(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(LogFolder, "_lock", lambda self, path: tried.append(path))  # all is taken
    with pytest.raises(ConfigError, match="log folders / and /msrun_log_8118: give another"):
        LogFolder(Path("/"), 8118)
    assert tried == [Path("/"), Path("/msrun_log_8118")]
