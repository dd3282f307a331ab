"""What one run of `predict` does: YAML, command line and environment settled into one RunConfig.

This is the only file that reads the environment.
"""

import argparse
import os
import sysconfig
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from mindformers_glm.config.command_line import given_settings
from mindformers_glm.config.launched import check_parallel
from mindformers_glm.config.num_threads import check_num_threads
from mindformers_glm.config.runner_settings import PRECISIONS
from mindformers_glm.config.settings_reader import (
    Given,
    default_value,
    read_yaml_settings,
    settings_from_tree,
)
from mindformers_glm.config.yaml_schema import SETTINGS
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.quantization_scheme import read_scheme
from mindformers_glm.system.log import detail, note, set_verbose, silence_other_ranks

# What configs/glm4/predict_glm4.yaml says, for an installed package that has no configs folder;
# a test holds them equal. Settings whose value is the default anyway are left out.
PREDICT_GLM4: dict[str, Any] = {
    "model": {
        "model_config": {
            "params_dtype": "bfloat16",
            "compute_dtype": "bfloat16",
            "rotary_dtype": "bfloat16",
        }
    },
    "context": {"max_device_memory": "59GB"},
}


@dataclass(frozen=True)
class GenerationOverrides:
    """Generation settings that win over generation_config.json; None leaves them to it."""

    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    max_new_tokens: int | None
    max_length: int | None
    min_new_tokens: int | None
    stop: tuple[str, ...]


@dataclass(frozen=True)
class RunConfig:
    """Everything `predict` needs to know, checked as far as that goes without the checkpoint.

    A dtype of None is left to the checkpoint (params_dtype) or to params_dtype (the other two),
    prompt_lookup_num_tokens of None to the engine, num_threads of None to the kernels.
    rank: which of the model_parallel processes this one is.
    auto_trans_ckpt: whether they cut their shares out of a whole checkpoint.
    max_device_memory: bytes, or None for no cap. save_graphs_path: None where graphs are not saved.
    """

    pretrained_model_dir: Path
    is_shipped_checkpoint: bool
    predict_data: tuple[str, ...]
    predict_batch_size: int
    is_batch_size_given: bool
    save_file: Path
    output_dir: Path
    seed: int
    generation: GenerationOverrides
    prompt_lookup_num_tokens: int | None
    apply_chat_template: bool | Literal["auto"]
    params_dtype: str | None
    compute_dtype: str | None
    rotary_dtype: str | None
    quantization: str | None
    quantization_group_size: int | None
    max_device_memory: int | None
    max_model_len: int | None
    block_size: int
    enable_prefix_caching: bool
    num_threads: int | None
    device_target: str | None
    packed_cache: Literal["auto", "on", "off"]
    model_parallel: int
    rank: int
    auto_trans_ckpt: bool
    save_graphs: int
    save_graphs_path: Path
    verbose: bool

    def __post_init__(self) -> None:
        if self.params_dtype and self.compute_dtype:
            check_precision(self.params_dtype, self.compute_dtype)
        check_num_threads(self.num_threads)
        read_scheme(self.quantization, self.quantization_group_size)


def load_run_config(
    arguments: argparse.Namespace,
    *,
    script_folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> RunConfig:
    """Settle the arguments of `predict` and the YAML file they name.

    Args:
        arguments: as the options of `add_options` give them.
        script_folder: where a relative --config is looked for when it is not found from the
            working directory; upstream looks only there.
        environ: os.environ unless given.

    Raises:
        ConfigError, UnsupportedError: a setting is wrong or cannot work here.
    """
    from_command_line = given_settings(arguments)
    if arguments.config is None:
        settings = settings_from_tree(PREDICT_GLM4, "in the default settings")
    else:
        settings = read_yaml_settings(_find_config(arguments.config, script_folder))
    settings |= from_command_line
    set_verbose(_value(settings, "verbose"))
    rank = check_parallel(
        _value(settings, "use_parallel"),
        _value(settings, "parallel_config.model_parallel"),
        os.environ if environ is None else environ,
    )
    silence_other_ranks(rank)
    _tell_what_has_no_effect(settings)
    return _run_config(settings, rank)


def check_precision(params_dtype: str, compute_dtype: str) -> None:
    """Refuse a pair of types that the operators do not compute.

    Raises:
        ConfigError: names the pairs they do.
    """
    if (params_dtype, compute_dtype) not in PRECISIONS:
        allowed = ", ".join(f"{params}/{compute}" for params, compute in PRECISIONS)
        raise ConfigError(
            f"params_dtype {params_dtype} with compute_dtype {compute_dtype} cannot be computed: "
            f"use one of params_dtype/compute_dtype {allowed}."
        )


def prepare_environment(config: RunConfig, environ: MutableMapping[str, str] | None = None) -> None:
    """Set what MindSpore reads from the environment while it is imported.

    Their warnings concern their own developers, so without --verbose only errors are let through;
    a variable that the user has set stays as it is.
    """
    environ = os.environ if environ is None else environ
    if not config.verbose:
        environ.setdefault("GLOG_v", "3")
        environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    environ.setdefault("LOG_MF_PATH", str(config.output_dir / "log"))
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if config.save_graphs:
        # MindSpore 2.7.1 takes these in place of the deprecated context settings.
        environ["MS_DEV_SAVE_GRAPHS"] = str(config.save_graphs)
        environ["MS_DEV_SAVE_GRAPHS_PATH"] = str(config.save_graphs_path)


def _path(name: str) -> Path:
    return Path(os.path.expanduser(name))  # unlike Path's own, it leaves ~unknown as it is


def _find_config(name: str, script_folder: Path | None) -> Path:
    if not name:
        raise ConfigError("--config is empty: give the name of a YAML file, or leave it out.")
    path = _path(name)
    candidates = [path]
    if not path.is_absolute():
        if script_folder is not None:
            candidates.append(script_folder / path)
        # Where `pip install .` puts configs/ (data_files in setup.py).
        candidates.append(Path(sysconfig.get_path("data")) / "share" / "mindformers_glm" / path)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = " or ".join(str(candidate) for candidate in candidates)
    raise ConfigError(f"The config file {name} does not exist (looked for {looked}).")


def _value(settings: Mapping[str, Given], path: str) -> Any:
    """What was given, else the default."""
    return settings[path].value if path in settings else default_value(path)


def _tell_what_has_no_effect(settings: Mapping[str, Given]) -> None:
    for setting in SETTINGS:
        given = settings.get(setting.path)
        if given is None or not setting.without_effect:
            continue
        # Whoever keeps the value every upstream file carries need not read about it.
        tell = detail if given.value == setting.default else note
        tell(f"{given.name} {given.value} changes nothing here: {setting.without_effect}")


def _run_config(settings: Mapping[str, Given], rank: int) -> RunConfig:
    def value(path: str) -> Any:
        return _value(settings, path)

    if not value("save_file"):
        raise ConfigError("save_file is empty: give the name of a file.")
    folder, is_shipped = _checkpoint_folder(value("pretrained_model_dir"), value("load_checkpoint"))
    generation = {name: value(name) for name in GenerationOverrides.__dataclass_fields__}
    # As in prompts, \\n stands for a new line, which is hard to type in a shell.
    generation["stop"] = tuple(text.replace("\\n", "\n") for text in generation["stop"])
    return RunConfig(
        pretrained_model_dir=folder,
        is_shipped_checkpoint=is_shipped,
        predict_data=value("predict_data") or (),
        predict_batch_size=value("predict_batch_size"),
        is_batch_size_given="predict_batch_size" in settings,
        save_file=_path(value("save_file")),
        output_dir=_path(value("output_dir")),
        seed=value("seed"),
        generation=GenerationOverrides(**generation),
        prompt_lookup_num_tokens=value("prompt_lookup_num_tokens"),
        apply_chat_template=value("apply_chat_template"),
        params_dtype=value("model.model_config.params_dtype"),
        compute_dtype=value("model.model_config.compute_dtype"),
        rotary_dtype=value("model.model_config.rotary_dtype"),
        quantization=value("quantization"),
        quantization_group_size=value("quantization_group_size"),
        max_device_memory=value("context.max_device_memory"),
        max_model_len=value("max_model_len"),
        block_size=value("model.model_config.block_size"),
        enable_prefix_caching=value("enable_prefix_caching"),
        num_threads=value("num_threads"),
        device_target=value("context.device_target"),
        packed_cache=value("packed_cache"),
        model_parallel=value("parallel_config.model_parallel"),
        rank=rank,
        auto_trans_ckpt=value("auto_trans_ckpt"),
        save_graphs=int(value("context.save_graphs")),
        save_graphs_path=_path(value("context.save_graphs_path")),
        verbose=value("verbose"),
    )


def _checkpoint_folder(pretrained_model_dir: str, load_checkpoint: str) -> tuple[Path, bool]:
    """The one folder that holds config, tokenizer and weights; True if it is the shipped one."""
    given = [_path(name) for name in (pretrained_model_dir, load_checkpoint) if name]
    if len(given) == 2 and given[0].resolve() != given[1].resolve():
        raise ConfigError(
            f"load_checkpoint {given[1]} and pretrained_model_dir {given[0]} are two folders, but "
            "config, tokenizer and weights are read from one: put the weights (or links "
            "to them) there and leave load_checkpoint out."
        )
    if given:
        return given[0], False
    return Path(str(files("mindformers_glm"))) / "assets" / "glm4-mini", True
