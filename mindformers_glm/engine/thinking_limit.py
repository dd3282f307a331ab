"""How long an answer may think: when its budget is used up, the closing tag is written for it.

What counts as thoughts is what the reply parser takes for them (replies/reasoning.py), so that an
answer is never cut where no thoughts are shown.
"""

from collections import deque
from dataclasses import dataclass

from mindformers_glm.tokenizer import GlmTokenizer
from mindformers_glm.tokenizer.replies import (
    ASSISTANT_TOKEN,
    CLOSE_TAG,
    OPEN_TAG,
    ReasoningSplitter,
)

# Of a character, after its first one: what is no text may look like the beginning of one for ever.
_MAX_BYTES_LEFT = 3


@dataclass(frozen=True)
class ThinkingMarks:
    """How the thoughts of an answer begin and end.

    Attributes:
        starts_inside: the prompt has begun them.
        token_tags: tags that are special tokens.
        closings: the tokens that write what is left of the closing tag, by the number of its
            characters that are there already; one entry where the tag is a token.
    """

    starts_inside: bool
    token_tags: frozenset[str]
    closings: tuple[tuple[int, ...], ...]


def mark_thoughts(tokenizer: GlmTokenizer, *, starts_inside: bool) -> ThinkingMarks:
    """Return the marks as a tokenizer writes them."""
    ids = tokenizer.vocabulary.special_tokens.ids
    closing_id = ids.get(CLOSE_TAG)
    closings: tuple[tuple[int, ...], ...]
    if closing_id is None:
        encode = tokenizer.vocabulary.encode_within
        closings = tuple(tuple(encode(CLOSE_TAG[place:])) for place in range(len(CLOSE_TAG)))
    else:
        closings = ((closing_id,),)
    token_tags = frozenset(tag for tag in (OPEN_TAG, CLOSE_TAG) if tag in ids)
    return ThinkingMarks(starts_inside, token_tags, closings)


@dataclass
class ThinkingLimit:
    """Follows one answer, and says which token it must go on with where there is no choice.

    A closing tag that is text may have begun when the budget ends; then only its rest is written.
    A character of several tokens is not cut in two.

    Args:
        budget: tokens of thoughts, those of the tags left out where these are tokens.
    """

    marks: ThinkingMarks
    budget: int

    def __post_init__(self) -> None:
        self._splitter = ReasoningSplitter(
            starts_inside=self.marks.starts_inside, token_tags=self.marks.token_tags
        )
        self._num_thought = 0
        self._forced: deque[int] = deque()
        self._close_where_due()

    @property
    def next_token_id(self) -> int | None:
        """The token that must come next; None: any may."""
        return self._forced[0] if self._forced else None

    @property
    def is_over(self) -> bool:
        """Whether no thoughts can come any more."""
        return self._splitter.is_behind

    def take(self, token_id: int, text: str, special_name: str | None, *, is_cut: bool) -> None:
        """Follow a token of the answer.

        Args:
            text: that it brings; of a special token, what was held back before it.
            special_name: the token's name if it is a special one.
            is_cut: the text ends in the middle of a character.
        """
        was_inside = self._splitter.is_inside
        self._splitter.feed(text)
        if special_name == ASSISTANT_TOKEN:
            self._splitter.flush()
        elif special_name is not None:
            self._splitter.feed_token(special_name)
        self._num_thought += was_inside
        if self._forced and token_id == self._forced[0]:
            self._forced.popleft()
        else:
            self._forced.clear()  # another one came: the answer's form did not allow it
        has_waited = self._num_thought - self.budget >= _MAX_BYTES_LEFT
        if not self._forced and (not is_cut or has_waited):
            self._close_where_due()

    def _close_where_due(self) -> None:
        if self._splitter.is_inside and self._num_thought >= self.budget:
            place = 0 if len(self.marks.closings) == 1 else self._splitter.num_closing_characters
            self._forced.extend(self.marks.closings[place])
