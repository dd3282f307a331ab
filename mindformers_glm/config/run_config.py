"""What one run of `predict` does: YAML, command line and environment settled into one RunConfig.

environment.py says which other files read the environment.
"""

import argparse
import os
import sysconfig
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn

from mindformers_glm.config.command_line import given_settings
from mindformers_glm.config.launched import check_parallel, count_launched
from mindformers_glm.config.mindie_config import read_mindie_config
from mindformers_glm.config.model_names import locate_folder
from mindformers_glm.config.runner_settings import check_types_together
from mindformers_glm.config.settings_reader import Given, read_yaml_settings, settings_from_tree
from mindformers_glm.config.settings_table import SETTINGS
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.system.log import detail, note, set_verbose, silence_other_ranks

_DEFAULT_TARGET = "CPU"
# What configs/glm4/predict_glm4.yaml says, for an installed package that has no configs folder;
# a test holds them equal. Settings whose value is the default anyway are left out, and so are the
# levels: nobody has said that it is this model.
PREDICT_GLM4: dict[str, Any] = {
    "model": {
        "model_config": {
            "params_dtype": "bfloat16",
            "compute_dtype": "bfloat16",
        }
    },
    "context": {"max_device_memory": "59GB"},
}


@dataclass(frozen=True)
class RunConfig:
    """Everything `predict` needs to know, checked as far as that goes without the checkpoint.

    rank: which of the model_parallel processes this one is.
    auto_trans_ckpt: whether they cut their shares out of a whole checkpoint.
    save_graphs: MindSpore's level, 0: not saved.
    model_levels: by device_target, what model_levels.py calls the model; none where none is given.
    llm, sampling: keyword arguments of `LLM` and fields of `SamplingParams`, as the table says.
    server: what `serve` takes for itself, by the names of the block `serve`.
    server_llm: keyword arguments that it gives `LLM` over those of `llm`.
    """

    pretrained_model_dir: Path
    is_shipped_checkpoint: bool
    predict_data: tuple[str, ...]
    is_batch_size_given: bool
    save_file: Path
    stream: bool | Literal["auto"]
    output_dir: Path
    rank: int
    auto_trans_ckpt: bool
    save_graphs: int
    save_graphs_path: Path
    verbose: bool
    model_levels: Mapping[str, str]
    llm: Mapping[str, Any]
    sampling: Mapping[str, Any]
    server: Mapping[str, Any]
    server_llm: Mapping[str, Any]


def load_run_config(
    arguments: argparse.Namespace,
    *,
    script_folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    default_target: str = _DEFAULT_TARGET,
    start_ranks: Callable[[int], NoReturn] | None = None,
) -> RunConfig:
    """Settle the arguments of `predict` and the YAML file they name.

    Args:
        arguments: as the options of `add_options` give them.
        script_folder: where a relative --config is looked for when it is not found from the
            working directory; upstream looks only there.
        environ: os.environ unless given.
        default_target: the device of a run where device_target is not set.
        start_ranks: starts this command again in so many processes, where model_parallel asks for
            them and no launcher has started this one. The launcher's number of processes then is
            model_parallel where nobody gives one, and what else ranks need is implied.

    Raises:
        ConfigError, UnsupportedError: a setting is wrong or cannot work here.
    """
    environ = os.environ if environ is None else environ
    from_command_line = given_settings(arguments)
    if arguments.config is None:
        settings = settings_from_tree(PREDICT_GLM4, "in the default settings")
    else:
        settings = _read_config(_find_config(arguments.config, script_folder))
    folder = from_command_line.get("pretrained_model_dir")
    if folder is not None and not folder.value:  # "$DIR" that is not set; upstream's YAML has ''
        raise ConfigError("--pretrained_model_dir is empty: give a folder, or leave it out.")
    settings |= from_command_line
    values = {row.path: row.default for row in SETTINGS}
    values |= {path: given.value for path, given in settings.items()}
    set_verbose(values["verbose"])
    if start_ranks is not None:
        _imply_ranks(values, settings, from_command_line, environ, start_ranks)
    rank = check_parallel(values["use_parallel"], values["parallel_config.model_parallel"], environ)
    silence_other_ranks(rank)
    device_target = values["context.device_target"] or default_target
    _tell_what_has_no_effect(settings, device_target)
    # Told once: what the device does not take is not handed to it, which would tell it again.
    values |= {
        row.path: row.default
        for row in SETTINGS
        if row.use == "device" and row.idle_reason(device_target)
    }
    return _run_config(values, rank, "predict_batch_size" in settings)


def _imply_ranks(
    values: dict[str, Any],
    settings: Mapping[str, Given],
    from_command_line: Mapping[str, Given],
    environ: Mapping[str, str],
    start_ranks: Callable[[int], NoReturn],
) -> None:
    """Settle in `values` what a command with `start_ranks` need not be told."""
    launched = count_launched(environ)
    if launched is not None and "parallel_config.model_parallel" not in settings:
        values["parallel_config.model_parallel"] = launched
    if (num_ranks := values["parallel_config.model_parallel"]) == 1:
        return
    for path in ("use_parallel", "auto_trans_ckpt"):
        if path not in from_command_line:
            values[path] = True
    if launched is None and values["use_parallel"]:
        start_ranks(num_ranks)


def default_llm_arguments() -> dict[str, Any]:
    """What `predict` gives `LLM` where nothing but a folder is said."""
    given = settings_from_tree(PREDICT_GLM4, "in the default settings")
    values = {row.path: row.default for row in SETTINGS}
    return _llm_arguments(values | {path: one.value for path, one in given.items()})


def _llm_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    options = {row.name: values[row.path] for row in SETTINGS if row.use == "device"}
    arguments = {row.name: values[row.path] for row in SETTINGS if row.use == "LLM"}
    return arguments | {"device_options": options}


def silence_imports(environ: MutableMapping[str, str] | None = None) -> None:
    """Let MindSpore and transformers say errors only: warnings concern their own developers."""
    environ = os.environ if environ is None else environ
    environ.setdefault("GLOG_v", "3")
    environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def prepare_environment(config: RunConfig, environ: MutableMapping[str, str] | None = None) -> None:
    """Set what MindSpore reads from the environment while it is imported.

    A variable that the user has set stays as it is.
    """
    environ = os.environ if environ is None else environ
    if not config.verbose:
        silence_imports(environ)
    environ.setdefault("LOG_MF_PATH", str(config.output_dir / "log"))
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if config.save_graphs:
        # MindSpore 2.7.1 takes these in place of the deprecated context settings.
        environ["MS_DEV_SAVE_GRAPHS"] = str(config.save_graphs)
        environ["MS_DEV_SAVE_GRAPHS_PATH"] = str(config.save_graphs_path)


def shipped_checkpoint() -> Path:
    """The folder of glm4-mini, the small checkpoint that comes with this package."""
    return _package_folder() / "assets" / "glm4-mini"


def _package_folder() -> Path:
    return Path(str(files("mindformers_glm")))


def _path(name: str) -> Path:
    return Path(os.path.expanduser(name))  # unlike Path's own, it leaves ~unknown as it is


def _find_config(name: str, script_folder: Path | None) -> Path:
    if not name:
        raise ConfigError("--config is empty: give the name of a YAML file, or leave it out.")
    path = _path(name)
    beside = [script_folder] if script_folder is not None else []
    # A checkout, and where pip puts configs/ (data_files in setup.py) without and with --user.
    beside.append(_package_folder().parent)
    for scheme in (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")):
        beside.append(Path(sysconfig.get_path("data", scheme)) / "share" / "mindformers_glm")
    # An absolute name stays what it is behind any folder.
    candidates = list(dict.fromkeys([path, *(folder / path for folder in beside)]))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    for candidate in candidates:
        if candidate.is_dir():
            files_in_it = sorted(
                [*candidate.glob("[!.]*.yaml"), *candidate.glob("[!.]*/[!.]*.yaml")]
            )
            advice = f"such as {files_in_it[0]}" if files_in_it else "and it holds none"
            raise ConfigError(f"--config {name} is a folder: give a YAML file, {advice}.")
    looked = " or ".join(map(str, candidates[:3]))
    raise ConfigError(f"The config file {name} does not exist (looked for {looked}).")


def _read_config(path: Path) -> dict[str, Given]:
    if path.suffix != ".json":
        return read_yaml_settings(path)
    # As if its keys stood in a YAML file, one by one.
    return settings_from_tree(read_mindie_config(path), f"in {path}")


def _tell_what_has_no_effect(settings: Mapping[str, Given], device_target: str) -> None:
    for setting in SETTINGS:
        given = settings.get(setting.path)
        if given is None or not (reason := setting.idle_reason(device_target)):
            continue
        # Whoever keeps the value every upstream file carries need not read about it.
        tell = detail if given.value == setting.default else note
        tell(f"{given.name} {given.value} changes nothing here: {reason}")


def _run_config(values: Mapping[str, Any], rank: int, is_batch_size_given: bool) -> RunConfig:
    if not values["save_file"]:
        raise ConfigError("save_file is empty: give the name of a file.")
    if values["save_file"].endswith("/"):
        raise ConfigError(f"save_file {values['save_file']} is a folder: give the name of a file.")
    folder, is_shipped = _checkpoint_folder(
        values["pretrained_model_dir"], values["load_checkpoint"]
    )
    llm = _llm_arguments(values)
    sampling = {row.name: values[row.path] for row in SETTINGS if row.use == "sampling"}
    for row in SETTINGS:
        if row.check is not None:
            row.check(values[row.path])
    check_types_together(llm)
    return RunConfig(
        pretrained_model_dir=folder,
        is_shipped_checkpoint=is_shipped,
        predict_data=values["predict_data"],
        is_batch_size_given=is_batch_size_given,
        save_file=_path(values["save_file"]),
        stream=values["stream"],
        output_dir=_path(values["output_dir"]),
        rank=rank,
        auto_trans_ckpt=values["auto_trans_ckpt"],
        save_graphs=int(values["context.save_graphs"]),
        save_graphs_path=_path(values["context.save_graphs_path"]),
        verbose=values["verbose"],
        model_levels=MappingProxyType(
            {
                path.removeprefix("model_level."): level
                for path, level in values.items()
                if path.startswith("model_level.") and level is not None
            }
        ),
        llm=MappingProxyType(llm),
        sampling=MappingProxyType(sampling),
        server=_values_for("server", values),
        server_llm=_values_for("server LLM", values),
    )


def _values_for(use: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType({row.name: values[row.path] for row in SETTINGS if row.use == use})


def _checkpoint_folder(pretrained_model_dir: str, load_checkpoint: str) -> tuple[Path, bool]:
    """The one folder that holds config, tokenizer and weights; True if it is the shipped one."""
    names = [name for name in (pretrained_model_dir, load_checkpoint) if name]
    given = [_path(str(locate_folder(name))) for name in dict.fromkeys(names)]
    if len(given) == 2 and given[0].resolve() != given[1].resolve():
        raise ConfigError(
            f"load_checkpoint {given[1]} and pretrained_model_dir {given[0]} are two folders, but "
            "config, tokenizer and weights are read from one: put the weights (or links "
            "to them) there and leave load_checkpoint out."
        )
    if given:
        return given[0], False
    return shipped_checkpoint(), True
