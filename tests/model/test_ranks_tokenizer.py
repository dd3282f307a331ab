"""The shipped checkpoint with its vocabulary in glm-4-9b-chat's kind of file."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.serving.inspect.command import inspect_checkpoint
from mindformers_glm.tokenizer.detokenizer import byte_level_alphabet
from tests.conftest import MINI

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def ranks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "glm4-mini"
    shutil.copytree(MINI, folder, ignore=shutil.ignore_patterns("tokenizer.json"))
    vocabulary = json.loads((MINI / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    byte_of = byte_level_alphabet()
    lines = [
        base64.b64encode(bytes(byte_of[char] for char in token)) + b" %d\n" % rank
        for token, rank in sorted(vocabulary.items(), key=lambda entry: entry[1])
    ]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return folder


def test_the_answers_are_the_same(ranks_folder: Path, questions: list[dict[str, Any]]) -> None:
    params = SamplingParams(do_sample=False, max_new_tokens=40)
    asked = [question["messages"] for question in questions if "tools" not in question][::20]
    found = []
    for checkpoint in (ranks_folder, MINI):
        with LLM(checkpoint, max_model_len=512, apply_chat_template=True) as llm:
            outputs = llm.generate(asked, params)
            streamed = "".join(output.delta_text for output in llm.stream(asked[0], params))
            assert streamed == outputs[0].text == llm.tokenizer.decode(outputs[0].token_ids)
            found.append([(o.prompt_token_ids, o.token_ids, o.text) for o in outputs])
    assert found[0] == found[1]
    assert all(text for _, _, text in found[0])


def test_the_folder_is_described(ranks_folder: Path) -> None:
    assert "tokenizer.model (ranks)" in inspect_checkpoint(ranks_folder)
