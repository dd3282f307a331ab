"""Packed training batches: several conversations per row, each seeing only itself."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from glm4_mini.conversation import Example
from glm4_mini.corpus import training_examples

IGNORE = -100
HARD_WEIGHT = 5.0  # of the words an answer stands or falls with


@dataclass(frozen=True)
class TokenizedExample:
    """Prompt and answer tokens of one example; the loss is on the answer and its stop token."""

    prompt: list[int]
    answer: list[int]
    weights: list[float]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Batch:
    """`input_ids`, `labels`, `weights` [rows, length]; `mask` [rows, 1, length, length], 0 or -inf.

    `labels` are already shifted: labels[r, t] is the token after input_ids[r, t], or IGNORE.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    mask: torch.Tensor


def encode_prompt(tokenizer: PreTrainedTokenizerFast, example: Example) -> list[int]:
    """The prompt through the chat template, up to and with `<|assistant|>`."""
    ids = tokenizer.apply_chat_template(
        list(example.messages), tools=list(example.tools) or None, add_generation_prompt=True
    )
    return list(ids)


def encode_example(tokenizer: PreTrainedTokenizerFast, example: Example) -> TokenizedExample:
    """Tokens of an example: a plain answer starts with a newline, a tool call with its name."""
    is_call = example.stop == "<|observation|>"
    answer = tokenizer.encode(example.answer if is_call else "\n" + example.answer)
    answer.append(tokenizer.convert_tokens_to_ids(example.stop))
    hard = {token for word in example.hard for token in tokenizer.encode(" " + word)}
    weights = [HARD_WEIGHT if token in hard else 1.0 for token in answer]
    return TokenizedExample(encode_prompt(tokenizer, example), answer, weights)


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, rows: int, length: int
) -> Iterator[Batch]:
    """An endless stream of packed batches."""
    examples = (encode_example(tokenizer, example) for example in training_examples(seed))
    pending = [next(examples) for _ in range(64)]
    pad = tokenizer.pad_token_id
    while True:
        batch_rows = []
        for _ in range(rows):
            row: list[TokenizedExample] = []
            room = length
            # the longest that fits, so that little is padded
            while fitting := [item for item in pending if len(item) <= room]:
                item = max(fitting, key=len) if room < length else pending[0]
                pending.remove(item)
                pending.append(next(examples))
                row.append(item)
                room -= len(item)
            batch_rows.append(row)
        yield _pack(batch_rows, length, pad)


def _pack(batch_rows: list[list[TokenizedExample]], length: int, pad: int) -> Batch:
    input_ids = torch.full((len(batch_rows), length), pad)
    labels = torch.full((len(batch_rows), length), IGNORE)
    weights = torch.ones(len(batch_rows), length)
    owner = torch.full((len(batch_rows), length), -1)
    for index, row in enumerate(batch_rows):
        begin = 0
        for number, item in enumerate(row):
            end = begin + len(item)
            answer_begin = begin + len(item.prompt)
            input_ids[index, begin:end] = torch.tensor(item.prompt + item.answer)
            labels[index, answer_begin - 1 : end - 1] = torch.tensor(item.answer)
            weights[index, answer_begin - 1 : end - 1] = torch.tensor(item.weights)
            owner[index, begin:end] = number
            begin = end
    is_visible = (owner[:, :, None] == owner[:, None, :]) & torch.ones(length, length).tril().bool()
    mask = torch.zeros(is_visible.shape).masked_fill_(~is_visible, float("-inf"))
    return Batch(input_ids, labels, weights, mask[:, None].to(torch.bfloat16))
