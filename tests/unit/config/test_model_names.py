"""A name on a hub where a folder is wanted: what `download` has made, or the command for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mindformers_glm import LLM
from mindformers_glm.config.model_names import locate_folder
from mindformers_glm.config.run_config import load_run_config
from mindformers_glm.core.errors import CheckpointError, ConfigError
from mindformers_glm.serving.inspect.command import inspect_checkpoint
from tests.unit.config.predict_arguments import predict_arguments
from tests.unit.tiny_config import TINY_CONFIG

REPO = Path(__file__).resolve().parents[3]
# What users write -> the folder `download` makes of it.
NAMES = {
    "zai-org/GLM-4-9B-0414": "GLM-4-9B-0414",
    "THUDM/GLM-4-9B-0414": "GLM-4-9B-0414",
    "ZhipuAI/chatglm3-6b": "chatglm3-6b",
    "thudm/ChatGLM2-6B": "chatglm2-6b",
    "zai-org/GLM-Z1-9B-0414/": "GLM-Z1-9B-0414",
    "glm-4-9b-chat": "glm-4-9b-chat",
    "GLM-4-9b-hf": "glm-4-9b-hf",
    "someone/glm-4-9b-finetuned": "glm-4-9b-finetuned",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "folder"), NAMES.items())
def test_a_name_is_the_folder_that_download_has_made(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, folder: str
) -> None:
    (here / folder).mkdir()
    assert Path(locate_folder(name)).resolve() == here / folder
    line = capsys.readouterr().err
    # A name that is the folder's own is a path like any other.
    assert line.count("\n") == (0 if name == folder else 1)
    assert name == folder or str(here / folder) in line


@pytest.mark.parametrize(("name", "folder"), NAMES.items())
def test_a_name_that_is_not_there_gets_the_command(here: Path, name: str, folder: str) -> None:
    with pytest.raises(ConfigError) as caught:
        locate_folder(name)
    sentence = str(caught.value)
    wanted = folder if "someone" not in name else name
    assert f"`mindformers-glm download {wanted}` puts it there" in sentence
    assert str(here / folder) in sentence


@pytest.mark.parametrize(
    "path",
    [
        "/models/glm",
        "./glm",
        "../a/b",
        "~/glm",
        "a/b/c",
        "models/glm",
        "my-model",
        "",
        "a b/c",
        "x/",
    ],
)
def test_what_is_a_path_stays_one(here: Path, path: str) -> None:
    (here / "models").mkdir()
    (here / "glm").mkdir()  # which is not meant by models/glm
    assert locate_folder(path) == path


def test_a_folder_of_the_same_name_wins(here: Path) -> None:
    (here / "THUDM" / "chatglm3-6b").mkdir(parents=True)
    (here / "chatglm3-6b").mkdir()
    assert locate_folder("THUDM/chatglm3-6b") == "THUDM/chatglm3-6b"


def test_all_doors_take_a_name(here: Path) -> None:
    (here / "GLM-4-9B-0414").mkdir()
    (here / "GLM-4-9B-0414" / "config.json").write_text(json.dumps(TINY_CONFIG))
    words = r"^GLM-4-9B-0414 holds no \*.safetensors"
    for name in ("zai-org/GLM-4-9B-0414", Path("THUDM/GLM-4-9B-0414")):
        with pytest.raises(CheckpointError, match=words):
            LLM(name)
        with pytest.raises(CheckpointError, match=words):
            inspect_checkpoint(name)
        config = load_run_config(
            predict_arguments("--pretrained_model_dir", str(name), "--predict_data", "x"),
            environ={},
        )
        assert config.pretrained_model_dir == Path("GLM-4-9B-0414")


def test_the_command_that_cuts_takes_a_name_too(here: Path) -> None:
    script = str(REPO / "scripts" / "process_weights.py")
    run = subprocess.run(
        [sys.executable, script, "--model_path", "THUDM/chatglm3-6b", "--tp_size", "2"],
        cwd=here,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "`mindformers-glm download chatglm3-6b`" in run.stderr
