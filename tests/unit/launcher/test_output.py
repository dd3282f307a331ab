"""What is quoted of a failed process's log."""

import os
from pathlib import Path

import pytest

from mindformers_glm.launcher.output import OutputRelay, last_error_lines

MINDSPORE = "DISTRIBUTED(17700,7f10,python):2026-11-21-12:00:06.784.077 [mindspore/x.cc:83]"
TRACEBACK = """\
Traceback (most recent call last):
  File "ask.py", line 7, in <module>
    raise ValueError("bad")
ValueError: bad luck
"""
INIT_FAILED = """\
RuntimeError: The total number of timed out node is 1. Timed out node list is: {1}

----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
mindspore/ccsrc/cluster/topology/meta_server_node.cc:549 UpdateTopoState
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("\n\n", []),
        ("one\ntwo\n\nthree\nfour\n", ["two", "three", "four"]),
        ("note\nerror: The folder x does not exist.\n", ["error: The folder x does not exist."]),
        (TRACEBACK, ["ValueError: bad luck"]),
        (
            TRACEBACK + "safetensors_rust.SafetensorError: x\n",
            ["safetensors_rust.SafetensorError: x"],
        ),
        (INIT_FAILED, [INIT_FAILED.splitlines()[0]]),
        (
            "Fatal Python error: Segmentation fault\n\nThread 1:\n",
            ["Fatal Python error: Segmentation fault"],
        ),
        (
            "terminate called after throwing an instance of 'x'\nAborted\n",
            ["terminate called after throwing an instance of 'x'"],
        ),
        (f"[ERROR] {MINDSPORE} Launch] It failed.\n", ["It failed."]),
        (f"text\n[WARNING] {MINDSPORE} Start] x\n[INFO] {MINDSPORE} y] z\n", ["text"]),
        ("10%\r100%\n", ["100%"]),
        ("x" * 600, ["x" * 500]),
    ],
)
def test_the_lines_that_tell_an_error_are_found(
    text: str, expected: list[str], tmp_path: Path
) -> None:
    log = tmp_path / "worker_0.log"
    log.write_text(text)
    assert last_error_lines(log) == expected


def test_a_log_that_is_gone_or_not_text_does_no_harm(tmp_path: Path) -> None:
    assert last_error_lines(tmp_path / "worker_0.log") == []
    (tmp_path / "worker_1.log").write_bytes(b"\xff\xfe error\n")
    assert last_error_lines(tmp_path / "worker_1.log") == ["\ufffd\ufffd error"]


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "worker_0.log"
    log.write_text("error: long ago\n" + "step\n" * 20_000)
    assert last_error_lines(log) == ["step"] * 3


@pytest.mark.parametrize("cut", range(1, 24))
def test_that_it_was_interrupted_is_left_to_the_launcher(
    cut: int, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    said = b"saved\ninterrupted\nintact\n"
    relay = OutputRelay(tmp_path / "worker_0.log")
    out = os.dup(relay.stdout)
    relay.begin()
    relay.is_ending = True
    for piece in (said[:cut], said[cut:]):
        os.write(out, piece)
        assert relay.forward(1)
    os.close(out)
    relay.forward(1)
    assert capfdbinary.readouterr().out == b"saved\nintact\n"
    assert (tmp_path / "worker_0.log").read_bytes() == said
