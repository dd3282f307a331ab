"""Command lines whose errors are one sentence; knows no setting, so that --help answers at once."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mindformers_glm.core.errors import ConfigError


class CommandLineError(ConfigError):
    """The command line cannot be understood at all; exit code 2, as is usual for that."""


class SentenceParser(argparse.ArgumentParser):
    """Raises instead of printing its usage and exiting; takes --save-file for --save_file.

    sentence: what to say where argparse's own words would not help; empty: those.
    """

    sentence = ""

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse all words; a command may set its own `reject` for those that no argument takes.

        Raises:
            CommandLineError: they cannot be understood.
            SystemExit: --help, after printing it.
        """
        arguments, rest = self.parse_known_args(words)
        if rest:
            vars(arguments).get("reject", self.reject)(rest)
        return arguments

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, and what it calls for a command's own parser too."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._with_underscores(word) for word in words], namespace)

    def _with_underscores(self, word: str) -> str:
        """The word as the option is called, if it is one: a prompt may look like one too."""
        name, equals, value = word.partition("=")
        known = f"--{name[2:].replace('-', '_')}"
        is_option = word.startswith("--") and known in self._option_string_actions
        return f"{known}{equals}{value}" if is_option else word

    def reject(self, words: Sequence[str]) -> NoReturn:
        """Refuse what no argument takes."""
        self.error(f"unrecognized arguments: {' '.join(words)}")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong."""
        hint = ""
        if "expected" in message:
            hint = "; a value that begins with - is written as --name=VALUE"
        raise CommandLineError(self.sentence or f"The command line is wrong: {message}{hint}.")


def asks_for_verbose(argv: Sequence[str]) -> bool:
    """Whether --verbose is given; for errors that come before the settings can be read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--verbose", nargs="?", const="true", default="false")
    return bool(parser.parse_known_args(argv)[0].verbose.lower() == "true")
