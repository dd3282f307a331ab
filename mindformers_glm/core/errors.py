"""Errors that a user can cause.

The command line prints such an error as one sentence and exits with 1; anything else that is
raised is a defect of this project. A message says what was expected, what came, where, and what
to do.
"""

import re


def first_words(problem: BaseException) -> str:
    """Return the first line of an error's message that says something.

    MindSpore 2.7.1 sets headings ("- C++ Call Stack: ...") between rulers of dashes.
    """
    lines = [line.strip() for line in str(problem).splitlines() if any(map(str.isalnum, line))]
    plain = [line for line in lines if not line.startswith("- ")]
    return [*plain, *lines, "no message"][0]


def describe_defect(problem: BaseException) -> str:
    """Return what a request is told that a defect of this project has ended."""
    return f"internal error, {type(problem).__name__}: {first_words(problem)}"


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BEGINNING, _END = 1_200, 600  # characters of a message that are kept


class GlmError(Exception):
    """Base of every error that is the user's to mend.

    A message may quote a file, where a name can have megabytes, line ends and what moves a
    terminal's cursor: the middle is left out then, and such characters are spelt.
    """

    def __init__(self, message: str = "") -> None:
        if len(message) > _BEGINNING + _END:
            num_left_out = len(message) - _BEGINNING - _END
            middle = f"... ({num_left_out} characters) ..."
            message = message[:_BEGINNING] + middle + message[-_END:]
        super().__init__(_CONTROLS.sub(lambda match: ascii(match[0])[1:-1], message))


class ConfigError(GlmError, ValueError):
    """A config.json, a YAML file, the command line or a setting is wrong."""


class CheckpointError(GlmError):
    """A checkpoint folder or one of its weight files is wrong."""


class MemoryBudgetError(GlmError):
    """Weights, KV cache and workspace do not fit into the memory allowed or available."""


class RankError(GlmError):
    """The ranks of a job cannot exchange what they have computed."""


class PromptError(GlmError, ValueError):
    """One prompt cannot be run; the others can."""


class UnsupportedError(GlmError):
    """A known option, model or device that cannot work here."""
