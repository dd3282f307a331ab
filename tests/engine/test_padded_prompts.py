"""`network.generate` with padded rows and a mask answers as it does without padding."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("mindspore")

from mindspore import Tensor

from mindformers_glm.core.errors import PromptError
from mindformers_glm.models.generate import generate
from tests.engine.drive import make_engine
from tests.engine.fake_runner import answer

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]
WIDTH = 4
PADDING = 999  # outside the vocabulary: an error wherever it is taken for a token
FORMS: dict[str, Any] = {
    "array": lambda rows, dtype: np.array(rows, dtype),
    "tensor": lambda rows, dtype: Tensor(np.array(rows, dtype)),
    "lists": lambda rows, dtype: np.array(rows, dtype).tolist(),
}


def ask(input_ids: Any, attention_mask: Any = None, **given: Any) -> list[list[int]]:
    given = {"attention_mask": attention_mask, "max_new_tokens": 5, "do_sample": False} | given
    found = generate(make_engine(), input_ids, **given)
    assert all(tokens.dtype == np.int32 for tokens in found)
    return [tokens.tolist() for tokens in found]


def pad(side: str) -> tuple[list[list[int]], list[list[int]]]:
    """The prompts as rows of one length, and their mask."""
    rows, mask = [], []
    for prompt in PROMPTS:
        left = {"left": WIDTH - len(prompt), "right": 0, "both": (WIDTH - len(prompt)) // 2}[side]
        right = WIDTH - len(prompt) - left
        rows.append([PADDING] * left + prompt + [PADDING] * right)
        mask.append([0] * left + [1] * len(prompt) + [0] * right)
    return rows, mask


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("mask_dtype", ["float32", "int64", "bool"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padded_rows_run_at_their_own_length(side: str, form: str, mask_dtype: str, dtype: str):
    rows, mask = pad(side)
    expected = [prompt + answer(prompt, 5) for prompt in PROMPTS]
    assert ask(FORMS[form](rows, dtype), FORMS[form](mask, mask_dtype)) == expected
    assert ask(PROMPTS) == expected


def test_without_a_mask_every_id_is_a_token():
    rows, _ = pad("left")
    with pytest.raises(PromptError, match="999"):
        ask(rows)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_without_a_mask_the_pad_token_at_both_ends_of_equal_rows_is_padding(side: str):
    rows, _ = pad(side)
    expected = [prompt + answer(prompt, 5) for prompt in PROMPTS]
    assert ask(rows, pad_token_id=PADDING) == expected
    assert ask(np.array(rows), pad_token_id=PADDING) == expected


def test_the_pad_token_is_a_token_where_no_tokenizer_can_have_padded():
    for prompts in ([[5, 6]], [5, 6], [[5, 6], [5]], [[6, 6], [6, 6]], [[7, 6, 7], [7, 6, 7]]):
        assert ask(prompts, pad_token_id=6) == ask(prompts)


def test_a_streamer_is_given_one_prompt_and_each_token():
    class Heard(list[Any]):
        put = list.append

        def end(self) -> None:
            self.append("end")

    heard = Heard()
    (found,) = ask([5, 6, 7], streamer=heard)
    given = [tokens.tolist() for tokens in heard[:-1]]
    assert given == [[[5, 6, 7]], *([token_id] for token_id in found[3:])]
    assert heard[-1] == "end"


def test_a_single_prompt_has_a_mask_of_one_row():
    expected = [[5, 6, *answer([5, 6], 5)]]
    assert ask([PADDING, 5, 6], [0, 1, 1]) == expected
    assert ask(np.array([[PADDING, 5, 6]]), np.array([[0, 1, 1]])) == expected


def test_no_prompts_have_no_answers():
    assert ask([], []) == []
    assert ask(np.empty((0, 4), np.int64), np.empty((0, 4))) == []


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[1, 1], [1, 1]], "must have the shape of input_ids, [2, 3], it has [2, 2]"),
        ([1, 1, 1], "must have the shape of input_ids, [2, 3], it has [3]"),
        (1, "must have the shape of input_ids, [2, 3], it has []"),
        ([[1, 1, 1]], "must have the shape of input_ids, [2, 3], it has [1, 3]"),
        (np.ones((1, 1, 2, 3)), "it has [1, 1, 2, 3]"),
        ([[1, 1, 1], [1, 0, 1]], "Row 1 of attention_mask has zeros between tokens"),
        ([[0, 0, 0], [1, 1, 1]], "Row 0 of attention_mask is all zeros"),
        ([[1, 1, 2], [1, 1, 1]], "1 for a token and 0 for padding, got 2"),
        ([[1, 1, 0.5], [1, 1, 1]], "got 0.5"),
        ([[1, 1, -10000.0], [1, 1, 1]], "got -10000.0"),
        ([[1, 1, float("nan")], [1, 1, 1]], "got nan"),
        ([[1, 1, 1], [1]], "rows of attention_mask must have the same length"),
        ([["1", "1", "1"], ["1", "1", "1"]], "must hold numbers"),
        ({"row": 1}, "must hold numbers"),
    ],
    ids=str,
)
def test_a_mask_of_something_else_is_one_sentence(mask: Any, words: str):
    with pytest.raises(PromptError) as caught:
        ask([[5, 6, 7], [8, 9, 10]], mask)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_of_several_lengths_have_no_mask():
    with pytest.raises(PromptError, match="same length, they have from 1 to 3"):
        ask([[5, 6, 7], [8]], [[1, 1, 1], [1, 0, 0]])
