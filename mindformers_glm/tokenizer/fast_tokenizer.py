"""Hugging Face's fast tokenizer, imported and made without its remarks."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def new_fast_tokenizer(**settings: Any) -> "PreTrainedTokenizerFast":
    """Make a PreTrainedTokenizerFast; what it raises is passed on."""
    with _quiet():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(**settings)


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
