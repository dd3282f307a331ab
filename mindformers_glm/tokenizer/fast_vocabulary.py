"""A `tokenizer.json`: byte-level BPE as Hugging Face's fast tokenizers write it."""

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindformers_glm.core.errors import CheckpointError, PromptError, UnsupportedError
from mindformers_glm.system.files import read_file
from mindformers_glm.tokenizer.added_tokens import write_pattern
from mindformers_glm.tokenizer.detokenizer import byte_level_alphabet
from mindformers_glm.tokenizer.fast_tokenizer import new_fast_tokenizer, panics_as
from mindformers_glm.tokenizer.tokenizer_config import TokenizerConfig, added_tokens_error
from mindformers_glm.tokenizer.vocabulary import (
    SpecialTokens,
    Vocabulary,
    check_tokens,
    require_unicode,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BYTE_OF_CHAR = byte_level_alphabet()
# Characters from which a text is encoded without the interpreter's lock. `encode` keeps it: 2 MB a
# second, in which no other thread runs, such as the one that goes on with the answers of others.
_LONG_TEXT = 16 * 1024


class FastVocabulary(Vocabulary):
    """The vocabulary of a fast tokenizer with a byte-level decoder."""

    source = "tokenizer.json"

    def __init__(self, fast_tokenizer: "PreTrainedTokenizerFast") -> None:
        self._backend = fast_tokenizer.backend_tokenizer
        # encode_special_tokens below is a switch of the shared backend.
        self._lock = threading.Lock()
        special = {
            token_id: token
            for token_id, token in fast_tokenizer.added_tokens_decoder.items()
            if token.special
        }
        eos_token_id = fast_tokenizer.eos_token_id
        super().__init__(
            SpecialTokens.by_pattern(
                {token.content: token_id for token_id, token in special.items()},
                {
                    token.content: write_pattern(
                        token.content,
                        single_word=token.single_word,
                        lstrip=token.lstrip,
                        rstrip=token.rstrip,
                    )
                    for token in special.values()
                },
            ),
            special_token_names={token_id: token.content for token_id, token in special.items()},
            eos_token_ids=() if eos_token_id is None else (eos_token_id,),
            num_token_ids=max(self._backend.get_vocab(True).values(), default=-1) + 1,
        )
        self.is_lossless = (
            self._backend.normalizer is None
            and self._backend.truncation is None
            and not any(
                token.lstrip or token.rstrip
                for token in fast_tokenizer.added_tokens_decoder.values()
            )
        )

    def encode(self, text: str) -> list[int]:
        """Tokenize text as `tokenizer(text)` does; special tokens in it are special."""
        return self._encode(text, add_special_tokens=True, encode_special_tokens=False)

    def encode_text(self, text: str) -> list[int]:
        """Tokenize text as it is."""
        return self._encode(text, add_special_tokens=False, encode_special_tokens=True)

    def _encode(
        self, text: str, *, add_special_tokens: bool, encode_special_tokens: bool
    ) -> list[int]:
        require_unicode(text)
        with self._lock, panics_as(PromptError):
            self._backend.encode_special_tokens = encode_special_tokens
            if len(text) > _LONG_TEXT:
                batch = self._backend.encode_batch_fast(
                    [text], add_special_tokens=add_special_tokens
                )
                return batch[0].ids
            # For short texts not encode_batch_fast, though it is 1.2 to 1.9 times as fast: unless
            # TOKENIZERS_PARALLELISM is false it starts threads of its own, for which the library
            # then warns whoever forks.
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def _look_up_bytes(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id)
        if token is None or token_id in self.special_token_ids:
            return b""
        try:
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        except KeyError:
            return token.encode()  # an added token that is not special: its text is its own


def load_fast_vocabulary(path: Path, config: TokenizerConfig) -> FastVocabulary:
    """Read a `tokenizer.json`; `tokenizer_class` is not looked at, the file is complete without.

    Raises:
        CheckpointError: the file is damaged.
        UnsupportedError: it is not a byte-level tokenizer.
    """
    from tokenizers.decoders import ByteLevel

    _check_special_tokens(read_file(path, CheckpointError))
    try:
        fast_tokenizer = new_fast_tokenizer(
            tokenizer_file=str(path),
            added_tokens_decoder=_read_added_tokens(config),
            add_prefix_space=config.add_prefix_space,
            **config.named_tokens,
        )
    except CheckpointError:
        raise
    except Exception as problem:  # the Rust library raises plain Exception
        raise CheckpointError(
            f"{path} cannot be read as a tokenizer ({' '.join(str(problem).split())}): download it "
            "again."
        ) from problem
    # Decoding must be byte for byte, so that text can be streamed (detokenizer.py).
    decoder = fast_tokenizer.backend_tokenizer.decoder
    if not isinstance(decoder, ByteLevel):
        raise UnsupportedError(
            f"{path}: a GLM-4 tokenizer has a ByteLevel decoder, this one has "
            f"{type(decoder).__name__}."
        )
    # Limits that the file may have been saved with; the engine has its own.
    fast_tokenizer.backend_tokenizer.no_truncation()
    fast_tokenizer.backend_tokenizer.no_padding()
    return FastVocabulary(fast_tokenizer)


def _check_special_tokens(content: bytes) -> None:
    """Look at the special tokens before the library does, which takes hours for a long one."""
    try:
        added = json.loads(content)["added_tokens"]
        check_tokens([token["content"] for token in added if isinstance(token["content"], str)])
    except (ValueError, RecursionError, LookupError, TypeError):
        return  # the library tells what is wrong


def _read_added_tokens(config: TokenizerConfig) -> dict[int, Any]:
    from tokenizers import AddedToken

    try:
        return {token_id: AddedToken(**token) for token_id, token in config.added_tokens.items()}
    except TypeError:
        raise added_tokens_error(config.path) from None
