"""The arrays of one step as upstream's `construct` is given them, read into a ModelBatch."""

from typing import Any

import numpy as np
from mindspore import Tensor

from mindformers_glm.backends import ModelBatch
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import PromptError, UnsupportedError


def read_step(
    settings: RunnerSettings,
    num_blocks: int,
    input_ids: Tensor,
    hidden_states: None = None,
    positions: Tensor | None = None,
    batch_valid_length: Tensor | None = None,
    context_lens_tensor: Tensor | None = None,
    q_seq_lens: Tensor | None = None,
    block_tables: Tensor | None = None,
    slot_mapping: Tensor | None = None,
    **others: Any,
) -> ModelBatch:
    """Check the arrays and pack them; the last token of each sequence is sampled.

    Order and names are those of mindformers 1.7.0, `InferenceGlm4ForCausalLM.construct`.

    Args:
        num_blocks: of the KV cache.
        input_ids, positions, slot_mapping: [num_rows], the new tokens of all sequences packed.
        batch_valid_length: [num_seqs], tokens of each sequence after this step.
        context_lens_tensor: [num_seqs], those before it; follows from the others.
        q_seq_lens: [num_seqs], new tokens of each.
        block_tables: [num_seqs, max_blocks], the blocks of each in logical order.
        hidden_states, others: what only upstream's operators need must be None here.
    Raises:
        UnsupportedError: something is given that cannot be used here.
        PromptError: an array is missing, of the wrong size or type, or leads outside the cache.
    """
    for name, value in {"hidden_states": hidden_states, **others}.items():
        if value is not None:
            raise UnsupportedError(
                f"construct cannot use {name} here: leave it out; the rows of a step attend to "
                "their own sequence, and the KV cache is the network's."
            )
    given = {
        "input_ids": input_ids,
        "positions": positions,
        "slot_mapping": slot_mapping,
        "batch_valid_length": batch_valid_length,
        "q_seq_lens": q_seq_lens,
    }
    ids, places, slots, lens, new = (_read(name, array, 1) for name, array in given.items())
    tables = _read("block_tables", block_tables, 2)
    rows, seqs, size = len(ids), len(lens), settings.block_size
    most_rows, most_seqs = settings.max_num_batched_tokens, settings.max_num_seqs
    longest = min(settings.max_model_len, tables.shape[1] * size)
    _expect(1 <= rows <= most_rows, f"input_ids must hold 1 to {most_rows} tokens", rows)
    _expect(1 <= seqs <= most_seqs, f"batch_valid_length must hold 1 to {most_seqs} numbers", seqs)
    _expect(len(places) == rows, "positions must be as long as input_ids", len(places))
    _expect(len(slots) == rows, "slot_mapping must be as long as input_ids", len(slots))
    _expect(len(new) == seqs, "q_seq_lens must be as long as batch_valid_length", len(new))
    _expect(len(tables) == seqs, "block_tables must have a row for each sequence", len(tables))
    _expect((new >= 1) & (new <= lens), "q_seq_lens must be from 1 to batch_valid_length", new)
    _expect(new.sum() == rows, "q_seq_lens must add up to the length of input_ids", new)
    _expect(lens <= longest, f"batch_valid_length must be at most {longest}, the room", lens)
    ends = zip(lens - new, lens, strict=True)
    expected = np.concatenate([np.arange(*both) for both in ends])
    _expect(places == expected, "positions must be those of each sequence's last tokens", places)
    if context_lens_tensor is not None:
        before = _read("context_lens_tensor", context_lens_tensor, 1)
        rule = "context_lens_tensor must be batch_valid_length - q_seq_lens"
        _expect(np.array_equal(before, lens - new), rule, before)
    blocks = [row[: -(-end // size)].tolist() for row, end in zip(tables, lens, strict=True)]
    held = np.concatenate(blocks)
    _expect((held >= 0) & (held < num_blocks), f"block_tables must be below {num_blocks}", held)
    most = num_blocks * size
    _expect((slots >= 0) & (slots < most), f"slot_mapping must be below {most}", slots)
    starts = np.cumsum([0, *new], dtype=np.int32)
    # A single token behind others is one that was generated, as far as can be told.
    is_prompt = np.repeat((new > 1) | (new == lens), new).astype(np.int32)
    return ModelBatch(ids, places, slots, starts, lens, blocks, starts[1:] - 1, is_prompt)


def _read(name: str, array: Any, num_axes: int) -> np.ndarray:
    found = array.asnumpy() if isinstance(array, Tensor) else np.asarray(array)
    is_right = found.ndim == num_axes and found.dtype in (np.int32, np.int64)
    rule = f"{name} must be int32 with {num_axes} axes"
    _expect(is_right, rule, f"{found.dtype} with {found.ndim}")
    _expect(np.abs(found) < 2**31, rule, found)
    return found.astype(np.int32)


def _expect(is_right: Any, rule: str, found: object) -> None:
    if not np.all(is_right):
        raise PromptError(f"{rule}, got {found}.")
