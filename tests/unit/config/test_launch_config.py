"""The launcher's arguments and environment, without starting anything."""

import sys
from pathlib import Path

import pytest

from mindformers_glm.config.launch_config import LaunchConfig, load_launch_config
from mindformers_glm.config.sentence_parser import CommandLineError
from mindformers_glm.core.errors import ConfigError, GlmError
from mindformers_glm.system.processors import count_physical_cores


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a script in it."""
    (tmp_path / "ask.py").touch()
    (tmp_path / "my folder").mkdir()
    (tmp_path / "my folder" / "ask.py").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*argv: str, **environ: str) -> LaunchConfig:
    return load_launch_config(argv, {"PATH": "/usr/bin:/bin", **environ})


def test_defaults_are_those_of_upstreams_script() -> None:
    config = load("ask.py")
    assert (config.num_workers, config.num_local_workers, config.node_rank) == (8, 8, 0)
    assert (config.master_addr, config.master_port) == ("127.0.0.1", 8118)
    assert (config.log_dir, config.cluster_timeout_s) == (Path("output/msrun_log"), 7200)
    # Upstream returns while the workers run, and hides their failure.
    assert config.is_joined


def test_each_host_has_the_next_ranks() -> None:
    hosts = [
        load("--worker_num=6", "--local_worker_num=2", f"--node_rank={rank}", "ask.py")
        for rank in range(3)
    ]
    assert [list(host.ranks) for host in hosts] == [[0, 1], [2, 3], [4, 5]]
    assert not any(host.is_single_host for host in hosts)


def test_node_rank_is_ignored_where_all_ranks_are_on_one_host() -> None:
    # As msrun does: a script for several hosts works on one.
    config = load("--worker_num=2", "--local_worker_num=2", "--node_rank=1", "ask.py")
    assert list(config.ranks) == [0, 1]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("ask.py --predict_data '请介绍 一下'", ["--predict_data", "请介绍 一下"]),
        ('ask.py "it\'s" a\\ b', ["it's", "a b"]),
        ("ask.py '$HOME `ls` $(ls) *; & | > #'", ["$HOME `ls` $(ls) *; & | > #"]),
        ("ask.py $HOME * a;b #c", ["$HOME", "*", "a;b", "#c"]),
        ("ask.py \\\n  --seed 1\n --top_k 2", ["--seed", "1", "--top_k", "2"]),
        ("ask.py --stop ''", ["--stop", ""]),
    ],
)
def test_quotes_inside_the_command_count(text: str, arguments: list[str]) -> None:
    assert load(text).command == (sys.executable, "ask.py", *arguments)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("ask.py", (sys.executable, "ask.py")),
        ("'my folder/ask.py' a", (sys.executable, "my folder/ask.py", "a")),
        ("python -m ask", (sys.executable, "-m", "ask")),
        ("python3 ask.py", (sys.executable, "ask.py")),
        ("env true", ("/usr/bin/env", "true")),
    ],
)
def test_python_runs_scripts_and_path_finds_programs(
    text: str, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert load(text).command == command


def test_programs_beside_the_interpreter_are_found(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = work / "bin" / "mindformers-glm"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(program.parent / "python"))
    monkeypatch.setenv("PATH", "/usr/bin")  # no environment is activated
    assert load("mindformers-glm predict").command == (str(program), "predict")


def test_this_projects_script_is_found_from_any_folder() -> None:
    script = Path(load("run_mindformer.py --seed 1").command[1])
    assert script == Path(__file__).resolve().parents[3] / "run_mindformer.py"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--worker_num=0", "ask.py"], "WORKER_NUM"),
        (["--worker_num=two", "ask.py"], "'two'"),
        (["--worker_num=", "ask.py"], "WORKER_NUM"),
        (["--worker_num=-2", "ask.py"], "'-2'"),
        (["--worker_num=2.0", "ask.py"], "'2.0'"),
        (["--local_worker_num=x", "ask.py"], "LOCAL_WORKER must"),
        (["--master_port=80", "ask.py"], "MASTER_PORT"),
        (["--master_port=65536", "ask.py"], "65535"),
        (["--master_port=http", "ask.py"], "auto"),
        (["--join=maybe", "ask.py"], "JOIN must be True or False"),
        (["--cluster_time_out=0", "ask.py"], "CLUSTER_TIME_OUT"),
        (["--cluster_time_out=1h", "ask.py"], "'1h'"),
        (["--node_rank=-1", "ask.py"], "NODE_RANK"),
        (["--log_dir=", "ask.py"], "LOG_DIR"),
        (["--log=x", "ask.py"], "--log"),
        ([""], "empty"),
        (["  "], "empty"),
        (["ask.py 'a"], "quotation"),
        ([], "command"),
    ],
)
def test_arguments_that_cannot_be_understood_are_one_sentence(argv: list[str], named: str) -> None:
    with pytest.raises(CommandLineError) as problem:
        load(*argv)
    assert named in str(problem.value)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--worker_num=3", "--local_worker_num=2", "ask.py"], "multiple"),
        (["--worker_num=2", "--local_worker_num=4", "ask.py"], "multiple"),
        (["--worker_num=4", "--local_worker_num=2", "--node_rank=2", "ask.py"], "from 0 to 1"),
        (["--worker_num=2", "--local_worker_num=1", "--master_port=auto", "ask.py"], "one host"),
        (["no_such.py"], "no_such.py"),
        (["no_such_program --x"], "no_such_program"),
        (["'my folder'"], "my folder"),
    ],
)
def test_arguments_that_cannot_work_are_one_sentence(argv: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as problem:
        load(*argv)
    assert not isinstance(problem.value, CommandLineError)
    assert "\n" not in str(problem.value)


def test_port_of_the_argument_wins_over_the_environments() -> None:
    assert load("ask.py", MASTER_PORT="9000").master_port == 9000
    assert load("ask.py", MASTER_PORT="auto").master_port is None
    assert load("--master_port=9001", "ask.py", MASTER_PORT="9000").master_port == 9001
    with pytest.raises(GlmError, match="MASTER_PORT"):
        load("ask.py", MASTER_PORT="tcp://10.0.0.1:80")


def test_the_suffix_ends_the_names_of_all_log_folders(work: Path) -> None:
    config = load("ask.py", MF_LOG_SUFFIX="b", PLOG_REDIRECT_TO_OUTPUT="True")
    assert config.log_dir == Path("output/msrun_log_b")
    assert config.environment["LOG_MF_PATH"] == str(work / "output/log_b")
    assert config.environment["ASCEND_PROCESS_LOG_PATH"] == str(work / "output/plog_b")


def test_plog_stays_where_it_is_unless_asked() -> None:
    assert "ASCEND_PROCESS_LOG_PATH" not in load("ask.py").environment
    environment = load("ask.py", PLOG_REDIRECT_TO_OUTPUT="False").environment
    assert "ASCEND_PROCESS_LOG_PATH" not in environment


@pytest.mark.parametrize("num_workers", [1, 2, 500])
def test_ranks_share_the_cores(num_workers: int) -> None:
    threads = int(load(f"--worker_num={num_workers}", "ask.py").environment["OMP_NUM_THREADS"])
    assert threads == max(1, count_physical_cores() // num_workers)


def test_what_the_user_has_set_stays() -> None:
    given = {"OMP_NUM_THREADS": "7", "LOG_MF_PATH": "/logs", "MS_NODE_TIMEOUT": "99", "OWN": ""}
    environment = load("ask.py", **given).environment
    assert {name: environment[name] for name in given} == given
