"""Grammars compiled for one vocabulary, and where a sequence stands in one (by llguidance).

A mask tells which tokens may come next. What it says depends on the grammar and the tokens so far
alone, so every rank of a split model finds the same; no limit here is one of time.
"""

import threading
from collections import OrderedDict
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
_MAX_KEPT = 64  # grammars that stay compiled; one has some hundred kB
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
    """Compiles grammars for one vocabulary, and keeps the latest; any thread may ask.

    Args:
        vocabulary: of the tokenizer.
        vocab_size: of the network, which may be larger.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        # A grammar may take a second to compile; looking one up waits for nobody.
        self._lock, self._compiling = threading.Lock(), threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def check(self, grammar: AnswerGrammar) -> None:
        """Compile a grammar, so that `start` takes no time.

        Raises:
            PromptError: it is wrong, cannot be followed, or is too large; naming the part.
            UnsupportedError: llguidance is not installed.
        """
        self._find(grammar)

    def start(self, grammar: AnswerGrammar, stop_token_ids: frozenset[int]) -> "Constraint":
        """Return where a new answer stands.

        Args:
            stop_token_ids: tokens that end the answer, which they may where it is complete.
        Raises:
            PromptError, UnsupportedError: as `check`.
        """
        matcher = self._find(grammar)
        with self._lock:
            return Constraint(matcher.deep_copy(), self._vocab_size, stop_token_ids)

    def _find(self, grammar: AnswerGrammar) -> "LLMatcher":
        matcher = self._look_up(grammar)
        if matcher is not None:
            return matcher
        with self._compiling:
            matcher = self._look_up(grammar)  # another thread may have compiled it meanwhile
            if matcher is None:
                matcher = _run_on_large_stack(lambda: self._compile(grammar))
                with self._lock:
                    self._compiled[grammar.text] = matcher
                    if len(self._compiled) > _MAX_KEPT:
                        self._compiled.popitem(last=False)
            return matcher

    def _look_up(self, grammar: AnswerGrammar) -> "LLMatcher | None":
        with self._lock:
            matcher = self._compiled.get(grammar.text)
            if matcher is not None:
                self._compiled.move_to_end(grammar.text)
            return matcher

    def _compile(self, grammar: AnswerGrammar) -> "LLMatcher":
        for part in grammar.parts:
            problem = self._try(part.grammar).get_error()
            if "NoExtension" in problem:
                raise PromptError(f"{part.label}: no answer can have this form.")
            if problem:
                raise PromptError(f"{part.label}: {explain_problem(problem, part.schema)}.")
        matcher = self._try(grammar.text)
        if matcher.is_error():
            labels = " and ".join(part.label for part in grammar.parts)
            raise PromptError(f"{labels}: {explain_problem(matcher.get_error(), None)}.")
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
            self._tokenizer = _open_vocabulary(self._vocabulary, self._vocab_size)
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
        self._vocab_size = vocab_size
        self._stop_token_ids = [*stop_token_ids]
        self.is_complete = False
        self.error: str | None = None

    def compute_masks(self, draft: Items[int]) -> list[RowMask]:
        """Return the mask of the next token, and that behind each token of a draft.

        It ends behind the first token of the draft that the grammar does not allow.
        """
        num_words = -(-(self._vocab_size + 1) // 32)
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
        may_end = bool(allowed[self._vocab_size])
        allowed = allowed[: self._vocab_size]
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
