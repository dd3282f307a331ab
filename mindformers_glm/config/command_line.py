"""The command line of `predict`: upstream's options, and every run setting as `--path value`.

Upstream's run_mindformer.py (mindformers 1.7.0) takes named options, `--options a.b=v` and any
`--a.b v` or `--a.b=v`. Here all of them are names of one table, `yaml_schema.SETTINGS`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from mindformers_glm.config.settings_reader import (
    COMMAND_LINE,
    Given,
    refuse_if_block,
    refuse_if_listed,
    setting_from_text,
    unknown_name,
)
from mindformers_glm.config.value_types import BOOLEAN, INTEGER, NUMBER, ON_OFF_AUTO
from mindformers_glm.config.yaml_schema import SETTINGS, Setting
from mindformers_glm.core.errors import ConfigError

_METAVARS = {BOOLEAN: "True|False", INTEGER: "N", NUMBER: "X", ON_OFF_AUTO: "on|off|auto"}


class CommandLineError(ConfigError):
    """The command line cannot be understood at all; exit code 2, as is usual for that."""


@dataclass(frozen=True)
class CommandLine:
    """What was asked for: a YAML file, and settings that win over it."""

    config: str | None
    settings: dict[str, Given]


def parse_command_line(argv: Sequence[str], prog: str) -> CommandLine:
    """Read the arguments of `predict`.

    Raises:
        CommandLineError: an unknown option, or an option without its value.
        ConfigError: a value that its setting does not take, or an option of training.
        SystemExit: --help, after printing it.
    """
    parser = _build_parser(prog)
    arguments, rest = parser.parse_known_args(argv)
    for word in rest:
        _reject(word)
    settings: dict[str, Given] = {}
    # Single settings win over --options, as upstream has it.
    for assignment in arguments.options or ():
        name, equals, text = assignment.partition("=")
        if not equals:
            raise CommandLineError(f"--options takes KEY=VALUE pairs, got {assignment!r}.")
        _enter(settings, name, [text])
    singles: dict[str, Given] = {}
    for name, texts in (arguments.given or {}).values():
        _enter(singles, name, texts)
    return CommandLine(arguments.config, settings | singles)


def asks_for_verbose(argv: Sequence[str]) -> bool:
    """Whether --verbose is given; for errors that come before the settings can be read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--verbose", nargs="?", const="true", default="false")
    return bool(parser.parse_known_args(argv)[0].verbose.lower() == "true")


def _enter(settings: dict[str, Given], name: str, texts: list[str]) -> None:
    """Add a setting; of one given twice the last value stays, of texts all."""
    setting, given = setting_from_text(name, texts)
    before = settings.get(setting.path)
    if before is not None and setting.type.takes_many:
        given = replace(given, value=before.value + given.value)
    settings[setting.path] = given


def _reject(word: str) -> NoReturn:
    """Say why an argument that no option takes is wrong."""
    if not word.startswith("--") or word == "--":
        raise CommandLineError(
            f"{word!r} on the command line belongs to no option: a setting is --name value."
        )
    name = word[2:].partition("=")[0]
    refuse_if_listed(name, COMMAND_LINE)
    try:
        refuse_if_block(name, COMMAND_LINE)
        raise unknown_name(name, COMMAND_LINE)
    except ConfigError as problem:
        raise CommandLineError(str(problem)) from None


class _StoreGiven(argparse.Action):
    """Collects {setting path: (name as typed, texts)}.

    A repeated setting keeps its last value, but where it takes many, such as prompts, all of them.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        assert option_string is not None
        given = dict(namespace.given or {})
        if isinstance(values, list):
            texts = [*given.get(self.dest, ("", []))[1], *values]
        else:
            texts = [values]
        given[self.dest] = (option_string.removeprefix("--"), texts)
        namespace.given = given


class SentenceParser(argparse.ArgumentParser):
    """Raises instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        hint = ""
        if "expected" in message:
            hint = "; a value that begins with - is written as --name=VALUE"
        raise CommandLineError(f"The command line is wrong: {message}{hint}.")


def _build_parser(prog: str) -> argparse.ArgumentParser:
    parser = SentenceParser(
        prog=prog,
        allow_abbrev=False,
        argument_default=None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Answer prompts with a GLM model.",
        epilog="Any key of the YAML file is an option too, e.g. --context.save_graphs 1, and\n"
        "--options KEY=VALUE ... sets several. The command line wins over the YAML file.",
    )
    parser.add_argument("--config", help="YAML file, e.g. configs/glm4/predict_glm4.yaml")
    parser.add_argument(
        "--options", nargs="+", action="extend", metavar="KEY=VALUE", help="several settings"
    )
    parser.set_defaults(given=None)
    for setting in SETTINGS:
        _add_option(parser, setting)
    return parser


def _add_option(parser: argparse.ArgumentParser, setting: Setting) -> None:
    names = [*setting.options, setting.path, *setting.aliases]
    nargs: str | None = "+" if setting.type.takes_many else None
    const = None
    if setting.path == "verbose":  # the one setting that is also a plain switch
        nargs, const = "?", "True"
    if setting.help:
        # --help shows one name; the others work all the same.
        _add(parser, names[:1], setting, nargs, const, setting.help)
        names = names[1:]
    if names:
        _add(parser, names, setting, nargs, const, argparse.SUPPRESS)


def _add(
    parser: argparse.ArgumentParser,
    names: list[str],
    setting: Setting,
    nargs: str | None,
    const: str | None,
    help_text: str,
) -> None:
    parser.add_argument(
        *(f"--{name}" for name in names),
        action=_StoreGiven,
        dest=setting.path,
        nargs=nargs,
        const=const,
        metavar=_METAVARS.get(setting.type, names[0].rsplit(".", 1)[-1].upper()),
        help=help_text,
    )
