"""Quantized checkpoints through the engine, run_mindformer.py and upstream's own callers.

Answers are compared with those of Hugging Face's network with a card's arithmetic in its linear
layers (tests/model/stored_oracle.py).
"""

import ast
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import mindspore as ms
import numpy as np
import pytest
from mindformers import AutoConfig, AutoModel
from mindformers.core.context.build_context import MFContextOperator
from transformers import AutoTokenizer

from mindformers_glm import LLM, Glm4ForCausalLM, SamplingParams
from mindformers_glm.backends.ascend.footprint import count_memory
from mindformers_glm.core.errors import UnsupportedError
from tests import quantized_folders
from tests.ascend_contract.python_process import run_python
from tests.ascend_contract.steps import BLOCK_SIZE, NUM_BLOCKS, KnownSequences
from tests.ascend_contract.upstream_callers import FLOAT32, kernels_of_generate
from tests.ascend_contract.vllm_model import VllmModel, make_config
from tests.conftest import relative_error
from tests.model import hf_oracle, stored_oracle
from tests.model.chatglm_layout import to_chatglm

ON_ASCEND: dict[str, Any] = FLOAT32 | {
    "device_target": "Ascend",
    "device_options": {"mode": "PYNATIVE_MODE"},
    "block_size": BLOCK_SIZE,
}
NUM_TOKENS = 6
GREEDY = SamplingParams(do_sample=False, max_new_tokens=NUM_TOKENS, ignore_eos=True)
PROMPTS = [
    np.random.default_rng(n).integers(2, 250, length).tolist()
    for n, length in enumerate((3, 9, 21))
]
CASES = ("slim-w8a8", "slim-w8a8-dynamic")


class Made:
    """A float checkpoint, the quantized one of the same norms and tables, and what that answers."""

    def __init__(self, root: Path, case: str, dialect: str = "glm4") -> None:
        model_type = "glm" if dialect == "chatglm" else dialect
        self.source = hf_oracle.save_random_checkpoint(
            root / "hf", model_type=model_type, vocab_size=256
        )
        is_chatglm = dialect == "chatglm"
        stored = to_chatglm(self.source, root / "stored") if is_chatglm else self.source
        self.folder = root / "quantized"
        quantized_folders.write(stored, self.folder, quantized_folders.WITH_ACTIVATIONS[case])
        self.model = hf_oracle.load(self.source)
        stored_oracle.put_into(self.model, self.folder)

    def answers(self) -> list[list[int]]:
        return [hf_oracle.greedy_tokens_of(self.model, ids, NUM_TOKENS) for ids in PROMPTS]


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def card(with_ascend: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with a card; the context that a network leaves in the process is taken away."""
    monkeypatch.setattr(MFContextOperator, "_instance", None)
    with kernels_of_generate(), mock.patch.dict(os.environ):
        yield
    MFContextOperator.reset_instance()


def test_the_engine_has_its_tokens_and_logits(made: Made, with_ascend: Counter[str]) -> None:
    sizes = {"max_num_batched_tokens": 8, "max_num_seqs": 3, "max_model_len": 64}
    with LLM(made.folder, **ON_ASCEND, **sizes) as llm:
        outputs = llm.generate(PROMPTS, GREEDY)
        assert [list(output.token_ids) for output in outputs] == made.answers()
        text = PROMPTS[2] + made.answers()[2]
        expected = hf_oracle.logits_of(made.model, text)
        assert relative_error(llm.logits(text), expected) < 1e-4
        parameters = llm.engine.runner.network.get_parameters()
        held = sum(parameter.nbytes for parameter in parameters)
        # Norms are float32 whatever the type, as the weights are here; two scalars for a layer.
        planned = count_memory(llm.config, llm.settings).weights_bytes
        assert 0 <= held - planned <= 2 * 4 * 2 * 4


def test_upstreams_generate_has_them(made: Made, card: None) -> None:
    for network in (_by_config(made.folder), _by_from_pretrained(made.folder)):
        for prompt, expected in zip(PROMPTS, made.answers(), strict=True):
            found = network.generate(prompt, do_sample=False, max_new_tokens=NUM_TOKENS)
            assert found[0].tolist() == prompt + expected


def test_weights_that_the_environment_asks_for_are_for_the_engine_alone(
    made: Made, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENABLE_QUANT", "1")
    monkeypatch.setenv("QUANT_WEIGHT_PATH", str(made.folder))
    with LLM(made.source, **ON_ASCEND, max_model_len=64) as llm:
        outputs = llm.generate(PROMPTS, GREEDY)
        assert [list(output.token_ids) for output in outputs] == made.answers()
    with pytest.raises(UnsupportedError, match="unset ENABLE_QUANT and ENABLE_SPARSE"):
        _by_config(made.source)


def _by_config(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(str(folder))
    for key, value in (ON_ASCEND | {"pretrained_model_dir": str(folder)}).items():
        setattr(config, key, value)
    network = AutoModel.from_config(config)
    network.load_weights(str(folder))
    return network


def _by_from_pretrained(folder: Path) -> Any:
    return Glm4ForCausalLM.from_pretrained(str(folder), **ON_ASCEND)


def test_scales_of_an_int8_cache_are_refused_unless_they_are_left_out(
    card: None, tmp_path: Path
) -> None:
    source = hf_oracle.save_random_checkpoint(tmp_path / "hf", vocab_size=256)
    folder = quantized_folders.write_kv_scales(source, tmp_path / "quantized")
    with pytest.raises(UnsupportedError, match="int8 KV cache"):
        _by_from_pretrained(folder)
    model = hf_oracle.load(source)
    stored_oracle.put_into(model, folder)
    network = Glm4ForCausalLM.from_pretrained(str(folder), **ON_ASCEND, kv_cache_dtype="float32")
    found = network.generate(PROMPTS[1], do_sample=False, max_new_tokens=NUM_TOKENS)
    assert found[0].tolist() == PROMPTS[1] + hf_oracle.greedy_tokens_of(
        model, PROMPTS[1], NUM_TOKENS
    )


@pytest.mark.parametrize("dialect", ["glm", "chatglm"])
def test_vllms_calls_have_its_logits(dialect: str, card: None, tmp_path: Path) -> None:
    made = Made(tmp_path, "slim-w8a8", dialect)
    config = make_config(made.folder, ms.float32, "float32", 128, BLOCK_SIZE)
    model = VllmModel(config, (NUM_BLOCKS, BLOCK_SIZE, 2, 16), num_layers=2)
    model.load_weights()
    errors = KnownSequences(made.source, made.folder).errors(model.compute_logits)
    assert max(errors.values()) < 1e-4, errors


def test_weights_of_another_quantization_are_refused(made: Made, card: None) -> None:
    config = AutoConfig.from_pretrained(str(made.source))
    for key, value in ON_ASCEND.items():
        setattr(config, key, value)
    network = AutoModel.from_config(config)
    with pytest.raises(UnsupportedError, match="is quantized in the checkpoint and the network"):
        network.load_weights(str(made.folder))
    with pytest.raises(UnsupportedError, match="is float in the checkpoint and the network"):
        _by_config(made.folder).load_weights(str(made.source))


def test_run_mindformer_answers_alike(tmp_path: Path) -> None:
    made = Made(tmp_path, "slim-w8a8")
    tokenizer = AutoTokenizer.from_pretrained(made.folder)
    tokens = tokenizer("hello")["input_ids"]
    expected = tokenizer.decode(hf_oracle.greedy_tokens_of(made.model, tokens, NUM_TOKENS))
    words = (
        *("--config", "configs/glm4/predict_glm4.yaml", "--run_mode", "predict"),
        *("--use_parallel", "False", "--device_target", "Ascend", "--context.mode", "1"),
        *("--max_new_tokens", str(NUM_TOKENS), "--do_sample", "False", "--max_model_len", "64"),
        *("--model.model_config.params_dtype", "float32"),
        *("--model.model_config.compute_dtype", "float32"),
        *("--pretrained_model_dir", str(made.folder), "--predict_data", "hello"),
    )
    run_python("-m", "tests.ascend_contract.predict", *words, folder=tmp_path)
    saved = (tmp_path / "text_generation_result.txt").read_text("utf-8")
    (answer,) = ast.literal_eval(saved)
    assert answer["text_generation_text"] == [expected], json.dumps(answer)
