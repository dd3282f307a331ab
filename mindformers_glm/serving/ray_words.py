"""The settings of a command, as words that go to another process and back."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from mindformers_glm.backends import default_target
from mindformers_glm.config.command_line import add_options, add_other_names
from mindformers_glm.config.run_config import RunConfig, load_run_config
from mindformers_glm.config.sentence_parser import SentenceParser
from mindformers_glm.core.errors import ConfigError


def given_words(arguments: argparse.Namespace, config: RunConfig) -> list[str]:
    """What was given of settings on a command line that has been parsed to `config`."""
    words = ["--config", arguments.config] if arguments.config is not None else []
    for name, texts in arguments.given:
        # --name=VALUE takes a value that begins with -.
        words += [f"--{name}={texts[0]}"] if len(texts) == 1 else [f"--{name}", *texts]
    if arguments.options:
        words += ["--options", *arguments.options]
    if not config.is_shipped_checkpoint:  # others may work in another folder
        words.append(f"--pretrained_model_dir={config.pretrained_model_dir.absolute()}")
    return words


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
