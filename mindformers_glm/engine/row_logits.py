"""The logits of every token of a text, as evaluation and parity tests need them."""

from collections.abc import Sequence as Items

import numpy as np

from mindformers_glm.core.errors import MemoryBudgetError, PromptError
from mindformers_glm.engine.batch import build_batch
from mindformers_glm.engine.generation_defaults import GenerationDefaults
from mindformers_glm.engine.llm_engine import LLMEngine, check_token_ids
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.engine.scheduler import Chunk
from mindformers_glm.engine.sequence import Sequence


def compute_row_logits(engine: LLMEngine, token_ids: Items[int]) -> np.ndarray:
    """Run the tokens through the network in chunks of the token budget.

    Uses KV-cache blocks of the engine's pool that no request holds, and gives them back.

    Returns:
        float32 [len(token_ids), vocab_size].
    Raises:
        PromptError: no tokens, more than max_model_len, or ids outside the vocabulary.
        MemoryBudgetError: requests under way hold too many blocks.
    """
    config = engine.config
    check_token_ids(token_ids, engine.runner.vocab_size)
    if len(token_ids) > config.max_model_len:
        raise PromptError(
            f"{len(token_ids)} tokens were given and the limit is max_model_len="
            f"{config.max_model_len}: shorten the text or raise --max_model_len."
        )
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
    try:
        logits = np.empty((len(token_ids), engine.runner.vocab_size), np.float32)
        for start in range(0, len(token_ids), config.max_num_batched_tokens):
            end = min(start + config.max_num_batched_tokens, len(token_ids))
            chunk = Chunk(sequence, start, end, is_sampled=True)
            batch = build_batch([chunk], config.block_size, sample_all_rows=True)
            logits[start:end] = engine.runner.execute(batch)
        return logits
    finally:
        engine.pool.free(sequence.block_table)
