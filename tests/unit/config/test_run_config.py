"""YAML + command line + environment -> RunConfig."""

import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mindformers_glm.config.run_config import (
    PREDICT_GLM4,
    RunConfig,
    load_run_config,
    prepare_environment,
)
from mindformers_glm.config.runner_settings import check_types_together
from mindformers_glm.core.errors import ConfigError
from tests.unit.config.predict_arguments import predict_arguments

REPO = Path(__file__).parents[3]
CONFIGS = sorted((REPO / "configs").glob("*/*.yaml"))
# ChatGLM2 and ChatGLM3 are float16 checkpoints.
FLOAT16 = ("predict_chatglm2_6b", "predict_chatglm3_6b")
NOT_QUANTIZED = {"quantization": None, "quantization_group_size": None}
ALONE = ["--use_parallel", "False", "--parallel_config.model_parallel", "1"]


def load(*argv: str, **kwargs: Any) -> RunConfig:
    return load_run_config(predict_arguments(*argv), **{"environ": {}} | kwargs)


def yaml_file(folder: Path, tree: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_defaults_without_a_config_file_equal_the_shipped_yaml() -> None:
    path = CONFIGS[[config.name for config in CONFIGS].index("predict_glm4.yaml")]
    shipped = load("--config", str(path))
    assert load() == replace(shipped, model_levels={})  # it is about one model, they are not


def test_defaults_name_only_keys_of_the_shipped_yaml() -> None:
    shipped = yaml.safe_load((REPO / "configs/glm4/predict_glm4.yaml").read_text())
    assert PREDICT_GLM4["model"]["model_config"].items() <= shipped["model"]["model_config"].items()
    assert PREDICT_GLM4["context"].items() <= shipped["context"].items()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_accepted_on_one_process(path: Path) -> None:
    config = load("--config", str(path), *ALONE)
    dtype = "float16" if path.stem in FLOAT16 else "bfloat16"
    assert {config.llm[f"{kind}_dtype"] for kind in ("params", "compute")} == {dtype}
    # It would stay where a user asks for float32 by the two.
    assert config.llm["rotary_dtype"] is None
    assert config.llm["max_device_memory"] == (29 if "800i" in path.stem else 59) * 2**30


def test_command_line_wins_over_yaml_and_yaml_over_the_default(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, {"seed": 5, "predict_batch_size": 2, "top_k": 7})
    config = load("--config", str(path), "--seed", "6")
    assert (config.llm["seed"], config.llm["max_num_seqs"], config.sampling["top_k"]) == (6, 2, 7)
    assert config.sampling["top_p"] is None


def test_an_alias_on_the_command_line_wins_over_the_other_name_in_yaml(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, {"generation_config": {"top_k": 7}, "max_model_len": 100})
    config = load("--config", str(path), "--top_k", "3", "--model.model_config.seq_length", "50")
    assert (config.sampling["top_k"], config.llm["max_model_len"]) == (3, 50)


def test_relative_config_is_found_from_the_working_directory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, work = tmp_path / "script", tmp_path / "work"
    for folder, seed in ((script, 1), (work, 2)):
        folder.mkdir()
        yaml_file(folder, {"seed": seed})
    monkeypatch.chdir(work)
    assert load("--config", "run.yaml", script_folder=script).llm["seed"] == 2
    (work / "run.yaml").unlink()
    assert load("--config", "run.yaml", script_folder=script).llm["seed"] == 1


def test_relative_config_is_found_where_pip_installed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "share" / "mindformers_glm" / "configs"
    folder.mkdir(parents=True)
    yaml_file(folder, {"seed": 3})
    for scheme in (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")):
        places = {("data", scheme): str(tmp_path)}
        monkeypatch.setattr(
            "sysconfig.get_path", lambda *asked, found=places: found.get(asked, "/")
        )
        assert load("--config", "configs/run.yaml").llm["seed"] == 3


def test_config_is_found_beside_the_package_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load("--config", "configs/chatglm/predict_chatglm3_6b.yaml")
    assert config.llm["params_dtype"] == "float16"


def test_a_folder_as_config_is_told_with_a_file_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, message in (
        (str(tmp_path), "is a folder: give a YAML file, and it holds none"),
        ("configs", r"configs is a folder: give a YAML file, such as .*/predict_\w+\.yaml"),
        ("configs/glm4/", r"such as .*/configs/glm4/predict_glm4\.yaml"),
    ):
        with pytest.raises(ConfigError, match=message):
            load("--config", name)


@pytest.mark.parametrize("option", ["--save_file", "--config", "--pretrained_model_dir"])
def test_empty_file_name_is_called_empty(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option[2:]} is empty"):
        load(option, "")


def test_save_file_that_ends_as_a_folder_is_called_one() -> None:
    with pytest.raises(ConfigError, match="save_file answers/ is a folder: give the name of a"):
        load("--save_file", "answers/")


@pytest.mark.parametrize("number", ["abc", "0", ""])
def test_launcher_variable_that_is_no_number_is_one_sentence(number: str) -> None:
    with pytest.raises(ConfigError, match="MS_WORKER_NUM must be a whole number"):
        load(environ={"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": number})


def test_missing_config_file_names_both_places(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothere\.yaml does not exist .* or "):
        load("--config", "nothere.yaml", script_folder=tmp_path)


def test_checkpoint_left_out_is_the_shipped_one(tmp_path: Path) -> None:
    assert load().is_shipped_checkpoint
    assert load().pretrained_model_dir.name == "glm4-mini"
    config = load("--pretrained_model_dir", str(tmp_path))
    assert (config.pretrained_model_dir, config.is_shipped_checkpoint) == (tmp_path, False)


def test_load_checkpoint_is_another_name_of_the_folder(tmp_path: Path) -> None:
    assert load("--load_checkpoint", str(tmp_path)).pretrained_model_dir == tmp_path
    with pytest.raises(ConfigError, match="are two folders"):
        load("--load_checkpoint", "/a", "--pretrained_model_dir", "/b")


@pytest.mark.parametrize(
    ("params_dtype", "compute_dtype"),
    [("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "float16")],
)
def test_types_that_cannot_be_computed_are_refused(params_dtype: str, compute_dtype: str) -> None:
    with pytest.raises(ConfigError, match=r"use one of .*float32/float32"):
        check_types_together(
            {"params_dtype": params_dtype, "compute_dtype": compute_dtype, **NOT_QUANTIZED}
        )
    with pytest.raises(ConfigError, match="cannot be computed"):
        load(
            "--model.model_config.params_dtype",
            params_dtype,
            "--model.model_config.compute_dtype",
            compute_dtype,
        )


def test_quantization_is_taken_from_yaml_and_command_line(tmp_path: Path) -> None:
    path = str(yaml_file(tmp_path, {"quantization": "w4a16", "quantization_group_size": 32}))
    config = load("--config", path)
    assert (config.llm["quantization"], config.llm["quantization_group_size"]) == ("w4a16", 32)
    config = load("--config", path, "--quantization_group_size", "64")
    assert (config.llm["quantization"], config.llm["quantization_group_size"]) == ("w4a16", 64)
    assert NOT_QUANTIZED.items() <= load().llm.items()
    assert load("--quantization", "w8a8_dynamic").llm["quantization"] == "w8a8_dynamic"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--quantization", "int4"], "w4a16 or w4a8_dynamic here: these are the schemes"),
        (
            ["--quantization", "w4a16", "--quantization_group_size", "16"],
            "32 or 64 or 128 here: the int4 operators know no other",
        ),
        (
            ["--quantization", "w8a16", "--quantization_group_size", "64"],
            "goes with quantization w4a16, w4a8_dynamic only, and quantization is w8a16",
        ),
        (["--quantization_group_size", "64"], "quantization is not set"),
    ],
)
def test_a_quantization_that_does_not_exist_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(*argv)


def test_types_left_out_of_the_yaml_are_left_to_the_checkpoint(tmp_path: Path) -> None:
    config = load("--config", str(yaml_file(tmp_path, {"seed": 0})))
    for name in ("params_dtype", "compute_dtype", "max_device_memory"):
        assert config.llm[name] is None


SPLIT = ("--use_parallel", "True", "--parallel_config.model_parallel", "2")


def test_model_parallel_without_the_launcher_names_the_launcher() -> None:
    with pytest.raises(ConfigError, match=r"2 needs processes.*msrun_launcher\.sh"):
        load(*SPLIT)
    with pytest.raises(ConfigError, match="use_parallel True needs processes that a launcher"):
        load("--use_parallel", "True")


def launched(ranks: int, rank: int = 0) -> dict[str, str]:
    """The environment that msrun gives its workers (mindspore 2.7.1, process_entity)."""
    return {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": str(ranks), "RANK_ID": str(rank)}


def test_launched_ranks_must_equal_model_parallel() -> None:
    with pytest.raises(ConfigError, match="needs --use_parallel True"):
        load("--parallel_config.model_parallel", "2", environ=launched(2))
    with pytest.raises(ConfigError, match=r"4 processes, but .* is 2"):
        load(*SPLIT, environ=launched(4))
    with pytest.raises(ConfigError, match="2 processes"):
        load(environ=launched(2))
    assert load("--use_parallel", "True", environ=launched(1)).llm["seed"] == 0


def test_a_launched_process_knows_its_rank() -> None:
    assert (load().llm["model_parallel"], load().rank) == (1, 0)
    for rank in (0, 1):
        config = load(*SPLIT, environ=launched(2, rank))
        assert (config.llm["model_parallel"], config.rank) == (2, rank)


@pytest.mark.parametrize("wrong", ["", "-1", "2", "first"])
def test_a_rank_that_the_launcher_cannot_mean_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"RANK_ID must be .* 0 to 1"):
        load(*SPLIT, environ=launched(2) | {"RANK_ID": wrong})


@pytest.mark.parametrize("wrong", ["0", "two", "-2"])
def test_a_number_of_processes_that_the_launcher_cannot_mean_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="MS_WORKER_NUM must be a whole number above 0"):
        load(*SPLIT, environ=launched(2) | {"MS_WORKER_NUM": wrong})


def test_only_rank_0_says_what_has_no_effect(capsys: pytest.CaptureFixture[str]) -> None:
    load(*SPLIT, "--device_id", "3", environ=launched(2, 1))
    assert capsys.readouterr().err == ""
    load(*SPLIT, "--device_id", "3", environ=launched(2, 0))
    assert "device_id 3 changes nothing here" in capsys.readouterr().err


def test_setting_without_effect_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    load("--device_id", "3")
    assert "device_id 3 changes nothing here: it takes effect on Ascend only" in (
        capsys.readouterr().err
    )
    load("--device_id", "0")
    assert capsys.readouterr().err == ""
    load("--device_id", "0", "--verbose")
    assert "device_id 0" in capsys.readouterr().err
    load()


def test_environment_gets_graph_dumps_and_keeps_what_the_user_set() -> None:
    environ = {"GLOG_v": "1"}
    prepare_environment(load("--context.save_graphs", "True"), environ)
    assert environ["GLOG_v"] == "1"
    assert environ["MS_DEV_SAVE_GRAPHS"] == "1"
    assert environ["MS_DEV_SAVE_GRAPHS_PATH"] == "graph"


def test_the_draft_length_is_left_to_the_engine_unless_given(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, {"generation_config": {"prompt_lookup_num_tokens": 5}})
    assert load().llm["prompt_lookup_num_tokens"] is None
    assert load("--config", str(path)).llm["prompt_lookup_num_tokens"] == 5
    assert load("--prompt_lookup_num_tokens", "0").llm["prompt_lookup_num_tokens"] == 0
    with pytest.raises(ConfigError, match="prompt_lookup_num_tokens"):
        load("--prompt_lookup_num_tokens", "-1")


def test_prefix_caching_is_on_unless_switched_off(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, {"enable_prefix_caching": False})
    assert load().llm["enable_prefix_caching"] is True
    assert load("--config", str(path)).llm["enable_prefix_caching"] is False
    assert load("--enable_prefix_caching", "False").llm["enable_prefix_caching"] is False
    with pytest.raises(ConfigError, match="enable_prefix_caching"):
        load("--enable_prefix_caching", "1")


def test_the_number_of_threads_is_left_to_the_kernels_unless_given(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, {"num_threads": 1})
    assert load().llm["num_threads"] is None
    assert load("--config", str(path)).llm["num_threads"] == 1
    for wrong in ("0", "100000", "two"):
        with pytest.raises(ConfigError, match="num_threads"):
            load("--num_threads", wrong)


def test_how_a_conversation_is_written_is_an_option() -> None:
    kwargs = '{"enable_thinking": false, "effort": "high"}'
    options = ("--chat_template", "tool_use", "--chat_template_kwargs", kwargs)
    llm = load(*options, "--continue_final_message", "True").llm
    assert llm["chat_template"] == "tool_use"
    assert llm["chat_template_kwargs"] == {"enable_thinking": False, "effort": "high"}
    assert (llm["add_generation_prompt"], llm["continue_final_message"]) == (None, True)
    assert load("--add_generation_prompt", "False").llm["add_generation_prompt"] is False
    assert load().llm["chat_template_kwargs"] is None


def test_variables_of_the_chat_template_may_stand_in_the_yaml_file(tmp_path: Path) -> None:
    kwargs = {"enable_thinking": False, "a": {"b": 1}}
    path = yaml_file(tmp_path, {"chat_template_kwargs": kwargs})
    assert load("--config", str(path)).llm["chat_template_kwargs"] == kwargs
