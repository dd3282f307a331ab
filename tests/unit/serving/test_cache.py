"""`mindformers-glm cache` in this process."""

from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.serving.cli import main
from mindformers_glm.weights.packed_cache import FOLDER_NAME
from mindformers_glm.weights.packed_file import write_file
from mindformers_glm.weights.packed_header import lay_out

ARRAYS = {"decoder.weight": np.arange(20_000, dtype=np.uint16)}
KEY = {"identity": "1234", "format": {"params_dtype": "bfloat16", "layout": "test"}}


@pytest.fixture
def cached_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint folder with one cache beside it."""
    monkeypatch.delenv("MINDFORMERS_GLM_CACHE", raising=False)
    (tmp_path / FOLDER_NAME).mkdir()
    write_file(cache_file(tmp_path), lay_out("/models/GLM", KEY, ARRAYS), ARRAYS)
    return tmp_path


def cache_file(folder: Path) -> Path:
    return folder / FOLDER_NAME / "bfloat16-test.glmpack"


def damage(folder: Path, position: int) -> None:
    content = bytearray(cache_file(folder).read_bytes())
    content[position] ^= 1
    cache_file(folder).write_bytes(content)


@pytest.mark.parametrize("place", [".", FOLDER_NAME])
def test_list_describes_each_file(cached_folder, capsys, place):
    assert main(["cache", "list", str(cached_folder / place)]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[0] == str(cache_file(cached_folder))
    for text in ("/models/GLM", "params_dtype bfloat16, layout test", "2.0 MB"):
        assert text in output


def test_list_counts_the_layers_of_a_quantized_checkpoint(cached_folder, capsys):
    layers = {f"decoder.layers.{i}.mlp.linear_fc1": {"name": "w8a8_static"} for i in range(40)}
    schemes = {"quantization": None, "stored_schemes": layers | {"output_layer": None}}
    key = {"identity": "1234", "format": KEY["format"] | schemes | {"shifted_norms": ["a", "b"]}}
    write_file(cache_file(cached_folder), lay_out("/models/GLM", key, ARRAYS), ARRAYS)
    assert main(["cache", "list", str(cached_folder)]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("  format"))
    assert line.endswith("stored_schemes 40 w8a8_static and 1 float, shifted_norms 2 layers")
    assert "None" not in line


def test_list_survives_a_format_of_another_program(cached_folder, capsys):
    key = {"identity": "1234", "format": {"stored_schemes": {"a": "w8", "b": 3}, "layout": [1]}}
    write_file(cache_file(cached_folder), lay_out("/models/GLM", key, ARRAYS), ARRAYS)
    assert main(["cache", "list", str(cached_folder)]) == 0
    assert "/models/GLM" in capsys.readouterr().out


def test_the_environment_names_the_folder(cached_folder, capsys, monkeypatch):
    monkeypatch.setenv("MINDFORMERS_GLM_CACHE", str(cached_folder / FOLDER_NAME))
    assert main(["cache", "list"]) == 0
    assert "/models/GLM" in capsys.readouterr().out


def test_clear_removes_the_files_and_nothing_else(cached_folder, capsys):
    (cached_folder / FOLDER_NAME / "notes.txt").write_text("mine")
    assert main(["cache", "clear", str(cached_folder)]) == 0
    assert "removed" in capsys.readouterr().out
    assert [path.name for path in (cached_folder / FOLDER_NAME).iterdir()] == ["notes.txt"]
    assert main(["cache", "clear", str(cached_folder)]) == 0
    assert "no packed cache" in capsys.readouterr().out


def test_verify_tells_sound_from_damaged(cached_folder, capsys):
    assert main(["cache", "verify", str(cached_folder)]) == 0
    assert "sound" in capsys.readouterr().out
    damage(cached_folder, -20_000)
    assert main(["cache", "verify", str(cached_folder)]) == 1
    assert "decoder.weight" in capsys.readouterr().out


def test_a_damaged_header_is_listed(cached_folder, capsys):
    damage(cached_folder, 60)
    assert main(["cache", "list", str(cached_folder)]) == 1
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["empty"], ["list", "--all"]])
def test_a_wrong_command_line_says_how(cached_folder, capsys, arguments):
    assert main(["cache", *arguments]) == 2
    assert "list|verify|clear" in capsys.readouterr().err


def test_a_folder_is_needed(cached_folder, capsys):
    assert main(["cache", "list"]) == 1
    assert "MINDFORMERS_GLM_CACHE is not set" in capsys.readouterr().err
    assert main(["cache", "list", str(cached_folder / "missing")]) == 1
    assert "is not a folder" in capsys.readouterr().err


def test_a_variable_that_names_a_file_is_refused(cached_folder, capsys, monkeypatch):
    monkeypatch.setenv("MINDFORMERS_GLM_CACHE", str(cache_file(cached_folder)))
    assert main(["cache", "list"]) == 1
    assert "MINDFORMERS_GLM_CACHE must name a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["cache", "--help"], ["cache", "list", "-h"], ["inspect", "-h"]]
)
def test_help_of_a_subcommand_is_its_own(arguments, capsys):
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"usage: mindformers-glm {arguments[0]} ")


def test_a_folder_of_an_unknown_user_is_no_folder(capsys):
    assert main(["cache", "list", "~nobody-of-this-name/x"]) == 1
    assert "is not a folder" in capsys.readouterr().err
