"""Every option by its name and texts, what recipes make of them, and a sentence for wrong use."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mindformers_glm.config.sentence_parser import SentenceParser
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.quantized_linear import DYNAMIC, FLOAT, STATIC
from mindformers_glm.quantizer.chosen_recipe import ChosenRecipe, choose_recipe
from mindformers_glm.quantizer.module_names import resolve_names
from mindformers_glm.quantizer.options import QuantizeOptions, add_options, read_options
from mindformers_glm.quantizer.recipe import HISTOGRAM, SEARCHED, Recipe

_PLACES = ("--model_path", "in", "--save_directory", "out")
_GLM = [
    f"model.layers.{number}.{module}"
    for number in range(2)
    for module in (
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        *("mlp.gate_up_proj", "mlp.down_proj"),
    )
] + ["lm_head"]
_CHATGLM = [
    f"transformer.encoder.layers.{number}.{module}"
    for number in range(2)
    for module in (
        *("self_attention.query_key_value", "self_attention.dense"),
        *("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    )
] + ["transformer.output_layer"]
_DOWN = {"model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"}


def _read(*words: str, places: Sequence[str] = _PLACES) -> QuantizeOptions:
    parser = SentenceParser(allow_abbrev=False)
    add_options(parser)
    return read_options(parser.read([*places, *words]))


def _choose(*words: str, linears: Sequence[str] = _GLM) -> ChosenRecipe:
    return choose_recipe(_read(*words), linears)


def test_nothing_given_is_w8a8_with_float_down_projections() -> None:
    chosen = _choose()
    assert chosen.recipe == Recipe(8, STATIC, disable_names=frozenset(_DOWN))
    assert (chosen.export.label, chosen.notices) == ("W8A8", ())


@pytest.mark.parametrize("words", ["", "--w_bit 4 --a_bit 16", "--a_bit 16"])
def test_do_smooth_is_m1_also_where_best_would_choose(words: str) -> None:
    chosen = _choose("--recipe", "best", "--do_smooth", "True", *words.split())
    assert chosen.recipe.anti_method == "m1"


def test_options_have_the_names_and_defaults_of_the_example() -> None:
    options = _read()
    assert options.model_path == Path("in")
    assert options.save_directory == Path("out")
    given = {
        **{"w_bit": 8, "a_bit": 8, "device_type": "cpu", "fraction": 0.01, "sigma_factor": 3.0},
        **dict.fromkeys(("co_sparse", "do_smooth", "use_sigma", "use_reduce_quant"), False),
        **dict.fromkeys(("is_lowbit", "use_kvcache_quant", "use_fa_quant", "is_dynamic"), False),
        **dict.fromkeys(("trust_remote_code", "mindie_format"), False),
        **dict.fromkeys(("w_sym", "open_outlier", "disable_last_linear"), True),
        **{"tp_size": 1, "fa_amp": 0, "disable_level": 0},
    }
    assert {name: getattr(options, name) for name in given} == given


def test_truth_values_are_texts() -> None:
    assert not _read("--w_sym", "False", "--a_bit", "16").w_sym
    assert _read("--trust_remote_code").trust_remote_code
    assert _read("--mindie_format").mindie_format


_SCHEMES = {
    "--a_bit 16": ("W8A16", 8, FLOAT, None),
    "--w_bit 4 --a_bit 16": ("W4A16", 4, FLOAT, None),
    "--w_bit 4 --a_bit 16 --is_lowbit True --open_outlier False": ("W4A16", 4, FLOAT, 64),
    "--w_bit 4 --a_bit 16 --group_size 32": ("W4A16", 4, FLOAT, 32),
    "--w_bit 4 --a_bit 16 --group_size 32 --recipe msmodelslim": ("W4A16", 4, FLOAT, None),
    "--w_bit 4 --a_bit 16 --recipe best": ("W4A16", 4, FLOAT, 64),
    "--w_bit 4 --a_bit 16 --format awq": ("W4A16", 4, FLOAT, 64),
    "--is_dynamic True": ("W8A8_DYNAMIC", 8, DYNAMIC, None),
    "--w_bit 4 --is_dynamic True": ("W4A8_DYNAMIC", 4, DYNAMIC, 64),
    "--w_bit 4 --is_lowbit True": ("W8A8S", 8, STATIC, None),
    "--w_bit 4 --co_sparse True": ("W8A8S", 8, STATIC, None),
}


@pytest.mark.parametrize("words", _SCHEMES)
def test_bits_and_switches_make_a_scheme(words: str) -> None:
    chosen = _choose(*words.split())
    recipe = chosen.recipe
    found = (chosen.export.label, recipe.weight_bits, recipe.activation, recipe.group_size)
    assert found == _SCHEMES[words]


def test_sparse_switches_reach_the_recipe() -> None:
    words = "--w_bit 4 --is_lowbit True --use_sigma True --sigma_factor 2.5"
    recipe = _choose(*words.split()).recipe
    assert (recipe.is_sparse, recipe.is_co_sparse) == (True, False)
    assert (recipe.use_sigma, recipe.sigma_factor) == (True, 2.5)
    recipe = _choose("--w_bit", "4", "--co_sparse", "True", "--fraction", "0.05").recipe
    assert (recipe.is_co_sparse, recipe.fraction) == (True, 0.05)


def test_best_rounds_and_finds_ranges_by_error() -> None:
    recipe = _choose("--recipe", "best").recipe
    assert (recipe.rounding, recipe.anti_method, recipe.act_method) == ("gptq", "m4", SEARCHED)
    keys = _choose("--recipe", "best", "--mindie_format").export.mindie_keys
    assert keys is not None
    assert keys["act_method"] == HISTOGRAM  # of those that MindIE knows
    recipe = _choose("--recipe", "best", "--anti_method", "", "--act_method", "1").recipe
    assert (recipe.anti_method, recipe.act_method) == ("", 1)


@pytest.mark.parametrize(
    ("words", "method"),
    [
        ("", "m4"),
        ("--format numpy", "m1"),
        ("--disable_names model.layers.*.mlp.down_proj lm_head", "m4"),
        ("--disable_names", "m1"),
        ("--is_dynamic True", "m1"),
        ("--w_bit 4 --is_dynamic True", "m3"),
        ("--w_bit 4 --a_bit 16", "m3"),
        ("--w_bit 4 --a_bit 16 --rounding nearest", "m3"),
        ("--w_bit 4 --a_bit 16 --rounding awq", ""),
        ("--a_bit 16", ""),
        ("--w_bit 4 --is_lowbit True", ""),
        ("--w_bit 16 --a_bit 16 --use_kvcache_quant True", ""),
    ],
)
def test_best_smooths_by_what_was_measured_to_lose_least(words: str, method: str) -> None:
    assert _choose("--recipe", "best", *words.split()).recipe.anti_method == method


def test_the_tools_recipe_keeps_its_habits() -> None:
    chosen = _choose("--recipe", "msmodelslim")
    assert chosen.recipe.is_msmodelslim
    assert chosen.export.has_float32


def test_kv_cache_alone_leaves_all_modules_float() -> None:
    words = "--w_bit 16 --a_bit 16 --use_kvcache_quant True"
    chosen = _choose(*words.split())
    assert chosen.recipe.disable_names == frozenset(_GLM)
    assert (chosen.recipe.has_kv_scales, chosen.export.label) == (True, "FLOAT")


def test_names_of_either_dialect_disable_modules() -> None:
    given = ["transformer.encoder.layers.1.self_attention.query_key_value", "lm_head"]
    layer = "model.layers.1.self_attn"
    expected = {f"{layer}.{name}_proj" for name in "qkv"} | {"lm_head"}
    assert resolve_names(given, _GLM) == expected
    given = ["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.k_proj", "lm_head"]
    assert resolve_names(given, _CHATGLM) == {
        "transformer.encoder.layers.0.mlp.dense_4h_to_h",
        "transformer.encoder.layers.0.self_attention.query_key_value",
        "transformer.output_layer",
    }


def test_a_star_stands_for_every_layer() -> None:
    assert resolve_names(["transformer.encoder.layers.*.mlp.dense_4h_to_h"], _GLM) == _DOWN


def test_no_name_disables_nothing() -> None:
    assert _choose("--disable_names").recipe.disable_names == frozenset()


def test_levels_beyond_the_guides_are_taken() -> None:
    assert _choose("--disable_level", "L25").recipe.disable_level == 25


def test_mindie_keys_are_those_of_the_tool() -> None:
    words = "--mindie_format --use_kvcache_quant True --act_method 2 --disable_level L3"
    keys = _choose(*words.split(), linears=_CHATGLM).export.mindie_keys
    assert keys is not None
    assert list(keys)[:3] == ["group_size", "kv_quant_type", "fa_quant_type"]
    assert (keys["kv_quant_type"], keys["act_method"], keys["disable_level"]) == ("C8", 2, "L3")
    assert keys["mm_tensor"] is False


def test_an_output_layer_that_is_named_stays_float() -> None:
    words = ("--disable_last_linear", "False")
    assert _choose(*words).recipe.quantizes_output
    assert not _choose(*words, "--disable_names", "lm_head").recipe.quantizes_output
    cache_alone = ("--w_bit", "16", "--a_bit", "16", "--use_kvcache_quant", "True")
    assert not _choose(*words, *cache_alone).recipe.quantizes_output


def test_scales_of_each_rank_reach_the_recipe_and_the_format() -> None:
    chosen = _choose("--tp_size", "2")
    assert (chosen.recipe.num_ranks, chosen.export.num_ranks, chosen.notices) == (2, 2, ())
    assert not chosen.recipe.has_exchange_scales
    chosen = _choose("--tp_size", "4", "--use_reduce_quant", "True", "--mindie_format")
    assert chosen.recipe.has_exchange_scales
    assert chosen.export.mindie_keys is not None
    assert chosen.export.mindie_keys["reduce_quant_type"] == "per_channel"
    for words in ("--is_dynamic True", "--w_bit 4 --co_sparse True", "--format numpy"):
        assert _choose("--tp_size", "2", *words.split()).recipe.num_ranks == 1


def test_parts_are_counted_in_units_of_1024() -> None:
    assert _choose("--part_file_size", "4").export.part_bytes == 4 * 2**30


_NOTICED = {
    "--device_type npu": "device_type",
    "--use_reduce_quant True": "use_reduce_quant",
    "--use_fa_quant True": "use_fa_quant",
    "--fa_amp 3": "fa_amp",
    "--tp_size 2 --is_dynamic True": "tp_size",
    "--tp_size 2 --w_bit 4 --a_bit 16 --group_size 32": "tp_size",
    "--tp_size 2 --a_bit 16 --format gptq": "tp_size",
    "--tp_size 2 --use_reduce_quant True": "floats",
    "--is_lowbit True": "is_lowbit",
    "--calib_file a.json --anti_file b.json": "anti_file",
    "--trust_remote_code True": "trust_remote_code",
    '--tokenizer_args {"padding_side":"left"}': "tokenizer_args",
    "--input_ids_name ids": "input_ids_name",
    "--attention_mask_name mask": "attention_mask_name",
    "--model_name glm": "model_name",
    "--group_size 32": "group_size",
    "--group_size 32 --w_bit 4 --a_bit 16 --recipe msmodelslim": "open_outlier False",
    "--part_file_size 1 --format numpy": "part_file_size",
    "--w_bit 16 --a_bit 16 --use_kvcache_quant True --disable_level L2 --anti_method m4": (
        "--disable_level, --anti_method has no effect"
    ),
    "--open_outlier False": "open_outlier",
    "--w_bit 4 --a_bit 16 --is_lowbit True": "open_outlier",
    "--w_bit 4 --a_bit 16 --recipe msmodelslim --group_size 64": "group_size",
    "--fraction 0.05": "fraction",
    "--sigma_factor 2": "sigma_factor",
    "--a_bit 16 --act_method 2": "act_method",
    "--calib_texts one --calib_samples 2": "calib_samples",
}


@pytest.mark.parametrize("words", _NOTICED)
def test_options_without_effect_are_told_once(words: str) -> None:
    (notice,) = _choose(*words.split()).notices
    assert _NOTICED[words] in notice


_WRONG = {
    "--w_bit 3": "w_bit",
    "--a_bit 4": "a_bit",
    "--w_bit 16": "w_bit 16",
    "--w_bit 4": "co_sparse True",
    "--w_sym maybe": "True or False",
    "--w_sym False": "float activations",
    "--act_method 4": "1, 2, 3",
    "--anti_method m6": "m5",
    "--disable_level 25": "L0",
    "--disable_names model.layers.7.mlp.down_proj": "no linear module",
    "--fraction 0.5": "0.01 to 0.1",
    "--sigma_factor 4": "1 to 3",
    "--group_size 48": "32, 64, 128",
    "--tp_size 3": "1, 2, 4, 8, 16",
    "--part_file_size 0": "at least 1",
    "--part_file_size 1.5": "whole number",
    "--device_type gpu": "cpu, npu",
    "--tokenizer_args [1]": "JSON object",
    "--recipe good": "best, fast",
    "--format gguf": "msmodelslim, compressed-tensors",
    "--is_dynamic True --a_bit 16": "8 bits",
    "--w_bit 4 --is_lowbit True --is_dynamic True": "exclude",
    "--w_bit 4 --is_lowbit True --co_sparse True": "exclude",
    "--co_sparse True": "w_bit 4",
    "--use_sigma True": "sparse",
    "--do_smooth True --anti_method m2": "m1",
    "--w_bit 4 --a_bit 16 --group_size 32 --mm_tensor True": "exclude",
    "--calib_texts a --calib_file b.json": "exclude",
    "--mindie_format --format awq --w_bit 4 --a_bit 16": "mindie_format",
    "--format gptq": "a_bit 16",
    "--format awq --a_bit 16": "4 bits",
    "--format numpy --a_bit 16": "a_bit 8",
    "--format compressed-tensors --use_kvcache_quant True": "KV cache",
    "--format gptq --a_bit 16 --disable_last_linear False": "output layer",
    "--target_bits 1": "4 to 16",
    "--target_bits 4.5": "give --w_bit 4",
    "--w_bit 4 --is_lowbit True --target_bits 4.5": "sparse",
    "--target_bits 9 --mm_tensor True": "mm_tensor",
    "--target_bits 9 --disable_level L2": "disable_level",
    "--rounding best": "nearest, gptq, awq",
    "--rounding gptq --mm_tensor True": "mm_tensor",
    "--rounding gptq --w_bit 4 --is_lowbit True": "sparse",
    "--rounding awq --anti_method m4": "scales of its own",
    "--rounding awq --do_smooth True": "scales of its own",
    "--rounding gptq --w_bit 16 --a_bit 16 --use_kvcache_quant True": "no weights to round",
    "--rotation values --w_bit 16 --a_bit 16 --use_kvcache_quant True": "needs weights",
    "--rotation all": "values, residual",
    "--rotation values --format numpy": "float model",
    "--format numpy --anti_method m4 --disable_level L2": "biases of linears",
    "--format numpy --anti_method m4 --target_bits 10": "biases of linears",
}


@pytest.mark.parametrize("words", _WRONG)
def test_wrong_use_is_one_sentence(words: str) -> None:
    with pytest.raises(ConfigError, match=_WRONG[words]) as caught:
        _choose(*words.split())
    assert str(caught.value).endswith(".")


def test_searches_reach_the_recipe() -> None:
    recipe = _choose("--a_bit", "16", "--rounding", "awq", "--rotation", "residual").recipe
    assert (recipe.rounding, recipe.rotation) == ("awq", "residual")
    recipe = _choose("--recipe", "best", "--rounding", "nearest").recipe
    assert recipe.rounding == "nearest"
    # One scale for a whole weight is rounded to nearest whatever the recipe.
    assert _choose("--recipe", "best", "--mm_tensor", "True").recipe.rounding == "nearest"


def test_mixed_widths_find_what_stays_float_themselves() -> None:
    recipe = _choose("--target_bits", "9").recipe
    assert (recipe.target_bits, recipe.disable_names, recipe.max_bits) == (9, frozenset(), 8)
    words = "--target_bits 5 --w_bit 4 --a_bit 16 --format awq --disable_names lm_head"
    recipe = _choose(*words.split()).recipe
    assert (recipe.weight_bits, recipe.max_bits) == (4, 4)  # AWQ has no other
    assert recipe.disable_names == {"lm_head"}


@pytest.mark.parametrize("missing", ["model_path", "save_directory"])
def test_model_and_place_are_needed(missing: str) -> None:
    places = {"model_path": _PLACES[2:], "save_directory": _PLACES[:2]}[missing]
    with pytest.raises(ConfigError, match=missing):
        _read(places=places)
