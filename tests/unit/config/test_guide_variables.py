"""The ChatGLM2 guide's variables for quantized weights."""

from pathlib import Path

import pytest

from mindformers_glm.config.environment import quantized_folder
from mindformers_glm.core.errors import ConfigError


@pytest.mark.parametrize("environ", [{}, {"ENABLE_QUANT": "0"}, {"ENABLE_SPARSE": ""}])
def test_nothing_is_asked_for(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert quantized_folder(environ) is None
    assert capsys.readouterr().err == ""


def test_a_path_alone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantized_folder({"QUANT_WEIGHT_PATH": str(tmp_path)}) is None
    assert "QUANT_WEIGHT_PATH is not used without ENABLE_QUANT=1" in capsys.readouterr().err


def test_quantized_weights_are_those_of_the_path(tmp_path: Path) -> None:
    environ = {"ENABLE_QUANT": "1", "QUANT_WEIGHT_PATH": str(tmp_path)}
    assert quantized_folder(environ) == tmp_path


def test_sparse_weights_are_those_that_were_compressed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {
        "ENABLE_SPARSE": "1",
        "QUANT_WEIGHT_PATH": str(tmp_path),
        "COMPRESS_WEIGHT_PATH": "/nowhere",
    }
    assert quantized_folder(environ) == tmp_path
    told = capsys.readouterr().err
    assert "COMPRESS_WEIGHT_PATH is not read" in told
    assert "what QUANT_WEIGHT_PATH holds runs, which should be the W8A8S weights" in told


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"ENABLE_QUANT": "1"}, "ENABLE_QUANT=1 needs QUANT_WEIGHT_PATH"),
        ({"ENABLE_SPARSE": "1"}, "ENABLE_SPARSE=1 needs QUANT_WEIGHT_PATH"),
        ({"ENABLE_SPARSE": "1", "COMPRESS_WEIGHT_PATH": "/tmp"}, "needs QUANT_WEIGHT_PATH"),
        ({"ENABLE_QUANT": "yes"}, "must be 0 or 1, got 'yes'"),
        ({"ENABLE_QUANT": "1", "ENABLE_SPARSE": "1"}, "exclude each other"),
        ({"ENABLE_QUANT": "1", "QUANT_WEIGHT_PATH": "/no/such"}, "/no/such is none"),
    ],
)
def test_what_contradicts_itself_is_one_sentence(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        quantized_folder(environ)
    assert words in str(caught.value)
    assert str(caught.value).count(". ") == 0
