"""Tokens to text one by one, never showing half a character."""

import codecs
from collections.abc import Callable


class IncrementalDetokenizer:
    """Turns the tokens of one answer into text as they come.

    A token of a byte-level vocabulary may end in the middle of a UTF-8 character; its bytes are
    held until the character is complete. All pieces together are what decoding all tokens at once
    gives: bytes that never become a character turn into U+FFFD, one for each maximal part of one
    (Unicode 15, section 3.9), in Python as in the Rust library behind Hugging Face's tokenizers.

    Args:
        token_bytes: the bytes a token id stands for; empty for special and unknown ids.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """Return the text that this token completes, often all of its own, sometimes none."""
        return self._decoder.decode(self._token_bytes(token_id))

    @property
    def holds_bytes(self) -> bool:
        """Whether the text so far ends in the middle of a character."""
        return self._decoder.getstate()[0] != b""

    def flush(self) -> str:
        """Return U+FFFD for an incomplete last character, else nothing."""
        return self._decoder.decode(b"", final=True)


def byte_level_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Printable Latin-1 characters stand for themselves, the others are moved to U+0100 and above
    (GPT-2's `bytes_to_unicode`; tokenizers 0.21, pre_tokenizers/byte_level.rs).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(0x100 + place): byte for place, byte in enumerate(moved)}
    return alphabet
