"""Token ids as callers of upstream's `generate` hand them over, as one list for each prompt."""

from numbers import Real
from typing import Any

import numpy as np
from mindspore import Tensor

from mindformers_glm.core.errors import PromptError


def read_prompts(
    input_ids: Any, attention_mask: Any = None, pad_token_id: int | None = None
) -> list[list[int]]:
    """One list for each prompt, without padding; what they hold is checked by the engine.

    Args:
        input_ids: [S] or [B, S], an array, a Tensor or lists; lists may differ in length where
            there is no mask.
        attention_mask: of the same shape, 1 for a token and 0 for padding, whose ids are dropped;
            None: there is no padding but `pad_token_id`.
        pad_token_id: dropped before and behind the tokens of several prompts of one length, as
            upstream does behind them: a tokenizer has padded these.
    Raises:
        PromptError: either is something else, or a row of the mask has no token or a gap.
    """
    input_ids = _from_tensor(input_ids)
    prompts, is_single = _as_lists(input_ids)
    if attention_mask is None:
        is_padded = len(prompts) > 1 and len({len(prompt) for prompt in prompts}) == 1
        return [_strip(prompt, pad_token_id) for prompt in prompts] if is_padded else prompts
    mask = _read_mask(attention_mask)
    _check_shape(mask, prompts, is_single)
    rows = mask[None] if is_single else mask
    return [
        _without_padding(row, prompt, kept)
        for row, (prompt, kept) in enumerate(zip(prompts, rows, strict=True))
    ]


def _from_tensor(value: Any) -> Any:
    return value.asnumpy() if isinstance(value, Tensor) else value


def _as_lists(input_ids: Any) -> tuple[list[list[int]], bool]:
    """The prompts, and whether it was a single one that stands in no list."""
    if isinstance(input_ids, np.ndarray):
        input_ids = input_ids.tolist()
    if not isinstance(input_ids, list | tuple):
        raise PromptError(
            "input_ids must be a list of token ids or a list of such lists, got a "
            f"{type(input_ids).__name__}."
        )
    if input_ids and isinstance(input_ids[0], Real):
        return [list(input_ids)], True
    for prompt in input_ids:
        if not isinstance(prompt, list | tuple | np.ndarray):
            raise PromptError(
                f"A prompt of token ids must be a list of them, got a {type(prompt).__name__}."
            )
    return [list(prompt) for prompt in input_ids], False


def _read_mask(attention_mask: Any) -> np.ndarray:
    """bool, of the shape that was given."""
    try:
        mask = np.asarray(_from_tensor(attention_mask))
    except ValueError:  # lists of several lengths
        raise PromptError(
            "The rows of attention_mask must have the same length: pad them with zeros."
        ) from None
    if mask.dtype.kind not in "buif":
        raise PromptError(
            "attention_mask must hold numbers, 1 for a token and 0 for padding, got a "
            f"{type(attention_mask).__name__} of {mask.dtype}."
        )
    others = mask[(mask != 0) & (mask != 1)]
    if others.size:
        raise PromptError(
            f"attention_mask must be 1 for a token and 0 for padding, got {others[0]}."
        )
    return mask.astype(bool)


def _check_shape(mask: np.ndarray, prompts: list[list[int]], is_single: bool) -> None:
    lengths = sorted({len(prompt) for prompt in prompts})
    if len(lengths) > 1:
        raise PromptError(
            "With an attention_mask all rows of input_ids must have the same length, they have "
            f"from {lengths[0]} to {lengths[-1]}: pad them, or leave the mask out."
        )
    shape = lengths if is_single else [len(prompts), *lengths]
    found = list(mask.shape if prompts else mask.shape[:1])  # no prompts have no length
    if found != shape:
        raise PromptError(
            f"attention_mask must have the shape of input_ids, {shape}, it has {list(mask.shape)}."
        )


def _strip(prompt: list[int], pad_token_id: int | None) -> list[int]:
    kept = [place for place, token_id in enumerate(prompt) if token_id != pad_token_id]
    return prompt[kept[0] : kept[-1] + 1] if kept else prompt


def _without_padding(row: int, prompt: list[int], mask: np.ndarray) -> list[int]:
    kept = np.flatnonzero(mask)
    if not kept.size:
        raise PromptError(
            f"Row {row} of attention_mask is all zeros: a prompt needs at least one token."
        )
    first, end = int(kept[0]), int(kept[-1]) + 1
    if end - first != kept.size:
        raise PromptError(
            f"Row {row} of attention_mask has zeros between tokens: padding may stand before or "
            "behind them only."
        )
    return prompt[first:end]
