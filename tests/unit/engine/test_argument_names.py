from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.argument_names import OTHER_NAMES_OF_LLM, OTHER_NAMES_OF_SAMPLING_PARAMS
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "/m"}, "LLM has no argument 'model': it is called pretrained_model_dir here."),
        ({"dtype": "float16"}, "it is called params_dtype here"),
        ({"tensor_parallel_size": 2}, "it is called model_parallel here"),
        ({"gpu_memory_utilization": 0.9}, "it is called max_device_memory here"),
        ({"tokenizer": "/m"}, "'tokenizer': the tokenizer is read from pretrained_model_dir."),
        ({"trust_remote_code": True}, "it is not needed, since code of a model folder is never ru"),
        ({"max_modle_len": 5}, "perhaps max_model_len is meant"),
        ({"Seed": 5}, "perhaps seed is meant"),
        ({"zzz": 5}, "it takes pretrained_model_dir, params_dtype, "),
    ],
)
def test_llm_names_the_right_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LLM("/nowhere", **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temprature": 1}, "SamplingParams has no argument 'temprature': perhaps temperature is"),
        ({"num_return_sequences": 2}, "it is called n here"),
        ({"stop_strings": ["a"]}, "it is called stop here"),
        ({"max_completion_tokens": 2}, "it is called max_tokens here"),
        ({"use_beam_search": True}, "this version does not offer it"),
        ({"zzz": 1}, "it takes do_sample, temperature, "),
    ],
)
def test_sampling_params_name_the_right_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("generate", {"temperature": 0.5}, "LLM.generate has no argument 'temperature': it is an "),
        ("generate", {"sampling_param": None}, "perhaps sampling_params is meant"),
        ("chat", {"use_tqdm": False}, "a bar is shown on a terminal only"),
        ("stream", {"max_tokens": 5}, "it is an argument of SamplingParams"),
    ],
)
def test_methods_name_the_right_argument(
    method: str, arguments: dict[str, Any], message: str
) -> None:
    llm = LLM.__new__(LLM)  # refused before anything is looked at
    with pytest.raises(ConfigError) as caught:
        getattr(llm, method)("x", **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("owner", "other_names"),
    [(LLM, OTHER_NAMES_OF_LLM), (SamplingParams, OTHER_NAMES_OF_SAMPLING_PARAMS)],
)
def test_no_name_that_exists_is_called_another_one(owner: type, other_names: dict) -> None:
    import inspect

    known = inspect.signature(owner).parameters
    assert not known.keys() & other_names.keys()
    advised = {name for name in other_names.values() if " " not in name}
    assert advised <= known.keys()
