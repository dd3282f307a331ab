"""A folder without a tokenizer: token ids run as they do beside one, every text is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm import LLM
from mindformers_glm.config.run_config import load_run_config
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.serving.predict import create_llm
from tests.model import hf_oracle
from tests.unit.config.predict_arguments import predict_arguments

PROMPT = [5, 6, 7]
SHORT = SamplingParams(max_new_tokens=4, do_sample=False, ignore_eos=True)
WORDS = "has no tokenizer.json and no tokenizer.model, so it takes token ids only"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = hf_oracle.save_random_checkpoint(tmp_path_factory.mktemp("ids"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, max_model_len=32) as llm:
        yield llm


def test_token_ids_run_by_every_method(llm: LLM, folder: Path) -> None:
    (whole,) = llm.generate([PROMPT], SHORT)
    assert (whole.finish_reason, len(whole.token_ids), whole.text) == ("length", 4, "")
    streamed = list(llm.stream(PROMPT, SHORT))
    assert list(streamed[-1].token_ids) == list(whole.token_ids)
    expected = hf_oracle.logits(folder, PROMPT)
    np.testing.assert_allclose(llm.logits(PROMPT), expected, rtol=1e-3, atol=1e-4)
    assert whole.token_ids[0] == expected[-1].argmax()


@pytest.mark.parametrize("prompt", ["你好", "", [{"role": "user", "content": "x"}]])
def test_text_is_refused_in_one_sentence_and_ids_beside_it_run(llm: LLM, prompt: object) -> None:
    refused, run = llm.generate([prompt, PROMPT], SHORT)  # type: ignore[list-item]
    assert refused.finish_reason == "error"
    assert WORDS in str(refused.error)
    assert run.finish_reason == "length"


def test_chat_and_stop_texts_are_refused_and_stop_ids_are_not(llm: LLM) -> None:
    refused = llm.chat([{"role": "user", "content": "x"}], SHORT)
    assert WORDS in str(refused.error)
    (refused,) = llm.generate([PROMPT], SamplingParams(stop="x", max_new_tokens=4))
    assert "stop looks for text" in str(refused.error)
    second = llm.generate([PROMPT], SHORT)[0].token_ids[1]
    params = SamplingParams(max_new_tokens=4, do_sample=False, stop_token_ids=[second])
    assert llm.generate([PROMPT], params)[0].finish_reason == "stop"


@pytest.mark.parametrize("apply_chat_template", [True, False])
def test_text_is_refused_whatever_is_said_of_templates(
    folder: Path, apply_chat_template: bool
) -> None:
    with LLM(folder, max_model_len=32, apply_chat_template=apply_chat_template) as llm:
        assert WORDS in str(llm.generate("x", SHORT)[0].error)


def test_a_tokenizer_config_alone_is_no_tokenizer(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}"}))
    with LLM(copy, max_model_len=32) as llm:
        assert WORDS in str(llm.generate("x", SHORT)[0].error)
        assert llm.generate([PROMPT], SHORT)[0].finish_reason == "length"


def test_predict_refuses_before_the_weights_are_loaded(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "model.safetensors").unlink()
    arguments = predict_arguments("--pretrained_model_dir", str(copy), "--predict_data", "x")
    with pytest.raises(CheckpointError, match="so it takes token ids only"):
        create_llm(load_run_config(arguments, environ={}))
