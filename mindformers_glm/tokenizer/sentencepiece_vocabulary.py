"""ChatGLM2's and ChatGLM3's `tokenizer.model`: sentencepiece, and special ids after its pieces."""

import codecs
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.tokenizer.added_tokens import AddedTokens
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
    blank, which comes back as a blank. Tokens that a fine-tune has added are found as Hugging
    Face's tokenizer does: special ones in a plain text, others also in a conversation.

    Args:
        processor: with byte fallback and a dummy prefix, without a normalization of its own.
        own_ids: the model's special tokens, after the pieces.
        added: a fine-tune's tokens, after these.
    """

    source = "tokenizer.model (sentencepiece)"
    has_dummy_prefix = True

    def __init__(
        self,
        processor: "SentencePieceProcessor",
        own_ids: Mapping[str, int],
        added: AddedTokens,
    ) -> None:
        ids = {**own_ids, **added.special.ids}
        # <unk> is also the padding, and has no text (in ChatGLM's tokenizers; in sentencepiece ⁇).
        without_text = {processor.unk_id(), processor.bos_id(), processor.eos_id()} - {-1}
        super().__init__(
            SpecialTokens.as_written(own_ids) | added.special,
            special_token_names={
                **{token_id: name for name, token_id in ids.items()},
                **{token_id: processor.id_to_piece(token_id) for token_id in without_text},
            },
            eos_token_ids=(
                processor.eos_id(),
                *(ids[name] for name in _ENDS_OF_TURN if name in ids),
            ),
            num_token_ids=max(*ids.values(), *added.ordinary.ids.values()) + 1,
        )
        self._processor = processor
        self._num_pieces = processor.get_piece_size()
        self._added = added
        self._texts = added.texts
        self._prefix_ids = [ids[name] for name in _PREFIX]

    def encode(self, text: str) -> list[int]:
        """Tokenize text after the prefix [gMASK] sop."""
        return self._prefix_ids + self.encode_segments(self._added.special.split(text))

    def encode_text(self, text: str) -> list[int]:
        """Tokenize text as it is; a blank is put before it, as the models were trained."""
        require_unicode(text)
        return self._added.encode_around(text, self._processor.encode)

    def encode_within(self, text: str) -> list[int]:
        """Tokenize text without the blank that is put before a whole one."""
        before = self.encode_text("\n")  # a byte, which joins nothing behind it
        # An added token may take the newline away, and begins no text.
        return self.encode_text(f"\n{text}")[len(before) :] or self.encode_text(text)

    def new_detokenizer(self, *, skip_special_tokens: bool = True) -> "SentencePieceDetokenizer":
        """Return a detokenizer for one answer; special tokens have no text, or their names."""
        return SentencePieceDetokenizer(self, skip_special_tokens=skip_special_tokens)

    def _look_up_bytes(self, token_id: int) -> bytes:
        if token_id in self._texts:
            return self._texts[token_id]
        if not 0 <= token_id < self._num_pieces or token_id in self.special_token_ids:
            return b""
        piece = self._processor.id_to_piece(token_id)
        if self._processor.is_byte(token_id):  # <0x0A>
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()

    def _is_second_choice(self, token_id: int) -> bool:
        return self.is_byte(token_id)

    def is_byte(self, token_id: int) -> bool:
        """Whether the token stands for one byte of a character that is not a piece."""
        return 0 <= token_id < self._num_pieces and self._processor.is_byte(token_id)

    def is_added(self, token_id: int) -> bool:
        """Whether a fine-tune has added the token, with a text of its own."""
        return token_id in self._texts


class SentencePieceDetokenizer:
    """Turns the tokens of one answer into text, as sentencepiece decodes them all at once.

    The blank that stands before every text when it is tokenized is taken away again: from the first
    piece, and from the first after a special or an added token. Bytes that never become a character
    turn into U+FFFD each, and a character does not continue after such a token.

    Args:
        skip_special_tokens: False: they are shown by their names.
    """

    def __init__(
        self, vocabulary: SentencePieceVocabulary, *, skip_special_tokens: bool = True
    ) -> None:
        self._vocabulary = vocabulary
        self._shown_names = {} if skip_special_tokens else vocabulary.special_token_names
        self._decoder = codecs.getincrementaldecoder("utf-8")(_ONE_FOR_EACH_BYTE)
        self._is_at_start = True

    def feed(self, token_id: int) -> str:
        """Return the text that this token completes."""
        token_bytes = self._vocabulary.bytes_of(token_id)
        if not token_bytes:
            self._is_at_start = True
            return self._restart() + self._shown_names.get(token_id, "")
        if self._vocabulary.is_added(token_id):
            self._is_at_start = True
            return self._restart() + token_bytes.decode()
        if self._is_at_start and not self._vocabulary.is_byte(token_id):
            token_bytes = token_bytes.removeprefix(b" ")
        self._is_at_start = False
        return self._decoder.decode(token_bytes)

    @property
    def holds_bytes(self) -> bool:
        """Whether the text so far ends in the middle of a character."""
        return self._decoder.getstate()[0] != b""

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
        config: may name them as well, with the same ids, and others after them.
    Raises:
        CheckpointError: the file is damaged, or `config` is of another model.
        UnsupportedError: it changes text in another way than ChatGLM's does.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_proto=content)
        num_pieces = processor.get_piece_size()
        own_ids = {name: num_pieces + place for place, name in enumerate(special_tokens)}
        added = _read_added_tokens(processor, own_ids, config)
        vocabulary = SentencePieceVocabulary(processor, own_ids, added)
        for token_id in range(num_pieces):
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
    return vocabulary


def _read_added_tokens(
    processor: "SentencePieceProcessor", own_ids: Mapping[str, int], config: TokenizerConfig
) -> AddedTokens:
    """Return the tokens after the model's own.

    Raises:
        CheckpointError: a token has another id than in the model's vocabulary.
    """
    num_pieces = processor.get_piece_size()
    added = {}
    for token_id, token in config.added_tokens.items():
        name = token["content"]
        if name not in own_ids and token_id >= num_pieces + len(own_ids):
            added[token_id] = token
            continue
        is_piece = 0 <= token_id < num_pieces
        if (processor.piece_to_id(name) if is_piece else own_ids.get(name)) != token_id:
            raise CheckpointError(
                f"{config.path}: added_tokens_decoder has {name} as {token_id}, which is not a "
                f"token of this ChatGLM ({', '.join(own_ids)} from {num_pieces} on): the files are "
                "of different models, or a token was added at the place of another."
            )
    return AddedTokens.from_map(added, config)


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


# sentencepiece writes U+FFFD for every byte, Python's "replace" for every part of a character.
_ONE_FOR_EACH_BYTE = "mindformers_glm.one_for_each_byte"
codecs.register_error(_ONE_FOR_EACH_BYTE, _replace_each_byte)
