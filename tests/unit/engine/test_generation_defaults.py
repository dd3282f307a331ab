import json
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError, UnsupportedError
from mindformers_glm.engine.generation_defaults import GenerationDefaults, from_generation_config
from mindformers_glm.engine.sampling_params import SamplingParams, SamplingSettings


def _read(folder: Path, **settings: Any) -> GenerationDefaults:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return from_generation_config(folder)


def _resolve(defaults: GenerationDefaults, **asked: Any) -> SamplingSettings:
    return defaults.resolve(SamplingParams(**asked))


def test_a_missing_file_gives_hugging_faces_defaults(tmp_path: Path) -> None:
    settings = _resolve(from_generation_config(tmp_path))
    assert settings == SamplingSettings(
        is_greedy=True,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        max_new_tokens=512,
        max_length=None,
        min_new_tokens=0,
        seed=None,
        stop=(),
        stop_token_ids=(),
        ignore_eos=False,
        n=1,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        logit_bias=(),
        bad_words=(),
        logprobs=None,
        prompt_logprobs=None,
        skip_special_tokens=True,
    )


def test_silent_keys_take_the_values_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    oracle = transformers.GenerationConfig()
    settings = _resolve(_read(tmp_path, do_sample=True))
    for name in ("temperature", "top_k", "top_p", "repetition_penalty"):
        assert getattr(settings, name) == getattr(oracle, name)
    assert oracle.do_sample is False
    assert oracle.min_p is None


def test_the_file_is_respected(tmp_path: Path) -> None:
    # The values of glm-4-9b-chat's and GLM-Z1's files.
    defaults = _read(
        tmp_path,
        do_sample=True,
        temperature=0.8,
        top_k=40,
        top_p=0.95,
        repetition_penalty=1.2,
        min_new_tokens=2,
        max_length=128000,
        eos_token_id=[151329, 151336, 151338],
        pad_token_id=151329,
        transformers_version="4.46.0.dev0",
    )
    settings = _resolve(defaults)
    assert not settings.is_greedy
    assert (settings.temperature, settings.top_k, settings.top_p) == (0.8, 40, 0.95)
    assert (settings.repetition_penalty, settings.min_new_tokens) == (1.2, 2)
    assert (settings.max_new_tokens, settings.max_length) == (None, 128000)
    assert defaults.eos_token_ids == (151329, 151336, 151338)


def test_one_eos_id_need_not_be_a_list(tmp_path: Path) -> None:
    assert _read(tmp_path, eos_token_id=7).eos_token_ids == (7,)


def test_top_k_null_switches_it_off_as_in_transformers(tmp_path: Path) -> None:
    assert _resolve(_read(tmp_path, top_k=None)).top_k == 0


def test_the_request_beats_the_file(tmp_path: Path) -> None:
    defaults = _read(tmp_path, do_sample=True, temperature=0.8, top_k=40, max_length=100)
    settings = _resolve(defaults, temperature=0.3, max_new_tokens=5)
    assert (settings.temperature, settings.top_k) == (0.3, 40)
    assert (settings.max_new_tokens, settings.max_length) == (5, None)
    assert _resolve(defaults, do_sample=False).is_greedy


def test_a_length_of_the_request_beats_both_of_the_file(tmp_path: Path) -> None:
    settings = _resolve(_read(tmp_path, max_new_tokens=5, max_length=9), max_length=100)
    assert (settings.max_new_tokens, settings.max_length) == (None, 100)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p"])
def test_asking_for_a_sampling_setting_turns_sampling_on(tmp_path: Path, name: str) -> None:
    defaults = _read(tmp_path, do_sample=False)
    assert not _resolve(defaults, **{name: 1}).is_greedy
    assert _resolve(defaults, do_sample=False, **{name: 1}).is_greedy
    assert _resolve(defaults, seed=1, repetition_penalty=1.1).is_greedy


def test_a_sampling_setting_in_the_file_alone_does_not(tmp_path: Path) -> None:
    assert _resolve(_read(tmp_path, temperature=0.5, top_k=3)).is_greedy


def test_temperature_zero_is_greedy(tmp_path: Path) -> None:
    assert _resolve(_read(tmp_path, do_sample=True), temperature=0).is_greedy
    assert _resolve(_read(tmp_path, do_sample=True, temperature=0.0)).is_greedy


def test_512_new_tokens_are_the_limit_where_nothing_sets_one(tmp_path: Path) -> None:
    defaults = _read(tmp_path)
    assert not defaults.has_length_limit(SamplingParams())
    assert _resolve(defaults).max_new_tokens == 512
    assert defaults.has_length_limit(SamplingParams(max_length=3))
    assert _read(tmp_path, max_length=20).has_length_limit(SamplingParams())


def test_stop_strings_of_the_file_are_used(tmp_path: Path) -> None:
    defaults = _read(tmp_path, stop_strings=["END"])
    assert _resolve(defaults).stop == ("END",)
    assert _resolve(defaults, stop=["x"]).stop == ("x",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_beams", 4),
        ("no_repeat_ngram_size", 3),
        ("typical_p", 0.9),
        ("top_h", 0.4),
        ("generation_kwargs", {"num_beams": 2}),
        ("penalty_alpha", 0.6),
        ("bad_words_ids", [[1]]),
        ("forced_eos_token_id", 2),
        ("suppress_tokens", [1]),
        ("guidance_scale", 1.5),
        ("min_length", 3),
        ("num_return_sequences", 2),
    ],
)
def test_what_changes_the_answer_and_is_not_supported_is_refused(
    tmp_path: Path, key: str, value: Any
) -> None:
    with pytest.raises(UnsupportedError, match=f"generation_config.json: {key}=.* not supported"):
        _read(tmp_path, **{key: value})


def test_neutral_values_and_unknown_keys_are_ignored(tmp_path: Path) -> None:
    neutral = {"num_beams": 1, "typical_p": 1.0, "bad_words_ids": None, "suppress_tokens": []}
    defaults = _read(tmp_path, **neutral, use_cache=True, num_assistant_tokens=20, whatever="x")
    assert defaults == GenerationDefaults()


def test_all_of_transformers_default_values_are_neutral(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    every_key = transformers.GenerationConfig().to_dict()
    assert "num_beams" in every_key
    _read(tmp_path, **every_key)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"temperature": "warm"}', "temperature must be a number"),
        ('{"eos_token_id": "x"}', "eos_token_id must be a token id or a list of token ids"),
        ('{"do_sample": "yes"}', "do_sample must be True or False"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        from_generation_config(tmp_path)
    assert message in str(caught.value)
    assert "generation_config.json" in str(caught.value)
