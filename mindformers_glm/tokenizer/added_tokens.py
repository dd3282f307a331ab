"""Tokens that tokenizer_config.json or added_tokens.json name beside a vocabulary's own file."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.tokenizer.tokenizer_config import TokenizerConfig, added_tokens_error
from mindformers_glm.tokenizer.vocabulary import SpecialTokens


@dataclass(frozen=True)
class AddedTokens:
    """They are found as Hugging Face's tokenizers find them.

    special: without text; what looks like one in a conversation is text.
    ordinary: with a text, their name, and found in every text.
    either: matches the names of both.
    """

    special: SpecialTokens
    ordinary: SpecialTokens
    either: re.Pattern[str]

    @classmethod
    def from_map(
        cls, tokens: Mapping[int, Mapping[str, Any]], config: TokenizerConfig
    ) -> "AddedTokens":
        """Tell special tokens from ordinary ones.

        Raises:
            CheckpointError: two have one name, or one has none.
        """
        times = Counter(token["content"] for token in tokens.values())
        if "" in times:
            raise added_tokens_error(config.path)
        for name, count in times.items():
            if count > 1:
                raise CheckpointError(
                    f"{config.path} and added_tokens.json give {name:.100} {count} ids: remove "
                    "those that are wrong."
                )

        def choose(is_special: bool) -> SpecialTokens:
            chosen = {
                token_id: token
                for token_id, token in tokens.items()
                if bool(token.get("special", False)) is is_special
            }
            return SpecialTokens.by_pattern(
                {token["content"]: token_id for token_id, token in chosen.items()},
                {
                    token["content"]: write_pattern(
                        token["content"],
                        **{name: bool(token.get(name, False)) for name in _FLAGS},
                    )
                    for token in chosen.values()
                },
            )

        special, ordinary = choose(True), choose(False)
        either = SpecialTokens.as_written(special.ids) | ordinary
        return cls(special, ordinary, either.pattern)

    @property
    def texts(self) -> dict[int, bytes]:
        """The bytes that each ordinary token stands for."""
        return {token_id: name.encode() for name, token_id in self.ordinary.ids.items()}

    def encode_around(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """Tokenize what stands between ordinary tokens by `encode`.

        An ordinary token within the name of a special one is text, as for Hugging Face.
        """
        if not self.ordinary.ids:
            return encode(text) if text else []
        ids: list[int] = []
        begin = 0
        for match in self.either.finditer(text):
            token_id = self.ordinary.ids.get(match[match.lastindex or 0])
            if token_id is None:
                continue
            ids += encode(text[begin : match.start()]) if match.start() > begin else []
            ids.append(token_id)
            begin = match.end()
        return ids + (encode(text[begin:]) if begin < len(text) else [])


_FLAGS = ("single_word", "lstrip", "rstrip")


def write_pattern(name: str, *, single_word: bool, lstrip: bool, rstrip: bool) -> str:
    """Write how Hugging Face finds a token: blanks around it and words may count."""
    pattern = f"({re.escape(name)})"
    if single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return (r"\s*" if lstrip else "") + pattern + (r"\s*" if rstrip else "")
