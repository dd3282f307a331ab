"""ChatGLM2's and ChatGLM3's `tokenizer.model`: sentencepiece, and special ids after its pieces."""

import codecs
from pathlib import Path
from typing import TYPE_CHECKING

from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.tokenizer.tokenizer_config import TokenizerConfig
from mindformers_glm.tokenizer.vocabulary import SpecialTokens, Vocabulary, require_unicode

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# In the order of their ids (SPTokenizer in tokenization_chatglm.py of both models).
CHATGLM2_SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
CHATGLM3_SPECIAL_TOKENS = (
    *CHATGLM2_SPECIAL_TOKENS,
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)
_PREFIX = ("[gMASK]", "sop")
# ChatGLM3 ends its turn with the role that is next; its config.json does not say so, its own
# `chat` does (modeling_chatglm.py).
_ENDS_OF_TURN = ("<|user|>", "<|observation|>")
# Blanks at both ends and in a row, a line, and a character that is no piece of its own.
_PROBE = " a  b \n\U0001f980\ue000 "


class SentencePieceVocabulary(Vocabulary):
    """A sentencepiece vocabulary with the special ids and the prefix of ChatGLM2 or ChatGLM3.

    Special tokens in a plain text are text, as for the official tokenizer: `sop` is the beginning
    of many a word. The one thing that sentencepiece changes is U+2581 (▁), its own sign for a
    blank, which comes back as a blank.

    Args:
        processor: with byte fallback and a dummy prefix, without a normalization of its own.
        special_tokens: names, for the ids from the number of pieces on.
    """

    source = "tokenizer.model (sentencepiece)"

    def __init__(
        self, processor: "SentencePieceProcessor", special_tokens: tuple[str, ...]
    ) -> None:
        num_pieces = processor.get_piece_size()
        ids = {name: num_pieces + place for place, name in enumerate(special_tokens)}
        # <unk> is also the padding, and has no text (in ChatGLM's tokenizers; in sentencepiece ⁇).
        without_text = {processor.unk_id(), processor.bos_id(), processor.eos_id()} - {-1}
        super().__init__(
            SpecialTokens.as_written(ids),
            special_token_ids={*ids.values(), *without_text},
            eos_token_ids=(
                processor.eos_id(),
                *(ids[name] for name in _ENDS_OF_TURN if name in ids),
            ),
            num_token_ids=num_pieces + len(ids),
        )
        self._processor = processor
        self._num_pieces = num_pieces
        self._prefix_ids = [ids[name] for name in _PREFIX]

    def encode(self, text: str) -> list[int]:
        """Tokenize text after the prefix [gMASK] sop."""
        return self._prefix_ids + self.encode_text(text)

    def encode_text(self, text: str) -> list[int]:
        """Tokenize text as it is; a blank is put before it, as the models were trained."""
        require_unicode(text)
        return self._processor.encode(text)

    def new_detokenizer(self) -> "SentencePieceDetokenizer":
        """Return a detokenizer for one answer."""
        return SentencePieceDetokenizer(self)

    def _look_up_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self._num_pieces or token_id in self.special_token_ids:
            return b""
        piece = self._processor.id_to_piece(token_id)
        if self._processor.is_byte(token_id):  # <0x0A>
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()

    def is_byte(self, token_id: int) -> bool:
        """Whether the token stands for one byte of a character that is not a piece."""
        return 0 <= token_id < self._num_pieces and self._processor.is_byte(token_id)


class SentencePieceDetokenizer:
    """Turns the tokens of one answer into text, as sentencepiece decodes them all at once.

    The blank that stands before every text when it is tokenized is taken away again: from the first
    piece, and from the first after a special token. Bytes that never become a character turn into
    U+FFFD each, and a character does not continue after a special token.
    """

    def __init__(self, vocabulary: SentencePieceVocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(_ONE_FOR_EACH_BYTE)
        self._is_at_start = True

    def feed(self, token_id: int) -> str:
        """Return the text that this token completes."""
        token_bytes = self._vocabulary.bytes_of(token_id)
        if not token_bytes:
            self._is_at_start = True
            return self._restart()
        if self._is_at_start and not self._vocabulary.is_byte(token_id):
            token_bytes = token_bytes.removeprefix(b" ")
        self._is_at_start = False
        return self._decoder.decode(token_bytes)

    def flush(self) -> str:
        """Return U+FFFD for each byte of an incomplete last character, else nothing."""
        return self._restart()

    def _restart(self) -> str:
        left = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return left


def load_sentencepiece(
    path: Path, content: bytes, special_tokens: tuple[str, ...], config: TokenizerConfig
) -> SentencePieceVocabulary:
    """Read the vocabulary from the content of a `tokenizer.model`.

    Args:
        special_tokens: of the model, for the ids after the pieces.
        config: may name them as well, with the same ids.
    Raises:
        CheckpointError: the file is damaged, or `config` is of another model.
        UnsupportedError: it changes text in another way than ChatGLM's does.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_proto=content)
        vocabulary = SentencePieceVocabulary(processor, special_tokens)
        for token_id in range(processor.get_piece_size()):
            vocabulary._look_up_bytes(token_id)
    except (RuntimeError, ValueError):  # a piece that is no UTF-8, or no byte where it says so
        raise CheckpointError(
            f"{path} cannot be read as a sentencepiece model of {len(content)} bytes: it is "
            "incomplete or damaged, download it again."
        ) from None
    detokenizer = vocabulary.new_detokenizer()
    probe = "".join(map(detokenizer.feed, vocabulary.encode_text(_PROBE))) + detokenizer.flush()
    if probe != _PROBE:
        raise UnsupportedError(
            f"{path} is not the sentencepiece model of a ChatGLM, or incomplete: {_PROBE!r} comes "
            f"back as {probe!r}."
        )
    _check_added_tokens(vocabulary, processor, config)
    return vocabulary


def _check_added_tokens(
    vocabulary: SentencePieceVocabulary,
    processor: "SentencePieceProcessor",
    config: TokenizerConfig,
) -> None:
    """Check that the tokens named in tokenizer_config.json are those of the vocabulary.

    Raises:
        CheckpointError: they are not.
    """
    ids = vocabulary.special_tokens.ids
    for token_id, token in config.added_tokens.items():
        name = token["content"]
        is_piece = 0 <= token_id < processor.get_piece_size()
        if (processor.piece_to_id(name) if is_piece else ids.get(name)) != token_id:
            raise CheckpointError(
                f"{config.path}: added_tokens_decoder has {name} as {token_id}, which is not a "
                f"token of this ChatGLM ({', '.join(ids)} from {processor.get_piece_size()} on): "
                "the files are of different models."
            )


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


# sentencepiece writes U+FFFD for every byte, Python's "replace" for every part of a character.
_ONE_FOR_EACH_BYTE = "mindformers_glm.one_for_each_byte"
codecs.register_error(_ONE_FOR_EACH_BYTE, _replace_each_byte)
