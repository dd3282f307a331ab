"""The logits of every token of a text, as evaluation and parity tests need them."""

from collections.abc import Generator
from collections.abc import Sequence as Items
from contextlib import closing

import numpy as np

from mindformers_glm.core.errors import MemoryBudgetError, PromptError
from mindformers_glm.engine.batch import build_batch
from mindformers_glm.engine.generation_defaults import GenerationDefaults
from mindformers_glm.engine.input_processor import check_token_ids
from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.engine.scheduler import Chunk
from mindformers_glm.engine.sequence import Sequence


def compute_row_logits(engine: LLMEngine, token_ids: Items[int]) -> np.ndarray:
    """Return all that `iter_row_logits` gives as one array, float32 [len(token_ids), vocab_size].

    Raises:
        PromptError, MemoryBudgetError: as there.
    """
    with closing(iter_row_logits(engine, token_ids)) as chunks:  # also where Ctrl-C comes between
        logits = np.empty((len(token_ids), engine.runner.vocab_size), np.float32)
        start = 0
        for chunk in chunks:
            logits[start : start + len(chunk)] = chunk
            start += len(chunk)
    return logits


def iter_row_logits(engine: LLMEngine, token_ids: Items[int]) -> Generator[np.ndarray, None, None]:
    """Run the tokens through the network in chunks of the token budget; a chunk when it is wanted.

    From the first chunk on it holds KV-cache blocks of the engine's pool that no request holds; it
    gives them back at its end, or when the iterator is closed. Requests may run in between.

    Yields:
        float32 [at most max_num_batched_tokens, vocab_size]; each an array of its own.
    Raises:
        PromptError: at once: no tokens, more than max_model_len, or ids outside the vocabulary.
        MemoryBudgetError: with the first chunk: requests under way hold too many blocks.
    """
    check_token_ids(token_ids, engine.runner.vocab_size)
    if len(token_ids) > engine.config.max_model_len:
        raise PromptError(
            f"{len(token_ids)} tokens were given and the limit is max_model_len="
            f"{engine.config.max_model_len}: {engine.input_processor.length_advice}."
        )
    return _run_chunks(engine, token_ids)


def _run_chunks(engine: LLMEngine, token_ids: Items[int]) -> Generator[np.ndarray, None, None]:
    config = engine.config
    num_blocks = -(-len(token_ids) // config.block_size)
    if num_blocks > engine.pool.num_free:
        raise MemoryBudgetError(
            f"The logits of {len(token_ids)} tokens need {num_blocks} free KV-cache blocks of "
            f"{config.block_size} tokens, {engine.pool.num_free} are free: finish the requests "
            "under way first."
        )
    sequence = Sequence(
        "row logits",
        token_ids,
        GenerationDefaults().resolve(SamplingParams()),
        max_tokens=len(token_ids),
        stop_token_ids=frozenset(),
        rng=np.random.default_rng(0),
    )
    sequence.block_table = engine.pool.allocate(num_blocks)
    engine.measured.append(sequence)
    try:
        while sequence.num_pending:
            start = sequence.num_computed
            end = min(start + config.max_num_batched_tokens, sequence.num_tokens)
            chunk = Chunk(sequence, start, end, is_sampled=True)
            batch = build_batch([chunk], config.block_size, sample_all_rows=True)
            logits = engine.runner.execute(batch)
            sequence.num_computed = end
            yield logits
    finally:
        engine.measured.remove(sequence)
        engine.pool.free(sequence.block_table)
