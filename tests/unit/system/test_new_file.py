"""Files that appear whole or not at all, and what of temporary ones is removed."""

from pathlib import Path

import pytest

from mindformers_glm.system.new_file import new_file


@pytest.mark.parametrize(
    ("name", "is_abandoned"),
    [
        (".a.jsonl.0123456789abcdef.tmp", True),
        (".a.jsonl.old.tmp", False),  # the user's
        (".b.a.jsonl.0123456789abcdef.tmp", False),  # of b.a.jsonl
        ("a.jsonl.0123456789abcdef.tmp", False),
    ],
)
def test_only_what_this_program_has_left_of_the_file_is_removed(
    tmp_path: Path, name: str, is_abandoned: bool
) -> None:
    (tmp_path / name).touch()
    with new_file(tmp_path / "a.jsonl"):
        pass
    assert (tmp_path / name).exists() is not is_abandoned
