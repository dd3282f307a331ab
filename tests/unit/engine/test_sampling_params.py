from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -0.1}, "temperature must be a number of at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"temperature": "hot"}, "temperature must be a number of at least 0, got 'hot'"),
        ({"top_k": -2}, "top_k must be a whole number of at least -1, got -2"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"top_p": 1.1}, "top_p must be a number from 0 to 1, got 1.1"),
        ({"min_p": -0.1}, "min_p must be a number from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number"),
        ({"max_length": 0}, "max_length must be a whole number of at least 1"),
        ({"min_new_tokens": -1}, "min_new_tokens must be a whole number of at least 0"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens=5 is more than max_new_tok"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"do_sample": 1}, "do_sample must be True or False, got 1"),
        ({"stop": ["a", ""]}, "stop must hold non-empty texts, got ''"),
        ({"stop": {"a"}}, "stop must be a list"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids must be a whole number"),
    ],
)
def test_wrong_values_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**params)
    assert message in str(caught.value)


def test_one_stop_string_need_not_be_a_list() -> None:
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")


def test_params_are_hashable() -> None:
    assert hash(SamplingParams(stop=["a"], stop_token_ids=[1])) is not None
