"""The terminal that captures and checks of the command line are made with."""

import sys

import pytest

from scripts.bench.terminal import Screen, run_in_terminal


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("ab\r\ncd", ["ab", "cd"]),
        ("12345678", ["12345", "678"]),
        ("1234北5", ["1234", "北5"]),
        ("北京\rab", ["ab京"]),
        ("bar\r   \r\r\ntext\r\n", ["", "text", ""]),
    ],
)
def test_screen_shows_what_a_terminal_of_5_columns_would(text: str, lines: list[str]) -> None:
    screen = Screen(5)
    screen.write(text)
    assert screen.lines == lines


def test_program_sees_a_terminal_and_its_output_is_timed() -> None:
    program = (
        "import sys, time; print(sys.stdin.isatty(), flush=True); time.sleep(0.3); print('北')"
    )
    run = run_in_terminal([sys.executable, "-c", program])
    assert (run.exit_code, run.text) == (0, "True\r\n北\r\n")
    assert run.time_of("北") - run.time_of("True") > 0.25
    assert run.peak_bytes > 2**20
