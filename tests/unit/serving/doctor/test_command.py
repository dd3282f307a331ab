"""`mindformers-glm doctor`: on machines that are not there, and on this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindformers_glm.backends import BACKENDS
from mindformers_glm.config.known_variables import KNOWN_VARIABLES
from mindformers_glm.config.sentence_parser import SentenceParser
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.finding import Finding
from mindformers_glm.serving.doctor.command import Diagnosis, add_arguments, run
from mindformers_glm.system.host import Host, ProgramOutput
from tests.unit.fake_host import (
    SET_ENV,
    VERSIONS,
    Programs,
    make_ascend_host,
    make_host,
    write_files,
)

REPO = Path(__file__).resolve().parents[4]
GIB = 2**30


def diagnose(host: Host, device_target: str = "CPU") -> Diagnosis:
    return Diagnosis.make(host, device_target)


def find(diagnosis: Diagnosis, name: str) -> Finding:
    (found,) = (finding for finding in diagnosis.findings if finding.name == name)
    return found


def not_ok(diagnosis: Diagnosis) -> dict[str, str]:
    return {row.name: row.state for row in diagnosis.findings if row.state != "ok"}


def test_a_good_machine_has_nothing_to_improve(tmp_path: Path) -> None:
    diagnosis = diagnose(make_host(tmp_path))
    assert (not_ok(diagnosis), diagnosis.can_run) == ({}, True)
    assert find(diagnosis, "processor").found == (
        "Some Processor @ 2.60GHz: AVX2, AVX-512, AVX512-BF16, VNNI"
    )
    assert find(diagnosis, "memory").found == "63.0 GB available of 66.0 GB"
    assert find(diagnosis, "Ascend").found == "no card, driver or CANN"


def test_a_good_machine_with_cards_has_nothing_to_improve(tmp_path: Path) -> None:
    diagnosis = diagnose(make_ascend_host(tmp_path), "Ascend")
    assert (not_ok(diagnosis), diagnosis.can_run) == ({}, True)
    assert find(diagnosis, "CPU").found == "usable"


def test_what_is_wrong_with_another_device_stops_nothing(tmp_path: Path) -> None:
    host = make_ascend_host(tmp_path, {})
    assert not diagnose(host, "Ascend").can_run
    diagnosis = diagnose(host, "CPU")
    assert diagnosis.can_run
    finding = find(diagnosis, "Ascend")
    assert (finding.found, finding.state) == ("not usable: set_env.sh not sourced", "hint")


def test_ascend_on_a_machine_without_it_cannot_run(tmp_path: Path) -> None:
    diagnosis = diagnose(make_host(tmp_path), "Ascend")
    assert not diagnosis.can_run
    assert "device_target to CPU" in find(diagnosis, "card").advice


@pytest.mark.parametrize("name", ["GPU", ""])  # "": "$DEVICE" that is not set, as in predict
def test_an_unknown_device_is_refused_before_anything_is_started(tmp_path: Path, name: str) -> None:
    programs = Programs()
    with pytest.raises(ConfigError, match=f"one of CPU, Ascend, got '{name}'"):
        diagnose(make_host(tmp_path, run=programs), name)
    assert programs.commands == []


@pytest.mark.parametrize("package", VERSIONS)
def test_a_missing_package_is_a_problem(tmp_path: Path, package: str) -> None:
    versions = {name: text for name, text in VERSIONS.items() if name != package}
    diagnosis = diagnose(make_host(tmp_path, find_version=versions.get))
    assert not_ok(diagnosis) == {package: "problem"}


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("mindspore", "2.9.0"),
        ("mindformers", "1.9.9"),
        ("transformers", "4.57.1"),
        ("tokenizers", "0.22.0"),
        ("numpy", "2.1.0"),
    ],
)
def test_a_version_that_was_not_tested_is_a_hint(
    tmp_path: Path, package: str, version: str
) -> None:
    diagnosis = diagnose(make_host(tmp_path, find_version=(VERSIONS | {package: version}).get))
    assert (not_ok(diagnosis), diagnosis.can_run) == ({package: "hint"}, True)
    assert find(diagnosis, package).found == version


@pytest.mark.parametrize(
    ("version", "state"), [((3, 9, 2), "problem"), ((3, 10, 0), "ok"), ((3, 12, 1), "hint")]
)
def test_another_python_is_told(tmp_path: Path, version: tuple[int, ...], state: str) -> None:
    diagnosis = diagnose(make_host(tmp_path, python=version))
    assert find(diagnosis, "python").state == state


@pytest.mark.parametrize(
    ("output", "state", "word"),
    [
        (ProgramOutput(problem="no answer in 120 s"), "hint", "import mindspore"),
        (ProgramOutput("x\nImportError: boom\n", "exit code 1"), "problem", "import mindspore"),
        (ProgramOutput("", "exit code -11"), "problem", "import mindspore"),
        (
            ProgramOutput(
                "ImportError: libgomp.so.1: cannot allocate memory in static TLS block",
                "exit code 1",
            ),
            "problem",
            "export LD_PRELOAD=/lib/aarch64-linux-gnu/libgomp.so.1",
        ),
        (
            ProgramOutput("OSError: libgomp.so.1: cannot open shared object file", "exit code 1"),
            "problem",
            "Install libgomp1",
        ),
        (ProgramOutput("version `GLIBCXX_3.4.30' not found", "exit code 1"), "problem", "newer"),
    ],
)
def test_a_mindspore_that_does_not_start_is_told(
    tmp_path: Path, output: ProgramOutput, state: str, word: str
) -> None:
    finding = find(diagnose(make_host(tmp_path, run=Programs(python=output))), "mindspore start")
    assert finding.state == state
    assert word in finding.advice
    assert finding.found


# What MindSpore 2.7.1 says here, shortened; then what Python and nothing say.
_STORIES = {
    """[WARNING] ME(1:2,MainProcess):2026-11-30 Can not find ccec_compiler
Traceback (most recent call last):
  File "<string>", line 1, in <module>
RuntimeError: Unsupported device target Ascend. This process only supports one of the ['CPU'].
- Device load error message:
Load dynamic library: x.so.2 failed. libge_runner.so: cannot open shared object file: No such file
""": "libge_runner.so: cannot open shared object file",
    "Traceback\n  x\nnumpy.core.AnError: no\n- C++ Call Stack\nx.cc:1": "numpy.core.AnError: no",
    "Illegal instruction": "Illegal instruction",
    "": "exit code 1",
}


@pytest.mark.parametrize(("story", "reason"), _STORIES.items(), ids=range(len(_STORIES)))
def test_the_reason_is_found_in_a_long_story(tmp_path: Path, story: str, reason: str) -> None:
    host = make_host(tmp_path, run=Programs(python=ProgramOutput(story, "exit code 1")))
    assert find(diagnose(host), "mindspore start").found == reason


def test_mindspore_is_started_on_the_device_unless_that_is_broken(tmp_path: Path) -> None:
    programs = Programs(python=ProgramOutput())
    diagnose(make_ascend_host(tmp_path, run=programs), "Ascend")
    diagnose(make_ascend_host(tmp_path, {}, run=programs), "Ascend")
    codes = [command[2] for command in programs.commands if command[1] == "-c"]
    assert "ms.set_device('Ascend')" in codes[0]
    assert codes[1:] == ["import mindspore"]


def test_the_probe_of_ascend_fails_here_by_what_is_missing() -> None:
    probe = BACKENDS["Ascend"].probe
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert "Unsupported device target Ascend" in run.stderr or run.returncode == 0


def test_the_libgomp_that_is_there_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"usr/lib64/libgomp.so.1": ""})
    output = ProgramOutput("cannot allocate memory in static TLS block", "exit code 1")
    finding = find(diagnose(make_host(tmp_path, run=Programs(python=output))), "mindspore start")
    assert "LD_PRELOAD=/usr/lib64/libgomp.so.1" in finding.advice


def test_no_advice_is_without_an_end(tmp_path: Path) -> None:
    """Each is a sentence of its own."""
    broken = make_host(tmp_path, find_version=lambda name: None, run=Programs(), python=(3, 9, 0))
    advice = [row.advice for row in diagnose(broken, "Ascend").findings if row.advice]
    assert len(advice) > 5
    assert [text for text in advice if not text.endswith(".") or not text[0].isupper()] == []


@pytest.mark.parametrize(
    ("governors", "found", "state"),
    [
        (("performance", "performance"), "performance", "ok"),
        (("powersave", "powersave"), "powersave", "hint"),
        (("performance", "schedutil"), "performance on 1, schedutil on 1", "hint"),
    ],
)
def test_the_governor_is_shown(
    tmp_path: Path, governors: tuple[str, ...], found: str, state: str
) -> None:
    host = make_host(tmp_path)
    for number, governor in enumerate(governors):
        name = f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_governor"
        write_files(tmp_path, {name: f"{governor}\n"})
    finding = find(diagnose(host), "governor")
    assert (finding.found, finding.state) == (found, state)
    assert ("cpupower frequency-set -g performance" in finding.advice) == (state == "hint")


def test_little_memory_is_told(tmp_path: Path) -> None:
    host = make_host(tmp_path)
    write_files(tmp_path, {"proc/meminfo": f"MemAvailable: {5 * GIB // 1024} kB\n"})
    finding = find(diagnose(host), "memory")
    assert (finding.found, finding.state) == ("4.5 GB available", "hint")


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    host = make_host(tmp_path)
    group = "sys/fs/cgroup"
    write_files(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            f"{group}/memory.max": f"{3 * GIB}\n",
            f"{group}/memory.current": "0\n",
            f"{group}/cpu.max": "150000 100000\n",
            ".dockerenv": "",
        },
    )
    diagnosis = diagnose(host)
    assert find(diagnosis, "memory").state == "hint"
    cores = find(diagnosis, "cores")
    assert cores.found == "2, 2 hardware threads, in a container, time of 1.5"
    assert "--num_threads 1" in cores.advice


@pytest.mark.parametrize(
    "files",
    [
        {"sys/fs/cgroup/cpu.max": "max 100000\n"},
        {"sys/fs/cgroup/cpu.max": "400000 100000\n"},
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"},
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "x", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "0"},
    ],
)
def test_a_quota_that_limits_nothing_is_fine(tmp_path: Path, files: dict[str, str]) -> None:
    host = make_host(tmp_path)
    write_files(tmp_path, files)
    assert find(diagnose(host), "cores").state == "ok"


@pytest.mark.parametrize(
    ("environ", "state"),
    [
        ({}, "ok"),  # the launcher takes another one
        ({"MASTER_PORT": "auto"}, "ok"),
        ({"MASTER_PORT": "50123"}, "hint"),
        ({"MASTER_PORT": "x"}, "hint"),
        ({"MASTER_PORT": "99999"}, "hint"),
    ],
)
def test_a_port_that_is_taken_is_told(tmp_path: Path, environ: dict[str, str], state: str) -> None:
    host = make_host(tmp_path, environ, is_port_free=lambda port: False)
    assert find(diagnose(host), "launcher port").state == state


def test_the_folder_of_packed_caches_is_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    diagnosis = diagnose(make_host(tmp_path, {"MINDFORMERS_GLM_CACHE": str(folder)}))
    assert find(diagnosis, "cache folder").found.startswith(f"{folder}, ")
    diagnosis = diagnose(make_host(tmp_path, count_free_bytes=lambda folder: GIB))
    assert find(diagnosis, "cache folder").found == "beside the checkpoints, 1.0 GB free"
    assert find(diagnosis, "cache folder").state == "hint"
    folder.write_text("")
    diagnosis = diagnose(make_host(tmp_path, {"MINDFORMERS_GLM_CACHE": str(folder)}))
    assert find(diagnosis, "cache folder").state == "problem"


def test_an_empty_machine_gives_hints_and_no_traceback(tmp_path: Path) -> None:
    host = make_host(tmp_path)
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    diagnosis = diagnose(host)
    assert (diagnosis.can_run, not_ok(diagnosis)) == (True, {"memory": "hint"})


def test_files_that_are_none_are_no_traceback(tmp_path: Path) -> None:
    host = make_ascend_host(tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "meminfo"]:
        path.write_bytes(b"\xff\x00 [\n: / = version=\n")
    assert {row.name for row in diagnose(host, "Ascend").findings} >= {"CANN", "memory", "cores"}
    assert "doctor" not in not_ok(diagnose(host, "Ascend"))


def test_a_check_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Host, name: str) -> str:
        raise RuntimeError("boom")

    monkeypatch.setattr(Host, "read", fail)
    diagnosis = diagnose(make_host(tmp_path))
    failed = [row for row in diagnosis.findings if row.name == "doctor"]
    assert {(row.section, row.found) for row in failed} == {
        (section, "RuntimeError: boom") for section in ("machine", "CPU")
    }
    assert find(diagnosis, "mindspore").state == "ok"


def test_variables_that_are_set_are_told_with_their_effect(tmp_path: Path) -> None:
    environ = {"HCCL_BUFFSIZE": "110", "TASK_QUEUE_ENABLE": "1", "MS_ROLE": "x\x1b[2J" + "y" * 999}
    diagnosis = diagnose(make_host(tmp_path, environ))
    assert find(diagnosis, "HCCL_BUFFSIZE").found.startswith("110: no effect on CPU; MB of device")
    assert find(diagnosis, "TASK_QUEUE_ENABLE").found.startswith("1: no effect; queues")
    assert find(diagnosis, "MS_ROLE").state == "hint"
    assert "\x1b" not in find(diagnosis, "MS_ROLE").found
    assert len(find(diagnosis, "MS_ROLE").found) < 400
    on_ascend = diagnose(make_ascend_host(tmp_path, SET_ENV | environ), "Ascend")
    assert find(on_ascend, "HCCL_BUFFSIZE").found.startswith("110: MB of device memory")


def test_lines_fit_into_eighty_columns(tmp_path: Path) -> None:
    environ = dict.fromkeys((row.name for row in KNOWN_VARIABLES), "0")
    broken = make_host(tmp_path, environ, find_version=lambda name: None, run=Programs())
    lines = list(diagnose(broken, "Ascend").lines(80, with_unset=True))
    assert [line for line in lines if len(line) > 80] == []
    assert lines[-1].startswith("No model can run on Ascend: ")


def test_an_advice_of_several_is_written_once(tmp_path: Path) -> None:
    broken = make_host(tmp_path, find_version=lambda name: None, run=Programs())
    text = "\n".join(diagnose(broken).lines(80))
    assert text.count("not installed") == len(VERSIONS)
    assert text.count("Enter the environment") == 1


def test_all_names_every_variable(tmp_path: Path) -> None:
    diagnosis = diagnose(make_host(tmp_path, {"HCCL_BUFFSIZE": "1"}))
    text = "\n".join(diagnosis.lines(80, with_unset=True))
    assert [row.name for row in KNOWN_VARIABLES if row.name not in text] == []
    assert "TASK_QUEUE_ENABLE" not in "\n".join(diagnosis.lines(80))


def test_json_has_stable_names(tmp_path: Path) -> None:
    found = json.loads(json.dumps(diagnose(make_host(tmp_path, {"RUN_MODE": "x"})).to_dict()))
    assert list(found) == ["version", "device_target", "can_run", "findings", "variables"]
    assert list(found["findings"][0]) == ["section", "name", "found", "state", "advice"]
    assert {row["name"]: row["value"] for row in found["variables"]}["RUN_MODE"] == "x"
    sections = {}
    for row in found["findings"]:
        sections.setdefault(row["section"], []).append(row["name"])
    assert sections == {
        "software": ["python", *VERSIONS, "mindspore start"],
        "machine": ["processor", "cores", "governor", "memory", "cache folder", "launcher port"],
        "CPU": ["operators", "threads", "huge pages"],
        "other devices": ["Ascend"],
        "environment": ["RUN_MODE"],
    }


def run_command(*options: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, "-m", "mindformers_glm", "doctor", *options]
    environ = {**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, env=environ, cwd=REPO)


def test_this_machine_can_run() -> None:
    run = run_command("--device_target", "CPU", "--json")
    found = json.loads(run.stdout)
    assert (run.returncode, found["can_run"], found["device_target"]) == (0, True, "CPU")


def test_an_interpreter_without_packages_is_told_what_is_missing() -> None:
    run = run_command(python=("-S",))
    assert run.returncode == 1
    assert "Traceback" not in run.stdout + run.stderr
    assert "mindspore        not installed" in run.stdout
    assert "No model can run on any device: 6 problems" in run.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["--dtype", "float16"],
        ["--ascend-selftest", "--all"],
        ["--ascend-selftest", "--device_target", "CPU"],
    ],
)
def test_options_that_do_not_go_with_the_selftest_are_refused(words: list[str]) -> None:
    parser = SentenceParser()
    add_arguments(parser)
    with pytest.raises(ConfigError, match="--ascend-selftest"):
        run(parser.read(words))
