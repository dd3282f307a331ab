"""The registered classes on Ascend: upstream's network, for upstream's own callers."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindformers import AutoConfig, AutoModel
from mindformers.core.context.build_context import MFContextOperator
from mindformers.models.glm4 import configuration_glm4, modeling_glm4_infer
from mindformers.tools.register import MindFormerConfig
from mindspore import Tensor, mutable, ops
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from mindformers_glm import Glm4ForCausalLM, InferenceGlm4ForCausalLM
from mindformers_glm.backends.ascend.step_inputs import make_upstream_step
from mindformers_glm.core.errors import CheckpointError, ConfigError, UnsupportedError
from tests.ascend_contract.python_process import run_python
from tests.ascend_contract.steps import BLOCK_SIZE, STEPS, Sequences
from tests.ascend_contract.upstream_callers import (
    ENVIRONMENT,
    FLOAT32,
    NUM_TOKENS,
    PROMPTS,
    kernels_of_generate,
)
from tests.model import hf_oracle
from tests.model.chatglm_layout import to_chatglm

ON_ASCEND = FLOAT32 | {
    "device_target": "Ascend",
    "device_options": {"mode": "PYNATIVE_MODE"},
    "block_size": BLOCK_SIZE,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each dialect, whose every token is a byte; chatglm's is glm's."""
    root = tmp_path_factory.mktemp("folders")
    made = {
        name: hf_oracle.save_random_checkpoint(root / name, model_type=name, vocab_size=256)
        for name in ("glm4", "glm")
    }
    made["chatglm"] = to_chatglm(made["glm"], root / "chatglm")
    for folder in made.values():  # upstream's pipeline pads a single prompt too
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "!"}))
    return made


@pytest.fixture
def card(with_ascend: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with a card; the context that a network leaves in the process is taken away."""
    with kernels_of_generate():
        yield
    MFContextOperator.reset_instance()


def test_upstreams_trainer_pipeline_and_automodel_answer_as_hugging_face(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    asked = {"glm4": ["trainer"], "glm": ["network"], "chatglm": ["trainer", "pipeline"]}
    pairs = [(caller, str(folders[name])) for name, callers in asked.items() for caller in callers]
    words = ("-m", "tests.ascend_contract.upstream_callers", *sum(pairs, ()))
    lines = run_python(*words, folder=tmp_path, **ENVIRONMENT)
    found = [json.loads(line) for line in lines if line.startswith('["')]
    expected = {name: _hugging_face(folders[name]) for name in ("glm4", "glm")}
    expected["chatglm"] = expected["glm"]
    assert [line[:2] for line in found] == [
        [caller, expected[name]] for name, callers in asked.items() for caller in callers
    ]
    # A prompt, or a batch of them, has two layers.
    assert [line[2] for line in found] == [4, 2, 4, 4]


def _hugging_face(folder: Path) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    answers = [ids + hf_oracle.greedy_tokens(folder, ids, NUM_TOKENS) for ids in prompts]
    return tokenizer.batch_decode(answers, skip_special_tokens=True)


def test_logits_are_bit_by_bit_those_of_upstreams_own_class(
    folders: dict[str, Path], card: None
) -> None:
    ours = Glm4ForCausalLM.from_pretrained(str(folders["glm4"]), **ON_ASCEND)
    keys = json.loads((folders["glm4"] / "config.json").read_text())
    del keys["model_type"]
    types = FLOAT32 | {"rotary_dtype": "float32", "block_size": BLOCK_SIZE}
    theirs = modeling_glm4_infer.InferenceGlm4ForCausalLM(
        configuration_glm4.Glm4Config(**keys | types)
    )
    theirs.load_weights(str(folders["glm4"]))
    found, expected = _run_steps(ours), _run_steps(theirs)
    for name in STEPS:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    ours.model.return_hidden_states = True
    hidden = _run_steps(ours)["an answer each"]
    logits = ours.model.output_layer(Tensor(hidden)).asnumpy().reshape(len(hidden), -1)
    np.testing.assert_array_equal(logits, expected["an answer each"])


def _run_steps(network: Any) -> dict[str, np.ndarray]:
    """What upstream's `construct` gives for each step, called as servers call it."""
    caches = [
        mutable([ops.zeros((40, BLOCK_SIZE, 2, 16), network.compute_dtype) for _ in range(2)])
        for _ in range(2)
    ]
    sequences = Sequences([12, 20, 30, 9, 9], 256)
    found = {}
    network.set_dynamic_inputs()
    for name, pieces in STEPS.items():
        step = vars(make_upstream_step(sequences.batch(*pieces), "float32"))
        network.add_flags_custom_mcore(is_prefill=step.pop("is_prefill"))
        tensors = {key: Tensor(array) for key, array in step.items()}
        given = {name: tensors.get(name) for name in _CONSTRUCT} | {
            "key_cache": caches[0],
            "value_cache": caches[1],
        }
        found[name] = network(**given).asnumpy()
    return found


_CONSTRUCT = (
    *("input_ids", "hidden_states", "positions", "batch_valid_length", "context_lens_tensor"),
    *("q_seq_lens", "block_tables", "slot_mapping", "attention_mask", "attn_metadata"),
    *("attn_padding_idx", "attn_unpadding_idx", "ffn_padding_idx", "ffn_unpadding_idx"),
    *("key_cache", "value_cache"),
)


def test_the_device_is_chosen_when_a_class_is_called(folders: dict[str, Path], card: None) -> None:
    config = AutoConfig.from_pretrained(str(folders["glm4"]))
    for key, value in ON_ASCEND.items():
        setattr(config, key, value)
    for called in (Glm4ForCausalLM, InferenceGlm4ForCausalLM, AutoModel.from_config):
        network = called(config)
        assert isinstance(network, modeling_glm4_infer.InferenceGlm4ForCausalLM)
        assert tuple(inspect.signature(network.construct).parameters) == _CONSTRUCT
    with pytest.raises(ConfigError, match=r"got a Glm4Config of mindformers\.models\.glm4"):
        InferenceGlm4ForCausalLM(configuration_glm4.Glm4Config())
    config.device_target = "CPU"
    assert type(Glm4ForCausalLM(config)) is InferenceGlm4ForCausalLM
    # What the machine has, unless upstream's launcher was told otherwise.
    config.device_target = None
    assert not isinstance(Glm4ForCausalLM(config), InferenceGlm4ForCausalLM)
    MFContextOperator.reset_instance()
    MFContextOperator(MindFormerConfig(context={"device_target": "CPU"}, use_legacy=False))
    assert type(Glm4ForCausalLM(config)) is InferenceGlm4ForCausalLM


def test_a_run_is_configured_as_upstreams_is(folders: dict[str, Path], card: None) -> None:
    config = AutoConfig.from_pretrained(str(folders["glm4"]))
    for key, value in (ON_ASCEND | {"num_blocks": 7, "seq_length": 48, "top_k": 3}).items():
        setattr(config, key, value)
    found = AutoModel.from_config(config)
    assert (found.config.num_blocks, found.config.block_size) == (7, BLOCK_SIZE)
    assert (found.config.seq_length, found.generation_config.top_k) == (48, 3)
    assert found.get_gpt_transformer_config().num_blocks == 7
    assert found.config.max_position_embeddings == 512
    # ChatGLM's word for the positions is upstream's for the longest text.
    chatglm = AutoConfig.from_pretrained(str(folders["chatglm"]))
    for key, value in (ON_ASCEND | {"num_blocks": 7}).items():
        setattr(chatglm, key, value)
    found = AutoModel.from_config(chatglm)
    assert (found.config.seq_length, found.config.max_position_embeddings) == (56, 512)


@pytest.mark.parametrize(
    ("key", "value"),
    [("pet_config", {"pet_type": "lora"}), ("use_flash_attention", False), ("pre_process", False)],
)
def test_what_the_network_does_not_have_is_refused_by_name(
    key: str, value: Any, folders: dict[str, Path], card: None
) -> None:
    config = AutoConfig.from_pretrained(str(folders["glm4"]))
    for name, given in (ON_ASCEND | {key: value}).items():
        setattr(config, name, given)
    with pytest.raises(UnsupportedError, match=f"cannot take {key} "):
        Glm4ForCausalLM(config)


def test_weights_are_loaded_strictly(folders: dict[str, Path], card: None, tmp_path: Path) -> None:
    network = Glm4ForCausalLM.from_pretrained(str(folders["glm4"]), **ON_ASCEND)
    before = {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}
    tensors = load_file(folders["glm4"] / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(
        {name: 2 * tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj\.weight"):
        network.load_weights(str(tmp_path))
    with pytest.raises(UnsupportedError, match="takes the path of a Hugging Face folder"):
        network.load_weights(weights=iter(tensors.items()))
    for parameter in network.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), before[parameter.name])


def test_tensors_decide_about_biases(card: None, tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, attention_bias=False)
    expected = hf_oracle.greedy_tokens(folder, [5, 6, 7], 3)
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(keys | {"attention_bias": True}))
    config = AutoConfig.from_pretrained(str(folder))
    for key, value in (ON_ASCEND | {"pretrained_model_dir": str(folder)}).items():
        setattr(config, key, value)  # upstream's Trainer says where the folder is
    network = AutoModel.from_config(config)
    network.load_weights(str(folder))
    for _ in range(2):  # without graphs upstream's flags would stay those of a decode
        found = network.generate([5, 6, 7], do_sample=False, max_new_tokens=3)
        assert found[0].tolist() == [5, 6, 7, *expected]
