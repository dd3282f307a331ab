"""Errors that a user can cause.

The command line prints such an error as one sentence and exits with 1; anything else that is
raised is a defect of this project. A message says what was expected, what came, where, and what
to do.
"""


def first_words(problem: BaseException) -> str:
    """Return the first line of an error's message that says something.

    MindSpore 2.7.1 sets headings ("- C++ Call Stack: ...") between rulers of dashes.
    """
    lines = [line.strip() for line in str(problem).splitlines() if any(map(str.isalnum, line))]
    plain = [line for line in lines if not line.startswith("- ")]
    return [*plain, *lines, "no message"][0]


class GlmError(Exception):
    """Base of every error that is the user's to mend."""


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
