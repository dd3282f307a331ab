"""The settings of a command, as words that go to another process and back."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindformers_glm.backends import default_target
from mindformers_glm.config.command_line import add_options, add_other_names
from mindformers_glm.config.run_config import RunConfig, load_run_config
from mindformers_glm.config.sentence_parser import SentenceParser
from mindformers_glm.config.settings_reader import setting_from_text
from mindformers_glm.core.errors import ConfigError

_FOLDERS = ("pretrained_model_dir", "load_checkpoint")  # two names of one
_KEY_FILE, _TEMPLATE = "serve.api_key_file", "chat_template"


def given_words(arguments: argparse.Namespace, config: RunConfig) -> list[str]:
    """What was given of settings on a command line that has been parsed to `config`.

    Names of files and folders become absolute ones: others may work in another folder.
    """
    words = []
    template = _template_file(config)
    if arguments.config is not None:
        # One that is not here is beside the package, on every machine.
        file = Path(os.path.expanduser(arguments.config))
        words += ["--config", str(file.absolute() if file.is_file() else arguments.config)]
    replaced = (*_FOLDERS, _KEY_FILE, *([_TEMPLATE] if template else []))
    for name, texts in arguments.given:
        if setting_from_text(name, texts, arguments.command)[0].path in replaced:
            continue
        # --name=VALUE takes a value that begins with -.
        words += [f"--{name}={texts[0]}"] if len(texts) == 1 else [f"--{name}", *texts]
    if arguments.options:
        words += ["--options", *arguments.options]
    if not config.is_shipped_checkpoint:
        folder = config.pretrained_model_dir.absolute()
        words += [f"--{name}={folder}" for name in _FOLDERS]
    if arguments.command == "serve" and (keys := config.server["api_key_file"]) is not None:
        words.append(f"--{_KEY_FILE}={Path(os.path.expanduser(keys)).absolute()}")
    if template:
        words.append(f"--{_TEMPLATE}={template}")
    return words


def _template_file(config: RunConfig) -> str:
    """The file that writes conversations, by its whole name; "": none, or one of the checkpoint's.

    A word alone may be the name of one of the checkpoint's templates, which comes before a file.
    """
    given = config.llm["chat_template"]
    if not given or not ("." in given or os.sep in given):
        return ""
    file = os.path.abspath(os.path.expanduser(given))
    return file if os.path.isfile(file) else ""


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Words of settings by their names, as a YAML file gives them."""
    words = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            raise ConfigError(
                f"The setting {name} is a block: write its keys as {name}.KEY, one by one."
            )
        texts = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        words += [f"--{name}={texts[0]}"] if len(texts) == 1 else [f"--{name}", *texts]
    return words


def read_words(words: Sequence[str], command: str = "serve") -> RunConfig:
    """The settings that words of a command mean on this machine.

    Raises:
        ConfigError: they mean none.
    """
    parser = SentenceParser(prog=command, allow_abbrev=False)
    add_options(parser, command)
    if command == "serve":
        add_other_names(parser)
    arguments = parser.read(list(words))
    return load_run_config(arguments, script_folder=None, default_target=default_target())
