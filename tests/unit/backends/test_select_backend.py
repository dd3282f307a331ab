"""backends.py: which device is chosen, and what is said about it."""

import pytest

from mindformers_glm.backends import select_backend
from mindformers_glm.core.errors import UnsupportedError


def test_cpu_is_chosen_and_named_where_there_is_no_ascend(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert select_backend(None, has_ascend=lambda: False).name == "CPU"
    assert "device_target is not set: running on CPU" in capsys.readouterr().err


def test_a_device_that_is_named_is_not_commented_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert select_backend("CPU").name == "CPU"
    assert capsys.readouterr().err == ""


def test_ascend_says_in_one_sentence_that_it_is_not_there_yet() -> None:
    with pytest.raises(UnsupportedError, match=r"Ascend is not implemented in this version.*CPU"):
        select_backend(None, has_ascend=lambda: True)


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match="must be one of CPU, Ascend, got 'GPU'"):
        select_backend("GPU")
