"""Answers that outlive a run that was killed."""

from pathlib import Path

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.serving.ray.journal import Journal, KeptOutput, keep

_OUTPUT = KeptOutput("text\u2028", "stop", None, [1, 2], [3])


def test_a_journal_gives_back_what_it_was_given(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "r.txt", {"prompts": ["a", "b", "c"]})
    for index in (2, 0):
        journal.add(index, keep(_OUTPUT))
    again = Journal(tmp_path / "r.txt", {"prompts": ["a", "b", "c"]})
    assert again.outputs == {2: _OUTPUT, 0: _OUTPUT}


def test_a_line_that_was_cut_is_asked_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "r.txt", {})
    journal.add(0, keep(_OUTPUT))
    journal.add(1, keep(_OUTPUT))
    journal.path.write_bytes(journal.path.read_bytes()[:-9])
    again = Journal(tmp_path / "r.txt", {})
    assert list(again.outputs) == [0]
    again.add(1, keep(_OUTPUT))
    assert list(Journal(tmp_path / "r.txt", {}).outputs) == [0, 1]


def test_a_journal_of_other_prompts_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "r.txt", {"prompts": ["a"]}).add(0, keep(_OUTPUT))
    with pytest.raises(ConfigError, match="other prompts or settings"):
        Journal(tmp_path / "r.txt", {"prompts": ["b"]})


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"index": 1}'])
def test_a_damaged_line_is_a_sentence(line: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "r.txt", {})
    journal.add(0, keep(_OUTPUT))
    with journal.path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ConfigError, match="is damaged at"):
        Journal(tmp_path / "r.txt", {})


def test_nothing_is_left_at_the_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "r.txt", {})
    journal.add(0, keep(_OUTPUT))
    journal.end()
    assert list(tmp_path.iterdir()) == []
