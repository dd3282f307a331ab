"""From a prompt and its settings to the sequences that the engine runs."""

from collections.abc import Sequence as Items
from typing import Protocol

import numpy as np

from mindformers_glm.core.errors import PromptError
from mindformers_glm.engine.answer_grammar import write_answer_grammar
from mindformers_glm.engine.constraints import AnswerGrammar, Constraint, ConstraintCompiler
from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.llm_arguments import is_list
from mindformers_glm.engine.running_request import RunningRequest, RunningSample
from mindformers_glm.engine.sampling_params import SamplingSettings, check_settings
from mindformers_glm.engine.sequence import Sequence
from mindformers_glm.engine.thinking_limit import ThinkingLimit, ThinkingMarks
from mindformers_glm.tokenizer.vocabulary import Detokenizer


class Detokenizing(Protocol):
    """What the engine needs of a tokenizer."""

    def new_detokenizer(self, *, skip_special_tokens: bool) -> Detokenizer:
        """Return a detokenizer for one answer."""
        ...

    def decode_token(self, token_id: int) -> str:
        """Return the text of a token by itself."""
        ...

    def spell_word(self, word: str) -> list[list[int]]:
        """Return the tokens of a word as it is and behind a blank."""
        ...


class InputProcessor:
    """Checks what a request asks for and makes a sequence for each of its answers.

    Args:
        vocab_size: of the network.
        eos_token_ids: tokens that end an answer, unless a request ignores them.
        max_position_embeddings: up to where `max_model_len` could be raised; None: not at all.
        constraints: compiles the forms that answers must have; None: they can have none.
    """

    def __init__(
        self,
        config: EngineConfig,
        vocab_size: int,
        tokenizer: Detokenizing,
        eos_token_ids: Items[int],
        max_position_embeddings: int | None = None,
        constraints: ConstraintCompiler | None = None,
    ) -> None:
        self._config = config
        self._vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._constraints = constraints
        # What to do with a text that is too long.
        self.length_advice = "shorten it"
        if (max_position_embeddings or 0) > config.max_model_len:
            self.length_advice += f" or raise max_model_len (up to {max_position_embeddings})"

    def make_request(
        self,
        request_id: str,
        number: int,
        prompt_token_ids: Items[int],
        settings: SamplingSettings,
        grammar: AnswerGrammar | None = None,
        thinking: ThinkingMarks | None = None,
    ) -> RunningRequest:
        """Return the request with a sequence for each sample, none of which has run.

        Args:
            number: how many requests came before: draws without a seed of their own follow from it.
            grammar, thinking: as for `LLMEngine.add_request`.
        Raises:
            PromptError, UnsupportedError: as there.
        """
        self._check_prompt(prompt_token_ids)
        check_settings(settings, self._vocab_size)
        stop_token_ids = self._list_stop_tokens(settings)
        if grammar is None and settings.structured_outputs is not None:
            grammar = write_answer_grammar(settings.structured_outputs)
        budget = settings.thinking_token_budget
        if budget is not None and thinking is None:
            raise PromptError("thinking_token_budget needs to know how thoughts are marked.")
        constraints = self._start_constraints(grammar, stop_token_ids, settings.n)
        bad_words = [ids for word in settings.bad_words for ids in self._tokenizer.spell_word(word)]
        shared_token_ids = np.array(prompt_token_ids, np.int32).tolist()
        samples = [
            RunningSample(
                Sequence(
                    request_id,
                    prompt_token_ids,
                    settings,
                    max_tokens=self._limit_tokens(len(prompt_token_ids), settings),
                    stop_token_ids=stop_token_ids,
                    rng=np.random.default_rng(self._seed_of(settings, number, sample_index)),
                    max_draft_len=self._config.prompt_lookup_num_tokens,
                    sample_index=sample_index,
                    bad_words=bad_words,
                    constraint=constraints[sample_index],
                ),
                shared_token_ids,
                self._tokenizer.new_detokenizer(skip_special_tokens=settings.skip_special_tokens),
                self._tokenizer.decode_token,
                None if budget is None or thinking is None else ThinkingLimit(thinking, budget),
            )
            for sample_index in range(settings.n)
        ]
        return RunningRequest(samples)

    def _check_prompt(self, token_ids: Items[int]) -> None:
        """Refuse a prompt that the network cannot continue.

        Raises:
            PromptError: it is empty, leaves no room for an answer, or has tokens that do not exist.
        """
        check_token_ids(token_ids, self._vocab_size)
        limit = self._config.max_model_len
        if len(token_ids) >= limit:
            raise PromptError(
                f"The prompt has {len(token_ids)} tokens and the limit is max_model_len={limit} "
                f"for prompt and answer together: {self.length_advice}."
            )

    def _list_stop_tokens(self, settings: SamplingSettings) -> frozenset[int]:
        stop_token_ids = frozenset(settings.stop_token_ids)
        if not settings.ignore_eos:
            stop_token_ids |= self._eos_token_ids
        return frozenset(i for i in stop_token_ids if i < self._vocab_size)

    def _start_constraints(
        self, grammar: AnswerGrammar | None, stop_token_ids: frozenset[int], count: int
    ) -> Items[Constraint | None]:
        if grammar is None:
            return [None] * count
        if self._constraints is None:
            raise PromptError("structured_outputs need a tokenizer, and this engine has none.")
        return self._constraints.start(grammar, stop_token_ids, count)

    def _seed_of(
        self, settings: SamplingSettings, request_number: int, sample_index: int
    ) -> np.random.SeedSequence:
        """Every sample of a request has draws of its own; those of the first do not depend on n."""
        seed = [self._config.seed, request_number] if settings.seed is None else settings.seed
        return np.random.SeedSequence(seed, spawn_key=(sample_index,) if sample_index else ())

    def _limit_tokens(self, num_prompt_tokens: int, settings: SamplingSettings) -> int:
        """Return the number of prompt and generated tokens at which generation ends."""
        limit = self._config.max_model_len
        if settings.max_new_tokens is not None:
            return min(limit, num_prompt_tokens + settings.max_new_tokens)
        if settings.max_length is not None:
            if settings.max_length <= num_prompt_tokens:
                raise PromptError(
                    f"The prompt has {num_prompt_tokens} tokens and max_length="
                    f"{settings.max_length} counts prompt and answer together: raise max_length "
                    "or set max_new_tokens."
                )
            return min(limit, settings.max_length)
        return limit


def check_token_ids(token_ids: Items[int], vocab_size: int) -> None:
    """Refuse what the network cannot embed.

    Raises:
        PromptError: it is no list, there is no token, or one is not in the vocabulary.
    """
    if not is_list(token_ids):
        raise PromptError(
            f"Token ids must be a list of whole numbers, got a {type(token_ids).__name__}."
        )
    if len(token_ids) == 0:
        raise PromptError("The prompt is empty: give at least one token.")
    for token_id in token_ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int | np.integer):
            raise PromptError(f"A prompt of token ids must hold whole numbers, got {token_id!r}.")
        if not 0 <= token_id < vocab_size:
            raise PromptError(
                f"Token id {token_id} of the prompt is outside the vocabulary 0..{vocab_size - 1}."
            )
