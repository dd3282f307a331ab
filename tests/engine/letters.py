"""A tokenizer for engine tests: token 0 is "a", token 1 is "b", ..., 26 is "ba"."""

from collections.abc import Mapping


class LetterTokenizer:
    def __init__(self, special_token_names: Mapping[int, str] | None = None) -> None:
        self._names = special_token_names or {}

    def new_detokenizer(self, *, skip_special_tokens: bool) -> "LetterDetokenizer":
        shown = dict.fromkeys(self._names, "") if skip_special_tokens else self._names
        return LetterDetokenizer(shown)

    def decode_token(self, token_id: int) -> str:
        return letters([token_id])

    def spell_word(self, word: str) -> list[list[int]]:
        """Each letter is a token."""
        return [[ord(char) - ord("a") for char in word]]


class LetterDetokenizer:
    def __init__(self, shown_names: Mapping[int, str]) -> None:
        self._shown_names = shown_names

    def feed(self, token_id: int) -> str:
        name = self._shown_names.get(token_id)
        return letters([token_id]) if name is None else name

    holds_bytes = False

    def flush(self) -> str:
        return ""


def letters(token_ids: list[int]) -> str:
    """The text of tokens."""
    texts = []
    for token_id in token_ids:
        high, low = divmod(token_id, 26)
        texts.append((chr(ord("a") + high) if high else "") + chr(ord("a") + low))
    return "".join(texts)
