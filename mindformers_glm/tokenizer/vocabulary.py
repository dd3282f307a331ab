"""What each kind of tokenizer file gives to `GlmTokenizer`: text to ids and back."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar, Protocol

from mindformers_glm.core.errors import CheckpointError, PromptError
from mindformers_glm.tokenizer.detokenizer import IncrementalDetokenizer
from mindformers_glm.tokenizer.segments import Segment, SpecialToken

# Of special tokens; real ones have up to 30 characters, and there are some hundreds.
_MAX_TOKEN_CHARACTERS = 256
_MAX_TOKENS = 10_000


class Detokenizer(Protocol):
    """Turns the tokens of one answer into text as they come."""

    def feed(self, token_id: int) -> str:
        """Return the text that this token completes."""

    def flush(self) -> str:
        """Return what is left after the last token."""

    @property
    def holds_bytes(self) -> bool:
        """Whether the text so far ends in the middle of a character."""


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens by name, and how they are found in a text.

    Args:
        ids: the id of each.
        pattern: matches any of them; the group that takes part in a match is the name.
        patterns: that of each.
    """

    ids: Mapping[str, int]
    pattern: re.Pattern[str]
    patterns: Mapping[str, str]

    def __or__(self, other: "SpecialTokens") -> "SpecialTokens":
        """All of both."""
        return self.by_pattern({**self.ids, **other.ids}, {**self.patterns, **other.patterns})

    @classmethod
    def as_written(cls, ids: Mapping[str, int]) -> "SpecialTokens":
        """Find each token exactly as it is written."""
        return cls.by_pattern(ids, {name: f"({re.escape(name)})" for name in ids})

    @classmethod
    def by_pattern(cls, ids: Mapping[str, int], patterns: Mapping[str, str]) -> "SpecialTokens":
        """Find each token by its own pattern; the longest name where several begin alike.

        Raises:
            CheckpointError: there are too many, or too long ones.
        """
        longest_first = sorted(patterns, key=len, reverse=True)
        check_tokens(longest_first)
        pattern = re.compile("|".join(patterns[name] for name in longest_first) or "(?!)")
        return cls(ids, pattern, patterns)

    def split(self, text: str) -> list[Segment]:
        """Cut a text at its special tokens; the texts between them may be empty."""
        segments: list[Segment] = []
        end = 0
        for match in self.pattern.finditer(text):
            segments += [text[end : match.start()], SpecialToken(match[match.lastindex or 0])]
            end = match.end()
        return [*segments, text[end:]]


def check_tokens(tokens: Sequence[str]) -> None:
    """Refuse what takes minutes, for special tokens are looked for in every text.

    Raises:
        CheckpointError: there are too many, or too long ones.
    """
    longest = max(tokens, key=len, default="")
    if len(longest) > _MAX_TOKEN_CHARACTERS:
        raise CheckpointError(
            f"The special token {longest[:40]!r}... has {len(longest)} characters, more than "
            f"{_MAX_TOKEN_CHARACTERS}: download the tokenizer's files again."
        )
    if len(tokens) > _MAX_TOKENS:
        raise CheckpointError(
            f"The tokenizer has {len(tokens)} special tokens, more than {_MAX_TOKENS}: download "
            "its files again."
        )


class Vocabulary(ABC):
    """The token ids of one checkpoint.

    Args:
        special_tokens: those that a chat format may write.
        special_token_names: of all ids without text: those, and control tokens that no format
            writes.
        eos_token_ids: the tokenizer's own end-of-text token, if it has one.
        num_token_ids: one more than the highest token id.
    """

    source: ClassVar[str]  # the kind of file it comes from
    # Whether a blank stands before every text that is tokenized, and is not shown again.
    has_dummy_prefix: ClassVar[bool] = False

    def __init__(
        self,
        special_tokens: SpecialTokens,
        special_token_names: Mapping[int, str],
        eos_token_ids: tuple[int, ...],
        num_token_ids: int,
    ) -> None:
        self.special_tokens = special_tokens
        self.special_token_names = special_token_names
        self.special_token_ids = frozenset(special_token_names)
        self.eos_token_ids = eos_token_ids
        self.num_token_ids = num_token_ids
        # Whether every byte of a text is in one of its tokens.
        self.is_lossless = False
        # The bytes of a token; none for special and unknown ids.
        self.bytes_of: Callable[[int], bytes] = lru_cache(maxsize=None)(self._look_up_bytes)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokenize text as the checkpoint's own tokenizer does, its prefix included.

        Raises:
            PromptError: it is not valid Unicode, or the tokenizer cannot take it.
        """

    @abstractmethod
    def encode_text(self, text: str) -> list[int]:
        """Tokenize text in which special tokens are only text, without a prefix.

        Raises:
            PromptError: as `encode`.
        """

    @abstractmethod
    def _look_up_bytes(self, token_id: int) -> bytes: ...

    def decode_token(self, token_id: int) -> str:
        """Return the text of a token by itself; of a special one its name."""
        name = self.special_token_names.get(token_id)
        return self.bytes_of(token_id).decode(errors="replace") if name is None else name

    def spell_word(self, word: str) -> list[list[int]]:
        """Return the tokens of a word as it is and behind a blank.

        As vLLM does for bad_words (0.10, `SamplingParams.update_from_tokenizer`), which leaves out
        the second where it is longer or shorter. Special tokens in it are special.

        Raises:
            PromptError: as `encode`.
        """
        word = word.lstrip() or word
        plain, behind_blank = map(self.encode_within, (word, f" {word}"))
        # Where the blank is a token of its own, the word behind it is found without it.
        if not plain:  # the tokenizer drops all of it: no answer can hold it
            return []
        return [plain] if behind_blank[-len(plain) :] == plain else [plain, behind_blank]

    def encode_within(self, text: str) -> list[int]:
        """Tokenize what stands within a longer text."""
        return self.encode_segments(self.special_tokens.split(text))

    def least_tokens(self, text: str) -> int:
        """How many tokens a text has at least, as its length alone tells; 0 where it does not."""
        if not self.is_lossless:
            return 0
        return -(-len(text.encode(errors="replace")) // self._longest_token_bytes)

    @cached_property
    def _longest_token_bytes(self) -> int:
        texts = (len(self._look_up_bytes(token_id)) for token_id in range(self.num_token_ids))
        names = (len(name.encode()) for name in self.special_token_names.values())
        return max(1, *texts, *names)

    def list_token_bytes(self, count: int) -> list[bytes]:
        """Return the bytes of the first `count` ids; none for special and unknown ones.

        Where several tokens have the same bytes, only the one has them that `encode_text` writes.
        """
        found: dict[bytes, int] = {}
        for token_id in range(min(count, self.num_token_ids)):
            token_bytes = self._look_up_bytes(token_id)
            before = found.get(token_bytes)
            if token_bytes and (before is None or self._is_second_choice(before)):
                found[token_bytes] = token_id
        listed = [b""] * count
        for token_bytes, token_id in found.items():
            listed[token_id] = token_bytes
        return listed

    def _is_second_choice(self, token_id: int) -> bool:
        """Whether a later token with the same bytes is the one that is written."""
        return False

    def new_detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """Return a detokenizer for one answer; special tokens have no text, or their names."""
        return IncrementalDetokenizer(self.bytes_of if skip_special_tokens else self._shown_bytes)

    def _shown_bytes(self, token_id: int) -> bytes:
        name = self.special_token_names.get(token_id)
        return self.bytes_of(token_id) if name is None else name.encode()

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Tokenize each text on its own, between the ids of the special tokens.

        Raises:
            PromptError: as `encode`.
            CheckpointError: the vocabulary does not have one of the special tokens.
        """
        ids: list[int] = []
        for segment in segments:
            if isinstance(segment, str):
                ids += self.encode_text(segment) if segment else []
            elif segment.name in self.special_tokens.ids:
                ids.append(self.special_tokens.ids[segment.name])
            else:
                raise CheckpointError(
                    f"The chat format needs the special token {segment.name}, which the tokenizer "
                    "does not have: its files are of another model."
                )
        return ids


def require_unicode(text: str) -> None:
    """Refuse half a surrogate pair, for which no tokenizer has a token.

    Raises:
        PromptError: the text has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(
            "The prompt is not valid Unicode text (it has half of a surrogate pair)."
        ) from None
