"""Grammars compiled for one vocabulary, and where a sequence stands in one (by llguidance).

A mask tells which tokens may come next. What it says depends on the grammar and the tokens so far
alone, so every rank of a split model finds the same; no limit here is one of time.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from mindformers_glm.core.errors import PromptError, UnsupportedError
from mindformers_glm.engine.json_schemas import explain_problem
from mindformers_glm.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_Value = TypeVar("_Value")
_MAX_KEPT = 256  # compiled grammars that no request has taken yet, and texts of right ones
# Of a grammar, 1 to 2 kB each; llguidance's own limit would let one request take 500 MB.
_MAX_LEXER_STATES = 50_000
# llguidance follows chains of rules and of $ref by recursion, which kills the process where the
# stack ends: 1,500 in 8 MiB. The longest that the limits on size allow need a quarter of this.
_STACK_BYTES = 256 * 2**20
# Of a text that the grammar leaves no choice about, the tokenizer sees so many characters.
_MAX_FORCED_CHARACTERS = 1_000


@dataclass(frozen=True)
class GrammarPart:
    """A part of a grammar that can be wrong by itself.

    label: names it in messages.
    grammar: it alone, as llguidance's text.
    schema: the JSON schema that it is, if it is one.
    """

    label: str
    grammar: str
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class AnswerGrammar:
    """What an answer must look like from its first token on.

    text: llguidance's list of grammars; equal texts mean equal answers.
    parts: those that a caller has given, to say which one is wrong.
    """

    text: str
    parts: tuple[GrammarPart, ...] = ()


class RowMask(NamedTuple):
    """The tokens that may come next.

    allowed: bool [vocab_size].
    is_end: nothing can follow: the answer is complete.
    """

    allowed: np.ndarray
    is_end: bool


class ConstraintCompiler:
    """Compiles grammars for one vocabulary; any thread may ask.

    Every request has a matcher of its own: copies of one share what it has worked out so far and
    its limits, so requests of the same grammar would use them up for each other.

    Args:
        vocabulary: of the tokenizer.
        vocab_size: of the network, which may be larger.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self._vocabulary = vocabulary
        self.vocab_size = vocab_size
        # A grammar may take a second to compile; taking a compiled one waits for nobody.
        self._lock, self._compiling = threading.Lock(), threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._checked: OrderedDict[str, None] = OrderedDict()  # whose parts are right
        self._ready: deque[tuple[str, LLMatcher]] = deque(maxlen=_MAX_KEPT)

    def check(self, grammar: AnswerGrammar) -> None:
        """Compile a grammar, so that the next `start` of it takes no time.

        Raises:
            PromptError: it is wrong, cannot be followed, or is too large; naming the part.
            UnsupportedError: llguidance is not installed.
        """
        matcher = self._compile(grammar)
        with self._lock:
            self._ready.append((grammar.text, matcher))

    def start(
        self, grammar: AnswerGrammar, stop_token_ids: frozenset[int], count: int = 1
    ) -> "list[Constraint]":
        """Return where the new answers of one request stand.

        Args:
            stop_token_ids: tokens that end an answer, which they may where it is complete.
        Raises:
            PromptError, UnsupportedError: as `check`.
        """
        with self._lock:
            ready = next((pair for pair in self._ready if pair[0] == grammar.text), None)
            if ready is not None:
                self._ready.remove(ready)
        matcher = self._compile(grammar) if ready is None else ready[1]
        matchers = [matcher, *(matcher.deep_copy() for _ in range(count - 1))]
        return [Constraint(each, self.vocab_size, stop_token_ids) for each in matchers]

    def _compile(self, grammar: AnswerGrammar) -> "LLMatcher":
        with self._compiling:
            return _run_on_large_stack(lambda: self._compile_parts(grammar))

    def _compile_parts(self, grammar: AnswerGrammar) -> "LLMatcher":
        for part in () if grammar.text in self._checked else grammar.parts:
            problem = self._try(part.grammar).get_error()
            if "NoExtension" in problem:
                raise PromptError(f"{part.label}: no answer can have this form.")
            if problem:
                raise PromptError(f"{part.label}: {explain_problem(problem, part.schema)}.")
        matcher = self._try(grammar.text)
        if matcher.is_error():
            labels = " and ".join(part.label for part in grammar.parts)
            raise PromptError(f"{labels}: {explain_problem(matcher.get_error(), None)}.")
        self._checked[grammar.text] = None
        if len(self._checked) > _MAX_KEPT:
            self._checked.popitem(last=False)
        return matcher

    def _try(self, text: str) -> "LLMatcher":
        """Return a matcher that has found its first mask, which takes the longest, or an error."""
        matcher = self._new_matcher(text)
        if not matcher.is_error():
            matcher.compute_bitmask()
        return matcher

    def _new_matcher(self, text: str) -> "LLMatcher":
        library = import_llguidance()
        if self._tokenizer is None:
            self._tokenizer = _open_vocabulary(self._vocabulary, self.vocab_size)
        limits = library.LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
        return library.LLMatcher(self._tokenizer, text, log_level=0, limits=limits)


class Constraint:
    """Where one answer stands in its grammar. Not thread-safe.

    Attributes:
        is_complete: the answer is complete and nothing can follow.
        error: why no next token can be found, in one line; None as long as it can.
    """

    def __init__(
        self, matcher: "LLMatcher", vocab_size: int, stop_token_ids: frozenset[int]
    ) -> None:
        self._matcher = matcher
        self.vocab_size = vocab_size
        self._stop_token_ids = [*stop_token_ids]
        self.is_complete = False
        self.error: str | None = None

    def compute_masks(self, draft: Items[int]) -> list[RowMask]:
        """Return the mask of the next token, and that behind each token of a draft.

        It ends behind the first token of the draft that the grammar does not allow.
        """
        num_words = -(-(self.vocab_size + 1) // 32)
        masks: list[RowMask] = []
        num_consumed = 0
        for guess in [*draft, None]:
            bits = np.zeros(num_words, np.int32)
            self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
            masks.append(self._read_mask(bits))
            if guess is None or not masks[-1].allowed[guess] or guess in self._stop_token_ids:
                break
            if not self._matcher.consume_token(guess):
                break
            num_consumed += 1
        self._note_error()
        if num_consumed and self.error is None:
            self._matcher.rollback(num_consumed)
        return masks

    def accept(self, token_id: int) -> None:
        """Take the token that was chosen, which a mask has allowed."""
        self._matcher.consume_token(token_id)
        self._note_error()
        self.is_complete = self.error is None and self._matcher.is_stopped()

    def count_allowed(self, draft: Items[int]) -> int:
        """Return how many tokens of a draft the grammar allows."""
        return self._matcher.validate_tokens([*draft])

    def list_forced(self) -> list[int]:
        """Return the next tokens as far as there is no choice."""
        return [] if self.is_complete else self._matcher.compute_ff_tokens()

    def _read_mask(self, bits: np.ndarray) -> RowMask:
        allowed = np.unpackbits(bits.view(np.uint8), bitorder="little").view(np.bool_)
        may_end = bool(allowed[self.vocab_size])
        allowed = allowed[: self.vocab_size]
        is_end = may_end and not allowed.any()
        # As text such a token would end an answer that is not complete.
        allowed[self._stop_token_ids] = may_end
        return RowMask(allowed, is_end)

    def _note_error(self) -> None:
        if self.error is None and self._matcher.is_error():
            self.error = explain_problem(self._matcher.get_error(), None)


def import_llguidance() -> Any:
    """Return the library.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        import llguidance
    except ImportError:
        raise UnsupportedError(
            "structured_outputs, and tool_choice that demands a call, need llguidance, which is "
            "not installed: pip install 'mindformers_glm[serve]'."
        ) from None
    return llguidance


class _TokenizerWrapper:
    """A vocabulary as llguidance asks for it, with one token more that stands for every end."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self.tokens = [*vocabulary.list_token_bytes(vocab_size), b""]
        self.eos_token_id = vocab_size
        self.special_token_ids = [i for i in vocabulary.special_token_names if i < vocab_size]
        for token_id in self.special_token_ids:
            self.tokens[token_id] = vocabulary.special_token_names[token_id].encode()
        self._vocabulary = vocabulary
        self.tokenize_fast: Callable[[str], list[int]] = lambda text: []

    def __call__(self, text: str) -> list[int]:
        """Tokenize what must come next, as the model has learnt to write it."""
        head, rest = text[:_MAX_FORCED_CHARACTERS], text[_MAX_FORCED_CHARACTERS:]
        token_ids = self._vocabulary.encode_within(head)
        # sentencepiece takes U+2581 for a blank.
        if b"".join(self.tokens[token_id] for token_id in token_ids) != head.encode():
            token_ids = self.tokenize_fast(head)
        return token_ids + (self.tokenize_fast(rest) if rest else [])


def _open_vocabulary(vocabulary: Vocabulary, vocab_size: int) -> "LLTokenizer":
    library = import_llguidance()
    wrapper = _TokenizerWrapper(vocabulary, vocab_size)
    tokenizer = library.LLTokenizer(wrapper, slices=library.LLTokenizer.json_slices())
    wrapper.tokenize_fast = tokenizer.greedy_tokenize
    return tokenizer


_SETS_STACK_SIZE = threading.Lock()


def _run_on_large_stack(call: Callable[[], _Value]) -> _Value:
    """Run a call in a thread of its own, with a stack that deep recursion does not fill."""
    results: list[_Value] = []
    problems: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=run, name="compile grammar")
    with _SETS_STACK_SIZE:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if problems:
        raise problems[0]
    return results[0]
