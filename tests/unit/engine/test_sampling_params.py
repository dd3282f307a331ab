import copy
import pickle
from dataclasses import replace
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
        ({"n": 0}, "n must be a whole number of at least 1, got 0"),
        ({"n": None}, "n must be a whole number from 1 to 16384, got None"),
        ({"n": 10**9}, "n must be a whole number from 1 to 16384"),
        ({"logprobs": -2}, "logprobs must be a whole number of at least -1, got -2"),
        ({"logprobs": True}, "logprobs must be a whole number of at least -1, got True"),
        ({"prompt_logprobs": 1.5}, "prompt_logprobs must be a whole number"),
        ({"presence_penalty": 2.1}, "presence_penalty must be a number from -2 to 2, got 2.1"),
        ({"frequency_penalty": "x"}, "frequency_penalty must be a number from -2 to 2, got 'x'"),
        ({"logit_bias": {"a": 1}}, "logit_bias must map token ids to numbers, got ('a', 1)"),
        ({"logit_bias": {1: "x"}}, "logit_bias must map token ids to numbers, got (1, 'x')"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias must map token ids to numbers"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias must map token ids to numbers"),
        ({"logit_bias": {True: 1.0}}, "logit_bias must map token ids to numbers"),
        ({"logit_bias": [5]}, "logit_bias must map token ids to numbers, got 5"),
        ({"logit_bias": 5}, "logit_bias must be a list, got 5"),
        ({"bad_words": [""]}, "bad_words must hold non-empty texts, got ''"),
        ({"bad_words": [5]}, "bad_words must hold non-empty texts, got 5"),
        ({"max_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_tokens": "5"}, "max_tokens must be a whole number"),
        ({"max_tokens": 5, "max_new_tokens": 4}, "max_tokens=5 and max_new_tokens=4 are the same"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_new_tokens=5 is more than max_new_tokens=4"),
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
    assert hash(SamplingParams(logit_bias={5: 1.0}, bad_words=["a"])) is not None


def test_names_of_vllm_are_the_same_settings() -> None:
    params = SamplingParams(max_tokens=7, min_tokens=2)
    assert params == SamplingParams(max_new_tokens=7, min_new_tokens=2)
    assert SamplingParams(max_tokens=7, max_new_tokens=7) == SamplingParams(max_tokens=7)
    assert replace(params, max_new_tokens=9).max_new_tokens == 9
    assert copy.deepcopy(params) == pickle.loads(pickle.dumps(params)) == params


def test_bias_is_cut_to_a_hundred_and_ids_may_be_texts() -> None:
    params = SamplingParams(logit_bias={"5": 1000, 6: -1e9, "7": float("inf"), 8: 1})
    assert params.logit_bias == ((5, 100.0), (6, -100.0), (7, 100.0), (8, 1.0))
    assert replace(params, seed=1).logit_bias == params.logit_bias


def test_lists_may_be_none_as_in_vllm() -> None:
    params = SamplingParams(stop=None, stop_token_ids=None, bad_words=None, logit_bias=None)
    assert params == SamplingParams()
