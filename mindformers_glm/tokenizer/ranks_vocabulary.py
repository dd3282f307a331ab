"""The `tokenizer.model` of glm-4-9b and glm-4-9b-chat: a line `base64 rank` for each token."""

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mindformers_glm.core.errors import CheckpointError, PromptError
from mindformers_glm.tokenizer.added_tokens import AddedTokens
from mindformers_glm.tokenizer.tokenizer_config import TokenizerConfig
from mindformers_glm.tokenizer.vocabulary import Vocabulary, require_unicode

if TYPE_CHECKING:
    from tiktoken import Encoding

# glm-4-9b-chat tokenization_chatglm.py; the same in the tokenizer.json of GLM-4-0414.
GLM4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PREFIX = ("[gMASK]", "<sop>")
# tiktoken's regular expressions give up (and end in a panic) within a run of a million blanks.
_MAX_BLANKS = 500_000
_TOO_MANY_BLANKS = re.compile(rf"(?<!\s)\s{{{_MAX_BLANKS + 1}}}")


class RanksVocabulary(Vocabulary):
    """Byte-level BPE by ranks, with the prefix of the official tokenizer.

    Args:
        encoding: the ranks alone.
        added: all tokens after the ranks; the model's own and those of a fine-tune.
        eos_token_ids: as tokenizer_config.json says.
    """

    source = "tokenizer.model (ranks)"

    def __init__(
        self,
        encoding: "Encoding",
        added: AddedTokens,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        special_ids = added.special.ids
        super().__init__(
            added.special,
            special_token_names={token_id: name for name, token_id in special_ids.items()},
            eos_token_ids=eos_token_ids,
            num_token_ids=max(*special_ids.values(), *added.ordinary.ids.values()) + 1,
        )
        self._encoding = encoding
        self._added = added
        self._texts = added.texts
        self._prefix_ids = [special_ids[name] for name in _PREFIX]

    def encode(self, text: str) -> list[int]:
        """Tokenize text after the prefix [gMASK] <sop>; special tokens in it are special."""
        return self._prefix_ids + self.encode_segments(self.special_tokens.split(text))

    def encode_text(self, text: str) -> list[int]:
        """Tokenize text as it is, with the tokens in it that are not special."""
        return self._added.encode_around(text, self._encode_ordinary)

    def _encode_ordinary(self, text: str) -> list[int]:
        require_unicode(text)  # tiktoken would write U+FFFD instead
        if len(text) > _MAX_BLANKS and _TOO_MANY_BLANKS.search(text):
            raise PromptError(
                f"The prompt has more than {_MAX_BLANKS:,} white-space characters in a row, which "
                "this tokenizer cannot take: remove some."
            )
        return self._encoding.encode_ordinary(text)

    def _look_up_bytes(self, token_id: int) -> bytes:
        if token_id in self._texts:
            return self._texts[token_id]
        try:
            return self._encoding.decode_single_token_bytes(token_id)
        except (KeyError, OverflowError):  # a special or unknown id
            return b""


def load_ranks(path: Path, content: bytes, config: TokenizerConfig) -> RanksVocabulary:
    """Read the vocabulary from the content of a `tokenizer.model`.

    Args:
        config: names the added tokens, whose ids begin after the ranks.
    Raises:
        CheckpointError: the file is damaged or incomplete, or special tokens are missing.
    """
    from tiktoken import Encoding

    ranks = _read_ranks(path, content)
    added = AddedTokens.from_map(config.added_tokens, config)
    special_tokens = added.special.ids
    _check_prefix(special_tokens, config)
    first_added = min(config.added_tokens)
    if len(ranks) != first_added:
        raise CheckpointError(
            f"{path} has {len(ranks)} ranks, but the special tokens of {config.path.name} begin at "
            f"{first_added}: a file is incomplete or of another model, download both again."
        )
    encoding = Encoding("glm-4", pat_str=GLM4_SPLIT, mergeable_ranks=ranks, special_tokens={})
    eos_token = config.named_tokens.get("eos_token")
    # A fine-tune may have named one of its own that is not special.
    known = {**added.ordinary.ids, **special_tokens}
    if eos_token is not None and eos_token not in known:
        raise CheckpointError(
            f"{config.path}: the eos_token {eos_token} is not among the tokens of "
            "added_tokens_decoder: download the file again."
        )
    eos_token_ids = () if eos_token is None else (known[eos_token],)
    return RanksVocabulary(encoding, added, eos_token_ids)


def _check_prefix(special_tokens: Mapping[str, int], config: TokenizerConfig) -> None:
    for name in _PREFIX:
        if name not in special_tokens:
            raise CheckpointError(
                f"{config.path} must name the special tokens in added_tokens_decoder, but {name} "
                "is not there: download the file again."
            )


def _read_ranks(path: Path, content: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:  # also what base64 raises
            raise CheckpointError(
                f"{path} line {number} is not a token in base64 and its rank: the file is "
                "incomplete or damaged, download it again."
            ) from None
        if len(ranks) != number or int(rank) != number - 1:
            raise CheckpointError(
                f"{path} line {number} has the rank {int(rank)} or a token of another line, where "
                f"a new token of rank {number - 1} belongs: the file is damaged, download it again."
            )
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    if missing:
        raise CheckpointError(
            f"{path} has no token for {missing} of the 256 bytes: the file is incomplete or "
            "damaged, download it again."
        )
    return ranks
