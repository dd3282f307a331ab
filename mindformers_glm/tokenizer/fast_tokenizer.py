"""Hugging Face's fast tokenizer, imported and made without its remarks."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def new_fast_tokenizer(**settings: Any) -> "PreTrainedTokenizerFast":
    """Make a PreTrainedTokenizerFast; what it raises is passed on, a panic as a ValueError."""
    with _quiet():
        from transformers import PreTrainedTokenizerFast

        with panics_as(ValueError), _silent_in_panic():
            return PreTrainedTokenizerFast(**settings)


@contextmanager
def panics_as(error: type[Exception]) -> Iterator[None]:
    """Raise `error` for a panic of the tokenizers library, which is written in Rust.

    Its class is no Exception and has no name that could be imported.
    """
    try:
        yield
    except BaseException as problem:
        if type(problem).__name__ != "PanicException":
            raise
        raise error(f"the tokenizers library fails, {problem}") from None


@contextmanager
def _silent_in_panic() -> Iterator[None]:
    """Keep back what is written to stderr, where a panic tells its whole way, until all is well."""
    try:
        stderr = os.dup(2)
    except OSError:  # closed: nobody would read it
        yield
        return
    with os.fdopen(os.memfd_create("stderr"), "r+b") as kept:
        os.dup2(kept.fileno(), 2)
        is_panic = False
        try:
            yield
        except BaseException as problem:
            is_panic = type(problem).__name__ == "PanicException"
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            kept.seek(0)
            os.write(2, b"" if is_panic else kept.read())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what transformers says while it is imported and loads away from the user.

    It warns for example that PyTorch is missing, which is as it should be.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
