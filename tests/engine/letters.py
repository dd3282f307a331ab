"""A tokenizer for engine tests: token 0 is "a", token 1 is "b", ..., 26 is "ba"."""


class LetterTokenizer:
    def new_detokenizer(self) -> "LetterDetokenizer":
        return LetterDetokenizer()


class LetterDetokenizer:
    def feed(self, token_id: int) -> str:
        return letters([token_id])

    def flush(self) -> str:
        return ""


def letters(token_ids: list[int]) -> str:
    """The text of tokens."""
    texts = []
    for token_id in token_ids:
        high, low = divmod(token_id, 26)
        texts.append((chr(ord("a") + high) if high else "") + chr(ord("a") + low))
    return "".join(texts)
