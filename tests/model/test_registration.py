"""MindSpore Transformers resolves a GLM-4-0414 folder to this package's classes."""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers_glm.core.errors import ConfigError, GlmError, PromptError, UnsupportedError
from tests.model import hf_oracle

_RESOLVE = """
from mindformers.tools.register import MindFormerModuleType as T, MindFormerRegister as R
from mindformers import AutoConfig, AutoModel, AutoModelForCausalLM
import mindspore as ms

def modules():
    config = AutoConfig.from_pretrained(FOLDER)
    return [type(config).__module__] + [R.get_cls(kind, name).__module__ for kind, name in (
        (T.CONFIG, "glm4"), (T.MODELS, "Glm4ForCausalLM"), (T.MODELS, "InferenceGlm4ForCausalLM"))]

before = modules()
from mindformers.core.context.build_context import build_context
build_context({"use_legacy": False, "use_parallel": False, "run_mode": "predict",
               "context": {"mode": 0, "device_target": "CPU"}, "parallel": {}})
after = modules()
names = {type(m).__name__ for m in (AutoModel.from_pretrained(FOLDER),
                                    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(FOLDER)))}
print("RESULT", sorted(set(before + after)), sorted(names))
"""
_IMPORTS = {
    "ours_first": "import mindformers_glm\nimport mindformers\n",
    "theirs_first": "import mindformers\nimport mindformers_glm\n",
    "ours_only": "import mindformers_glm\n",
}


@pytest.mark.parametrize("order", _IMPORTS)
def test_every_lookup_finds_our_classes_in_any_import_order(order: str, tiny: Path) -> None:
    program = f"{_IMPORTS[order]}FOLDER = {str(tiny)!r}\n{_RESOLVE}"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    line = next(line for line in finished.stdout.splitlines() if line.startswith("RESULT"))
    assert line.count("mindformers_glm.models.glm4") == 3, line
    assert "'mindformers.models" not in line, line
    assert line.endswith("['InferenceGlm4ForCausalLM']"), line


def test_from_pretrained_refuses_an_unknown_setting(tiny: Path) -> None:
    from mindformers_glm import Glm4ForCausalLM

    with pytest.raises(ConfigError, match="'num_layer' is not a setting: use params_dtype"):
        Glm4ForCausalLM.from_pretrained(str(tiny), num_layer=2)


@pytest.mark.parametrize("auto_class", ["AutoModel", "AutoModelForCausalLM"])
def test_what_upstream_finds_classes_with_raises_our_errors(
    tiny: Path, tmp_path: Path, auto_class: str
) -> None:
    import mindformers

    find = getattr(mindformers, auto_class).from_pretrained
    with pytest.raises(ConfigError, match="'num_layer' is not a setting"):
        find(str(tiny), num_layer=2)
    folder = shutil.copytree(tiny, tmp_path / "copy")
    raw = json.loads((tiny / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"quantization": {"bits": 4}}))
    with pytest.raises(UnsupportedError, match="quantized checkpoints are not supported"):
        find(str(folder))
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": "no_such_model"}))
    with pytest.raises(RuntimeError, match="not available now"):  # upstream's own
        find(str(folder))


def test_from_pretrained_refuses_a_length_beyond_the_checkpoints(tiny: Path) -> None:
    from mindformers_glm import Glm4ForCausalLM

    with pytest.raises(ConfigError, match=r"max_model_len=100000 .*max_position_embeddings"):
        Glm4ForCausalLM.from_pretrained(str(tiny), max_model_len=100000)


def test_from_pretrained_refuses_what_is_no_path() -> None:
    from mindformers_glm import Glm4ForCausalLM

    with pytest.raises(GlmError, match="must be the path of a Hugging Face folder, got 5"):
        Glm4ForCausalLM.from_pretrained(5)


def test_a_network_without_weights_does_not_answer(tiny: Path) -> None:
    from mindformers import AutoConfig

    from mindformers_glm import Glm4ForCausalLM

    network = Glm4ForCausalLM(AutoConfig.from_pretrained(str(tiny)))
    with pytest.raises(GlmError, match="call load_weights"):
        network.generate([1, 2])
    network.load_weights(str(tiny))
    found = network.generate([1, 2], do_sample=False, max_new_tokens=2, ignore_eos=True)[0]
    assert found.tolist() == [1, 2, *hf_oracle.greedy_tokens(tiny, [1, 2], 2)]


def test_generate_goes_through_the_engine_and_equals_hugging_face(tiny: Path) -> None:
    from mindformers_glm import Glm4ForCausalLM

    network = Glm4ForCausalLM.from_pretrained(str(tiny), max_model_len=64)
    prompts = [[5, 6, 7], [8]]
    for _ in range(2):  # the engine is kept between calls
        found = network.generate(prompts, do_sample=False, max_new_tokens=8, ignore_eos=True)
        for prompt, tokens in zip(prompts, found, strict=True):
            assert tokens.tolist() == prompt + hf_oracle.greedy_tokens(tiny, prompt, 8)


def test_generate_drops_what_the_mask_calls_padding(tiny: Path) -> None:
    from mindspore import Tensor

    from mindformers_glm import Glm4ForCausalLM

    network = Glm4ForCausalLM.from_pretrained(str(tiny), max_model_len=64)
    input_ids = Tensor(np.array([[5, 6, 7], [0, 0, 8], [9, 10, 0]], np.int64))
    mask = Tensor(np.array([[1, 1, 1], [0, 0, 1], [1, 1, 0]], np.float32))
    found = network.generate(
        input_ids, attention_mask=mask, do_sample=False, max_new_tokens=8, ignore_eos=True
    )
    for prompt, tokens in zip([[5, 6, 7], [8], [9, 10]], found, strict=True):
        assert tokens.tolist() == prompt + hf_oracle.greedy_tokens(tiny, prompt, 8)


def test_generate_takes_one_prompt_and_upstreams_generation_config(tiny: Path) -> None:
    from mindformers.generation import GenerationConfig

    from mindformers_glm import Glm4ForCausalLM

    network = Glm4ForCausalLM.from_pretrained(str(tiny), max_model_len=64)
    config = GenerationConfig(do_sample=True, top_k=5, temperature=2.0, max_new_tokens=4)

    def draw(seed: int) -> list[int]:
        return network.generate([5, 6, 7], config, seed=seed, ignore_eos=True)[0].tolist()

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert len(draw(3)) == 3 + 4
    # The class's own max_length of 20 is not a wish.
    long = network.generate([5, 6, 7], GenerationConfig(do_sample=False), ignore_eos=True)[0]
    assert len(long) == 64


def test_generate_refuses_what_it_does_not_know(tiny: Path) -> None:
    from mindformers_glm import Glm4ForCausalLM

    network = Glm4ForCausalLM.from_pretrained(str(tiny), max_model_len=64)
    with pytest.raises(ConfigError, match="does not know 'max_new_token'"):
        network.generate([5], max_new_token=2)
    with pytest.raises(ConfigError, match="generation_config must be a GenerationConfig or a dict"):
        network.generate([5], 7)


def _generation_configs(**settings: Any) -> list[Any]:
    from mindformers.generation import GenerationConfig as MindFormersConfig
    from transformers import GenerationConfig

    return [GenerationConfig(**settings), MindFormersConfig(**settings), settings]


@pytest.mark.parametrize("key", ["num_beams", "no_repeat_ngram_size"])
def test_generate_refuses_what_generation_config_json_may_not_say(tiny: Path, key: str) -> None:
    from mindformers_glm import Glm4ForCausalLM

    network = Glm4ForCausalLM.from_pretrained(str(tiny), max_model_len=64)
    for config in _generation_configs(**{key: 4}):
        if not isinstance(config, dict) and getattr(config, key) != 4:
            continue  # mindformers 1.8.0's own class sets num_beams to 1, and says so
        with pytest.raises(UnsupportedError, match=f"generation_config: {key}=4 is not supported"):
            network.generate([5], config)
    with pytest.raises(UnsupportedError, match=f"{key}=4 is not supported"):
        network.generate([5], **{key: 4})
    assert len(network.generate([5], num_beams=1, max_new_tokens=2, ignore_eos=True)[0]) == 3


def test_generate_ends_at_the_named_end_of_text_tokens(tiny: Path) -> None:
    from mindformers_glm import Glm4ForCausalLM

    network = Glm4ForCausalLM.from_pretrained(str(tiny), max_model_len=64)
    answer = hf_oracle.greedy_tokens(tiny, [5, 6, 7], 6)
    end = answer[2]
    expected = [5, 6, 7, *answer[: answer.index(end) + 1]]
    for config in _generation_configs(max_new_tokens=6, eos_token_id=[end]):
        assert network.generate([5, 6, 7], config)[0].tolist() == expected
    found = network.generate([5, 6, 7], max_new_tokens=6, eos_token_id=end)
    assert found[0].tolist() == expected
    with pytest.raises(ConfigError, match="eos_token_id must be a token id"):
        network.generate([5], eos_token_id="end")


@pytest.mark.parametrize(
    "prompt", [[[1.7, 2.2]], [1.7], None, 5, b"abc", [b"abc"], "abc", [[True]], [[]]]
)
def test_generate_refuses_what_is_not_token_ids(tiny: Path, prompt: Any) -> None:
    from mindformers_glm import Glm4ForCausalLM

    network = Glm4ForCausalLM.from_pretrained(str(tiny), max_model_len=64)
    with pytest.raises(PromptError):
        network.generate(prompt)


def test_generate_ends_at_stop_strings_where_there_is_a_tokenizer(tmp_path: Path) -> None:
    from mindformers_glm import LLM, Glm4ForCausalLM, SamplingParams
    from tests.e2e.random_checkpoint import write_checkpoint

    folder = write_checkpoint(tmp_path)
    answer = LLM(folder).generate([5, 6], SamplingParams(max_new_tokens=6))[0]
    stop = next(char for char in answer.text if char.isascii())
    expected = LLM(folder).generate([5, 6], SamplingParams(max_new_tokens=6, stop=stop))[0]
    network = Glm4ForCausalLM.from_pretrained(str(folder))
    found = network.generate([5, 6], {"max_new_tokens": 6, "stop_strings": [stop]})[0]
    assert expected.finish_reason == "stop"
    assert found.tolist() == [5, 6, *expected.token_ids]


def test_generate_without_a_tokenizer_refuses_stop_strings(tiny: Path, tmp_path: Path) -> None:
    from mindformers_glm import Glm4ForCausalLM

    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny / name, tmp_path)
    network = Glm4ForCausalLM.from_pretrained(str(tmp_path), max_model_len=64)
    assert len(network.generate([5], max_new_tokens=2, ignore_eos=True)[0]) == 3
    with pytest.raises(ConfigError, match="this network has no tokenizer"):
        network.generate([5], stop_strings=["x"])


def test_construct_runs_steps_with_upstreams_arrays_and_equals_hugging_face(tiny: Path) -> None:
    from mindspore import Tensor

    from mindformers_glm import Glm4ForCausalLM

    network = Glm4ForCausalLM.from_pretrained(str(tiny), max_model_len=64, block_size=4)
    prompts, blocks = [[5, 6, 7, 8, 9], [10]], [[3, 0], [2, 1]]
    answers = [hf_oracle.greedy_tokens(tiny, prompt, 3) for prompt in prompts]
    cached = [0, 0]
    rows = prompts
    for step in range(3):  # both prompts, then a token of each
        positions = [
            np.arange(start, start + len(r)) for start, r in zip(cached, rows, strict=True)
        ]
        slots = [np.array(b)[p // 4] * 4 + p % 4 for b, p in zip(blocks, positions, strict=True)]
        cached = [start + len(new) for start, new in zip(cached, rows, strict=True)]
        inputs = {
            "input_ids": np.concatenate(rows),
            "positions": np.concatenate(positions),
            "batch_valid_length": cached,
            "q_seq_lens": [len(new) for new in rows],
            "block_tables": blocks,
            "slot_mapping": np.concatenate(slots),
        }
        logits = network(**{name: Tensor(np.int32(array)) for name, array in inputs.items()})
        assert logits.asnumpy().argmax(axis=1).tolist() == [answer[step] for answer in answers]
        rows = [[answer[step]] for answer in answers]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("input_ids", [5, 600], "outside the vocabulary"),
        ("input_ids", [5], "positions must be as long as input_ids"),
        ("input_ids", [5, 2**32 + 6], "input_ids must be int32"),
        ("block_tables", [[0], [0]], "block_tables must have a row for each sequence"),
        ("input_ids", [5.0, 6.0], "input_ids must be int32 with 1 axes, got float64"),
        ("positions", [0, 2], "positions must be those of each sequence's last tokens"),
        ("positions", None, "positions must be int32"),
        ("batch_valid_length", [1], "q_seq_lens must be from 1 to batch_valid_length"),
        ("batch_valid_length", [66], "batch_valid_length must be at most 32, the room"),
        ("q_seq_lens", [2, 1], "q_seq_lens must be as long as batch_valid_length"),
        ("context_lens_tensor", [1], "must be batch_valid_length - q_seq_lens"),
        ("block_tables", [[99999]], "block_tables must be below"),
        ("block_tables", [[-1]], "block_tables must be below"),
        ("slot_mapping", [0, 10**8], "slot_mapping must be below"),
        ("attention_mask", [0], "construct cannot use attention_mask here"),
        ("key_cache", [0], "construct cannot use key_cache here"),
    ],
)
def test_construct_says_what_it_cannot_use(
    tiny: Path, name: str, value: list[Any] | None, words: str
) -> None:
    from mindspore import Tensor

    inputs = {
        "input_ids": [5, 6],
        "positions": [0, 1],
        "batch_valid_length": [2],
        "q_seq_lens": [2],
        "block_tables": [[0]],
        "slot_mapping": [0, 1],
    } | {name: value}
    network = _network(tiny)
    arrays = {key: None if v is None else Tensor(np.array(v)) for key, v in inputs.items()}
    with pytest.raises(GlmError, match=re.escape(words)):
        network(**arrays)


@functools.cache
def _network(folder: Path) -> Any:
    from mindformers_glm import Glm4ForCausalLM

    return Glm4ForCausalLM.from_pretrained(str(folder), max_model_len=64)


def test_construct_needs_weights(tiny: Path) -> None:
    from mindformers import AutoConfig
    from mindspore import Tensor

    from mindformers_glm import Glm4ForCausalLM

    network = Glm4ForCausalLM(AutoConfig.from_pretrained(str(tiny)))
    with pytest.raises(GlmError, match="call load_weights"):
        network(*[Tensor(np.int32([1]))] * 6)


def test_the_device_is_chosen_for_the_registered_classes_too(tiny: Path) -> None:
    from mindformers_glm import Glm4ForCausalLM

    with pytest.raises(UnsupportedError, match="Ascend needs an NPU"):
        Glm4ForCausalLM.from_pretrained(str(tiny), device_target="Ascend")
    network = Glm4ForCausalLM.from_pretrained(str(tiny), device_target="CPU")
    assert network.backend.name == "CPU"


def test_a_config_of_another_dialect_is_refused(tiny: Path) -> None:
    from mindformers_glm import Glm4Config

    with pytest.raises(ConfigError, match=r"Glm4Config is for model_type 'glm4', .* 'chatglm'"):
        Glm4Config(model_type="chatglm")
    with pytest.raises(ConfigError, match="sandwich_norm must be true for glm4"):
        Glm4Config(sandwich_norm=False)


def test_a_network_has_its_parameters_by_their_names_and_takes_other_weights(tiny: Path) -> None:
    from mindformers_glm import Glm4ForCausalLM

    network = Glm4ForCausalLM.from_pretrained(str(tiny), max_model_len=64)
    names = set(network.parameters_dict())
    assert {"decoder.final_layernorm.weight", "output_layer.weight"} <= names
    assert "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in names
    before = network.generate([5], do_sample=False, max_new_tokens=4, ignore_eos=True)[0]
    parameters = [id(parameter) for parameter in network.get_parameters()]
    with pytest.raises(GlmError, match="does not exist"):
        network.load_weights("no/such/folder")
    network.load_weights(str(tiny))
    after = network.generate([5], do_sample=False, max_new_tokens=4, ignore_eos=True)[0]
    assert before.tolist() == after.tolist()
    assert parameters == [id(parameter) for parameter in network.get_parameters()]


def test_a_rank_is_not_the_callers_to_choose(tiny: Path) -> None:
    from mindformers import AutoConfig

    from mindformers_glm import Glm4ForCausalLM

    with pytest.raises(ConfigError, match="model_parallel_rank is the launcher's"):
        Glm4ForCausalLM.from_pretrained(str(tiny), model_parallel_rank=1)
    config = AutoConfig.from_pretrained(str(tiny))
    config.model_parallel = 2
    with pytest.raises(ConfigError, match="started without a launcher"):
        Glm4ForCausalLM(config)
