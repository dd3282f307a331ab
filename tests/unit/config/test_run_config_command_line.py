"""The command line of predict: upstream's options and dotted settings."""

from typing import Any

import pytest

from mindformers_glm.config.command_line import given_settings
from mindformers_glm.config.sentence_parser import CommandLineError, asks_for_verbose
from mindformers_glm.core.errors import ConfigError
from tests.unit.config.predict_arguments import predict_arguments

# Options of upstream's run_mindformer.py (mindformers 1.7.0) with a value that is accepted here.
ACCEPTED = {
    "mode": "0",
    "device_id": "0",
    "device_target": "CPU",
    "run_mode": "predict",
    "do_eval": "False",
    "modal_type": "text",
    "predict_batch_size": "4",
    "load_checkpoint": "/ckpt",
    "auto_trans_ckpt": "True",
    "transform_process_num": "2",
    "only_save_strategy": "False",
    "resume_training": "False",
    "seed": "1",
    "use_parallel": "False",
    "profile": "False",
    "output_dir": "/logs",
    "do_sample": "True",
    "trust_remote_code": "False",
    "pretrained_model_dir": "/ckpt",
}
REFUSED = {
    "mode": "2",
    "do_eval": "True",
    "train_dataset_dir": "/data",
    "eval_dataset_dir": "/data",
    "modal_type": "image",
    "adapter_id": "a",
    "src_strategy_path_or_dir": "/s",
    "only_save_strategy": "True",
    "resume_training": "True",
    "strategy_load_checkpoint": "/s",
    "remote_save_url": "obs://x",
    "profile": "True",
    "epochs": "1",
    "batch_size": "1",
    "gradient_accumulation_steps": "1",
    "sink_mode": "True",
    "num_samples": "1",
    "register_path": "/r",
}


def values(*argv: str) -> dict[str, Any]:
    settings = given_settings(predict_arguments(*argv))
    return {path: given.value for path, given in settings.items()}


@pytest.mark.parametrize("option", ACCEPTED)
def test_option_of_upstream_is_accepted(option: str) -> None:
    assert len(values(f"--{option}", ACCEPTED[option])) == 1


@pytest.mark.parametrize("option", REFUSED)
def test_option_that_cannot_work_is_refused_by_name(option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        values(f"--{option}", REFUSED[option])


@pytest.mark.parametrize(
    "argv",
    [
        ["--context.max_device_memory", "2GB"],
        ["--context.max_device_memory=2GB"],
        ["--options", "context.max_device_memory=2GB"],
    ],
)
def test_any_yaml_key_can_be_given_in_three_ways(argv: list[str]) -> None:
    assert values(*argv) == {"context.max_device_memory": 2 * 2**30}


def test_options_takes_several_and_single_settings_win() -> None:
    assert values("--seed", "3", "--options", "seed=1", "top_k=2") == {"seed": 3, "top_k": 2}


def test_repeated_options_all_count() -> None:
    argv = ["--options", "seed=3", "--options", "temperature=2"]
    assert values(*argv) == {"seed": 3, "temperature": 2.0}


@pytest.mark.parametrize(
    "argv",
    [
        ["--predict_data", "A", "--predict_data", "B"],
        ["--predict_data", "A", "--input_data", "B"],
        ["--options", "predict_data=A", "input_data=B"],
    ],
)
def test_repeated_prompts_are_all_answered(argv: list[str]) -> None:
    assert values(*argv)["predict_data"] == ("A", "B")


def test_yaml_file_among_options_is_refused() -> None:
    with pytest.raises(ConfigError, match="--config FILE"):
        values("--options", "config=x")


@pytest.mark.parametrize(
    ("argv", "is_verbose"),
    [
        ([], False),
        (["--verbose"], True),
        (["--verbose=True"], True),
        (["--verbose", "False"], False),
        (["--predict_data", "a", "--verbose", "--seed", "x"], True),
    ],
)
def test_verbose_is_read_without_the_other_settings(argv: list[str], is_verbose: bool) -> None:
    assert asks_for_verbose(argv) is is_verbose


def test_mode_and_context_mode_are_one_setting() -> None:
    assert values("--mode", "0") == values("--context.mode", "GRAPH_MODE") | {"context.mode": 0}


def test_predict_data_takes_several_prompts() -> None:
    argv = ["--predict_data", "请介绍一下北京", "1 + 1 = ?", "--seed", "1"]
    assert values(*argv)["predict_data"] == ("请介绍一下北京", "1 + 1 = ?")


def test_prompt_that_begins_with_a_dash_is_given_with_an_equals_sign() -> None:
    assert values("--predict_data=-x")["predict_data"] == ("-x",)
    with pytest.raises(CommandLineError, match="--name=VALUE"):
        values("--predict_data", "-x")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--predict_dta", "x"], "did you mean predict_data"),
        (["--context.mod", "0"], r"did you mean context\.mode"),
        (["--top_kk=3"], "did you mean top_k"),
        (["stray"], "belongs to no option"),
        (["--seed"], "expected one argument"),
        (["--options", "seed"], "KEY=VALUE"),
        (["--options", "foo=1"], "Unknown setting foo on the command line"),
        (["--options", "context=1"], "is a block of settings"),
        (["--options", "config=x"], "give the YAML file as --config FILE"),
        (["--context", "x"], "block of settings: give one of them, such as context.max_device"),
        (["--temp", "1"], "did you mean temperature?"),
        (["--foo", "1"], "Unknown setting foo on the command line: mindformers-glm predict --help"),
        (["--context.foo", "1"], "context holds others, such as context.max_device_memory, "),
        (["--quiet"], "--help lists them"),
        (["--gpu", "x"], "--help lists them"),
        (["--prompts", "x"], "--help lists them"),
        (["--max_tokens", "1"], "did you mean max_new_tokens?"),
        (["--max-num-seqs", "4"], "did you mean predict_batch_size?"),
        (["--predict_batchsize", "4"], "did you mean predict_batch_size?"),
        (["--dtype", "float32"], "did you mean model.model_config.params_dtype?"),
        (["--checkpoint", "x"], "did you mean load_checkpoint?"),
        (["--trainer.model_nam", "x"], "did you mean trainer.model_name?"),
        (["--confg", "x.yaml"], "did you mean config?"),
    ],
)
def test_what_is_no_option_is_a_command_line_error(argv: list[str], message: str) -> None:
    with pytest.raises(CommandLineError, match=message):
        values(*argv)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("use_parallel", "yes", "True or False, got 'yes'"),
        ("predict_batch_size", "four", "a whole number, got 'four'"),
        ("predict_batch_size", "0", "at least 1"),
        ("temperature", "inf", "a number"),
        ("apply_chat_template", "maybe", "True, False or auto"),
        ("chat_template_kwargs", "[1]", "an object such as"),
        ("chat_template_kwargs", "{", "an object such as"),
        ("continue_final_message", "yes", "True or False"),
        ("context.max_device_memory", "59", 'a size such as "59GB"'),
        ("context.max_device_memory", "9" * 400 + "GB", r"a size .*99\.\.\. \(404 characters\)"),
        ("parallel_config.data_parallel", "2", "no data parallelism"),
    ],
)
def test_value_of_the_wrong_type_names_option_and_type(
    option: str, value: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        values(f"--{option}", value)
    assert f"--{option} on the command line" in str(error.value)


def test_abbreviated_options_are_not_guessed() -> None:
    with pytest.raises(CommandLineError, match="did you mean predict_data"):
        values("--predict_dat", "x")


@pytest.mark.parametrize(
    "argv",
    [
        ["--top_k", "x"],
        ["--top_k", "1.5"],
        ["--options", "top_k=x"],
        ["--temperature", "warm"],
        ["--temperature", "nan"],
        ["--do_sample", "yes"],
        ["--verbose=2"],
        ["--packed_cache", "maybe"],
        ["--context.save_graphs", "4"],
        ["--model.model_config.params_dtype", "int8"],
    ],
)
def test_a_value_that_cannot_be_read_is_an_error_of_the_command_line(argv: list[str]) -> None:
    with pytest.raises(CommandLineError, match=r"must be .*, got '"):
        values(*argv)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--predict-data", "a-b_c"], {"predict_data": ("a-b_c",)}),
        (["--save-file=a-b_c.txt"], {"save_file": "a-b_c.txt"}),
        (["--context.max-device-memory", "1GB"], {"context.max_device_memory": 2**30}),
        (["--options", "max-new-tokens=4"], {"max_new_tokens": 4}),
        (["--predict_data", "--top-k is what?"], {"predict_data": ("--top-k is what?",)}),
        (["--predict-data=--top-k=1"], {"predict_data": ("--top-k=1",)}),
        (["--max-new_tokens", "4", "--max_new_tokens", "5"], {"max_new_tokens": 5}),
    ],
)
def test_dashes_stand_for_underscores_in_names_alone(
    argv: list[str], expected: dict[str, Any]
) -> None:
    assert values(*argv) == expected


@pytest.mark.parametrize(
    "argv",
    [
        ["--max_model_len", "5", "--model.model_config.seq_length", "6"],
        ["--model.model_config.seq_length=6", "--max-model-len=5"],
        ["--options", "max_model_len=5", "model.model_config.seq_length=6"],
        ["--top_k", "5", "--generation_config.top_k", "6"],
        ["--device_target", "CPU", "--context.device_target", "Ascend"],
        ["--mode", "0", "--context.mode", "GRAPH_MODE"],
    ],
)
def test_two_names_of_one_setting_must_agree(argv: list[str]) -> None:
    with pytest.raises(CommandLineError, match=r"mean the same setting but differ: .*; keep one"):
        values(*argv)


def test_names_that_agree_and_a_name_given_again_are_no_contradiction() -> None:
    argv = ["--top_k", "5", "--generation_config.top_k", "5", "--seed", "1", "--seed", "2"]
    assert values(*argv) == {"top_k": 5, "seed": 2}


def test_prompts_stay_in_the_order_of_the_command_line() -> None:
    argv = ["--predict_data", "A", "--input_data", "B", "--predict_data", "C", "D"]
    assert values(*argv)["predict_data"] == ("A", "B", "C", "D")


def test_verbose_is_a_switch_and_a_setting() -> None:
    assert values("--verbose") == {"verbose": True}
    assert values("--verbose", "False") == {"verbose": False}


def test_help_prints_the_options_and_exits_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        values("--help")
    assert stop.value.code == 0
    assert "--predict_data" in capsys.readouterr().out
