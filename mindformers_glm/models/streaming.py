"""Streamers of MindSpore Transformers and of transformers, fed as both libraries feed them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindformers_glm.core.errors import ConfigError


class StreamerFeed:
    """Hands one prompt and then each token of its answer to a streamer, which may be None.

    Source: mindformers 1.7.0 generation/text_generator.py, transformers 4.51.3 generation/utils.py.
    """

    def __init__(self, streamer: Any, prompts: Sequence[Sequence[int]]) -> None:
        """Check the streamer and give it the prompt.

        Raises:
            ConfigError: it is no streamer, or there is not exactly one prompt.
        """
        self._streamer = streamer
        if streamer is None:
            return
        if not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
            raise ConfigError(
                "streamer must have put() and end(), such as TextStreamer(tokenizer), got a "
                f"{type(streamer).__name__}."
            )
        if len(prompts) != 1:
            raise ConfigError(
                f"A streamer shows the answer to one prompt, got {len(prompts)} prompts: call "
                "generate() for each."
            )
        streamer.put(np.array(prompts, np.int64))  # [1, S]

    def put(self, token_ids: Sequence[int]) -> None:
        """Give the streamer tokens of the answer, one by one."""
        if self._streamer is not None:
            for token_id in token_ids:
                self._streamer.put(np.array([token_id], np.int64))

    def end(self) -> None:
        """Say that no more will come; whoever reads the streamer in a thread waits for that."""
        if self._streamer is not None:
            self._streamer.end()
