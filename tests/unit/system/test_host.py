"""What a machine is asked, and what comes of it where it does not answer."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from mindformers_glm.system.host import (
    Host,
    find_package_version,
    has_module,
    is_port_free,
    run_program,
)


def test_a_program_gives_its_output() -> None:
    output = run_program(
        (sys.executable, "-c", "import os; print(os.environ['A'])"), 20, {"A": "b"}
    )
    assert (output.text, output.problem) == ("b\n", "")


def test_a_program_that_fails_gives_all_it_said() -> None:
    code = "import sys; print('out'); sys.exit('err')"
    output = run_program((sys.executable, "-c", code), 20, {})
    assert (output.text.split(), output.problem) == (["out", "err"], "exit code 1")


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    script = tmp_path / "npu-smi"
    script.write_text(f"#!/bin/sh\nsleep 99 & echo $! > {tmp_path}/child\nwait\n")
    script.chmod(0o755)
    begin = time.monotonic()
    output = run_program((str(script),), 0.5, os.environ)
    assert output.problem == "no answer in 0.5 s"
    assert time.monotonic() - begin < 10
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _is_running(child):
        time.sleep(0.02)
    assert not _is_running(child)


def _is_running(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("name", "problem"), [("/nowhere/at/all", "not found"), ("\0", "embedded null byte")]
)
def test_a_program_that_cannot_be_started_says_why(name: str, problem: str) -> None:
    assert run_program((name,), 5, {}).problem == problem


def test_a_file_without_permission_to_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("#!/bin/sh\n")
    assert run_program((str(tmp_path / "x"),), 5, {}).problem == "Permission denied"


def test_files_are_those_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b" \xffx \n")
    (tmp_path / "b1").mkdir()
    host = Host({}, tmp_path)
    assert (host.read("/a"), host.read("b1"), host.read("none"), host.read("\0")) == (
        "\ufffdx",
        None,
        None,
        None,
    )
    assert (host.exists("a"), host.exists("/c")) == (True, False)
    assert (host.can_use("a"), host.can_use("c"), host.can_use("\0")) == (True, False, False)
    assert host.list_names("/", "[ab]*") == ["a", "b1"]
    assert host.list_names("none", "*") == []
    assert host.free_bytes("not/there/yet") == host.free_bytes("/") != None  # noqa: E711


def test_programs_are_those_that_may_be_run(tmp_path: Path) -> None:
    for folder, mode in (("one", 0o644), ("two", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text("")
        (tmp_path / folder / "x").chmod(mode)
    assert Host({"PATH": "/one:/two"}, tmp_path).find_program("x") == str(tmp_path / "two/x")
    assert Host({"PATH": "/one"}, tmp_path).find_program("x") is None
    assert Host({}, tmp_path).find_program("x", ["/two"]) == str(tmp_path / "two/x")


@pytest.mark.parametrize(
    ("files", "environ", "is_container"),
    [
        ({}, {}, False),
        ({"proc/1/cgroup": "0::/init.scope"}, {}, False),
        ({".dockerenv": ""}, {}, True),
        ({"run/.containerenv": ""}, {}, True),
        ({"proc/1/cgroup": "4:memory:/kubepods/burstable/pod1"}, {}, True),
        ({}, {"container": "podman"}, True),
    ],
)
def test_containers_are_known_by_what_they_leave(
    tmp_path: Path, files: dict[str, str], environ: dict[str, str], is_container: bool
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert Host(environ, tmp_path).is_container() is is_container


def test_packages_modules_and_ports() -> None:
    assert find_package_version("numpy") == __import__("numpy").__version__
    assert find_package_version("no-such-package") is None
    assert (has_module("json"), has_module("no_such_module"), has_module("no.such")) == (
        True,
        False,
        False,
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not is_port_free(taken.getsockname()[1])
    assert not is_port_free(99_999)
