"""Errors that a user can cause.

The command line prints such an error as one sentence and exits with 1; anything else that is
raised is a defect of this project. A message says what was expected, what came, where, and what
to do.
"""


class GlmError(Exception):
    """Base of every error that is the user's to mend."""


class ConfigError(GlmError, ValueError):
    """A config.json, a YAML file, the command line or a setting is wrong."""


class CheckpointError(GlmError):
    """A checkpoint folder or one of its weight files is wrong."""


class MemoryBudgetError(GlmError):
    """Weights, KV cache and workspace do not fit into the memory allowed or available."""


class PromptError(GlmError, ValueError):
    """One prompt cannot be run; the others can."""


class UnsupportedError(GlmError):
    """A known option, model or device that cannot work here."""
