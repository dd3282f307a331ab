"""A tokenizer for engine tests: token 0 is "a", token 1 is "b", ..., 26 is "ba"."""

from collections.abc import Collection


class LetterTokenizer:
    def __init__(self, special_token_ids: Collection[int] = ()) -> None:
        self._special_token_ids = special_token_ids

    def new_detokenizer(self) -> "LetterDetokenizer":
        return LetterDetokenizer(self._special_token_ids)

    def decode_token(self, token_id: int) -> str:
        return letters([token_id])

    def spell_word(self, word: str) -> list[list[int]]:
        """Each letter is a token."""
        return [[ord(char) - ord("a") for char in word]]


class LetterDetokenizer:
    def __init__(self, special_token_ids: Collection[int]) -> None:
        self._special_token_ids = special_token_ids

    def feed(self, token_id: int) -> str:
        return "" if token_id in self._special_token_ids else letters([token_id])

    def flush(self) -> str:
        return ""


def letters(token_ids: list[int]) -> str:
    """The text of tokens."""
    texts = []
    for token_id in token_ids:
        high, low = divmod(token_id, 26)
        texts.append((chr(ord("a") + high) if high else "") + chr(ord("a") + low))
    return "".join(texts)
