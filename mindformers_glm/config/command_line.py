"""Command lines of `predict`, `serve` and `chat`: each setting as `--path value`, and --config.

Upstream's run_mindformer.py (mindformers 1.7.0) takes named options, `--options a.b=v` and any
`--a.b v` or `--a.b=v`. Here all of them are names of one table, `settings_table.SETTINGS`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from mindformers_glm.config.sentence_parser import CommandLineError
from mindformers_glm.config.serve_settings import (
    DTYPE_NAMES,
    DTYPE_SETTINGS,
    OTHER_NAMES,
    SWITCHES,
    WITHOUT_EFFECT,
)
from mindformers_glm.config.setting import Setting
from mindformers_glm.config.settings_reader import (
    COMMAND_LINE,
    Given,
    check_agreement,
    refuse_if_block,
    refuse_if_listed,
    setting_from_text,
    unknown_name,
)
from mindformers_glm.config.settings_table import SETTINGS
from mindformers_glm.config.value_types import BOOLEAN, CACHE_MODE, INTEGER, NUMBER
from mindformers_glm.core.errors import ConfigError

_METAVARS = {BOOLEAN: "True|False", INTEGER: "N", NUMBER: "X", CACHE_MODE: "on|off|auto|verify"}


def add_options(parser: argparse.ArgumentParser, command: str = "predict") -> None:
    """Add all options of a command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "Any key of the YAML file is an option too, e.g. --context.save_graphs 1, and\n"
        "--options KEY=VALUE ... sets several. The command line wins over the YAML file."
    )
    parser.add_argument("--config", help="YAML file, e.g. configs/glm4/predict_glm4.yaml")
    parser.add_argument(
        "--options", nargs="+", action="extend", metavar="KEY=VALUE", help="several settings"
    )
    parser.set_defaults(given=(), command=command, reject=partial(_reject, command))
    for setting in SETTINGS:
        if command in setting.commands:
            _add_option(parser, setting, has_switches=command == "serve")


def add_other_names(parser: argparse.ArgumentParser) -> None:
    """Add the spellings of other servers to the command line of `serve`."""
    for name, path in OTHER_NAMES.items():
        parser.add_argument(
            f"--{name}", action=_StoreAs, const=(path, None), help=argparse.SUPPRESS
        )
    parser.add_argument("--dtype", action=_StoreDtype, help=argparse.SUPPRESS)
    for name, (path, text) in SWITCHES.items():
        parser.add_argument(
            f"--{name}", action=_StoreAs, const=(path, text), nargs=0, help=argparse.SUPPRESS
        )
    for name in WITHOUT_EFFECT:
        parser.add_argument(f"--{name}", nargs="?", const="", help=argparse.SUPPRESS)


def given_settings(arguments: argparse.Namespace) -> dict[str, Given]:
    """The settings that were given; they win over the YAML file `arguments.config`.

    Raises:
        CommandLineError: --options holds what is no pair or no setting, a value cannot be read, or
            two names of one setting disagree.
        ConfigError: a value that its setting does not take, or an option of training.
    """
    settings: dict[str, Given] = {}
    # Single settings win over --options, as upstream has it.
    for assignment in arguments.options or ():
        name, equals, text = assignment.partition("=")
        if not equals:
            raise CommandLineError(f"--options takes KEY=VALUE pairs, got {assignment!r}.")
        _enter(settings, name, [text], arguments.command)
    singles: dict[str, Given] = {}
    for name, texts in arguments.given:
        _enter(singles, name, texts, arguments.command)
    settings |= singles
    for path in settings:
        setting = SETTINGS.find(path)
        if setting is not None and arguments.command not in setting.commands:
            raise _of_another_command(setting, arguments.command)
    return settings


def _enter(settings: dict[str, Given], name: str, texts: list[str], command: str) -> None:
    """Add a setting; of one given twice by one name the last value stays, of texts all."""
    setting, given = setting_from_text(name, texts, command)
    before = settings.get(setting.path)
    if before is not None and setting.type.takes_many:
        given = replace(given, value=before.value + given.value)
    elif before is not None and before.name != given.name:
        try:
            check_agreement(before, given)
        except ConfigError as problem:
            raise CommandLineError(str(problem)) from None
    settings[setting.path] = given


def _reject(command: str, words: Sequence[str]) -> NoReturn:
    """Say why the first argument that no option takes is wrong."""
    if not words[0].startswith("--") or words[0] == "--":
        raise CommandLineError(
            f"{words[0]!r} on the command line belongs to no option: a setting is --name value."
        )
    name = words[0][2:].partition("=")[0].replace("-", "_")
    refuse_if_listed(name, COMMAND_LINE)
    refuse_if_block(name, COMMAND_LINE)
    if (setting := SETTINGS.find(name)) is not None:
        raise _of_another_command(setting, command)
    raise unknown_name(name, COMMAND_LINE, command)


def _of_another_command(setting: Setting, command: str) -> CommandLineError:
    return CommandLineError(
        f"{setting.path} {COMMAND_LINE} is a setting of {' and '.join(setting.commands)}, not of "
        f"{command}: leave it out."
    )


class _StoreAs(argparse.Action):
    """Collects a setting given by another name: `const` is its own, and its text for a switch."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        path, text = self.const
        namespace.given = (*namespace.given, (path, [values if text is None else text]))


class _StoreDtype(argparse.Action):
    """Collects vLLM's --dtype as the settings that it stands for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values != "auto":
            name = DTYPE_NAMES.get(values, values)
            namespace.given += tuple((path, [name]) for path in DTYPE_SETTINGS)


class _StoreGiven(argparse.Action):
    """Collects (name as typed, texts) in the order of the command line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        assert option_string is not None
        texts = values if isinstance(values, list) else [values]
        namespace.given = (*namespace.given, (option_string.removeprefix("--"), texts))


def _add_option(
    parser: argparse.ArgumentParser, setting: Setting, *, has_switches: bool = False
) -> None:
    names = [*setting.options, setting.path, *setting.aliases]
    nargs: str | None = "+" if setting.type.takes_many else None
    const = None
    # Of predict's settings one is also a plain switch, of serve's all, as vLLM's are.
    if setting.path == "verbose" or (has_switches and setting.type is BOOLEAN):
        nargs, const = "?", "True"
    # --help shows one name; the others work all the same.
    shown = names[:1] if setting.help else []
    default = f" (default {setting.default_text})" if setting.default_text else ""
    for part, help_text in (
        (shown, f"{setting.help}{default}"),
        (names[len(shown) :], argparse.SUPPRESS),
    ):
        if part:
            parser.add_argument(
                *(f"--{name}" for name in part),
                action=_StoreGiven,
                dest=setting.path,
                nargs=nargs,
                const=const,
                metavar=_METAVARS.get(setting.type, part[0].rpartition(".")[2].upper()),
                help=help_text,
            )
