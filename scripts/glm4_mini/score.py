"""Score a checkpoint folder: greedy text against the expected answer.

With Hugging Face alone, or (`score_quantized`) with this project, which can quantize the weights.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Glm4ForCausalLM,
    PreTrainedTokenizerFast,
)

from glm4_mini.conversation import Example

MAX_NEW_TOKENS = 160


@dataclass(frozen=True)
class Miss:
    """A question whose greedy text is not the expected answer."""

    category: str
    prompt: str
    expected: str
    text: str


@dataclass(frozen=True)
class Score:
    """Right and asked per category, and what went wrong."""

    right: dict[str, int]
    asked: dict[str, int]
    misses: list[Miss]

    def table(self) -> str:
        """One line per category and a total."""
        lines = [f"{name:14} {self.right[name]:4} / {self.asked[name]}" for name in self.asked]
        right, asked = sum(self.right.values()), sum(self.asked.values())
        return "\n".join([*lines, f"{'all':14} {right:4} / {asked} = {right / asked:.1%}"])


def read_heldout(folder: Path) -> list[Example]:
    """The questions of heldout.jsonl."""
    examples = []
    for line in (folder / "heldout.jsonl").read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        stop = "<|observation|>" if row["category"] == "tool_call" else "<|user|>"
        tools = tuple(row.get("tools", ()))
        examples.append(
            Example(row["category"], tuple(row["messages"]), row["answer"], tools, stop=stop)
        )
    return examples


def score_folder(folder: Path, dtype: torch.dtype, examples: list[Example]) -> Score:
    """Load the folder the way a user does and score it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype)
    return score_model(model, tokenizer, examples)


def score_model(
    model: Glm4ForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[Example]
) -> Score:
    """Greedy answers, exact match on the text and on the token that ends it.

    Prompts of equal length share a batch, so nothing is padded and a batch changes no result.
    """
    by_length: dict[int, list[tuple[list[int], Example]]] = defaultdict(list)
    for example in examples:
        prompt = _encode(tokenizer, example)
        by_length[len(prompt)].append((prompt, example))
    answers: list[tuple[Example, str, str]] = []
    model.eval()
    for prompts in by_length.values():
        texts = _generate(model, tokenizer, [prompt for prompt, _ in prompts])
        for (_, example), (text, stop) in zip(prompts, texts, strict=True):
            answers.append((example, text, stop))
    model.train()
    return _count(answers)


def score_quantized(
    folder: Path, quantization: str | None, group_size: int | None, examples: list[Example]
) -> Score:
    """The same by this project's operators, weights quantized while they are loaded."""
    from mindformers_glm import LLM, SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [_encode(tokenizer, example) for example in examples]
    with LLM(
        folder,
        quantization=quantization,
        quantization_group_size=group_size,
        max_model_len=max(map(len, prompts)) + MAX_NEW_TOKENS,
    ) as llm:
        params = SamplingParams(do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        outputs = llm.generate(prompts, params)
    stops = [
        tokenizer.convert_ids_to_tokens(output.token_ids[-1])
        if output.finish_reason == "stop"
        else ""
        for output in outputs
    ]
    return _count(
        (example, output.text.strip(), stop)
        for example, output, stop in zip(examples, outputs, stops, strict=True)
    )


def _count(answers: Iterable[tuple[Example, str, str]]) -> Score:
    """Compare each text and the token that ended it with what was expected."""
    asked: dict[str, int] = defaultdict(int)
    right: dict[str, int] = defaultdict(int)
    misses = []
    for example, text, stop in answers:
        asked[example.category] += 1
        if text == example.answer and stop == example.stop:
            right[example.category] += 1
        else:
            question = example.messages[-1]["content"]
            misses.append(Miss(example.category, question, example.answer, text))
    return Score(right, asked, misses)


def _encode(tokenizer: PreTrainedTokenizerFast, example: Example) -> list[int]:
    return tokenizer.apply_chat_template(
        list(example.messages), tools=list(example.tools) or None, add_generation_prompt=True
    )


@torch.no_grad()
def _generate(
    model: Glm4ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> list[tuple[str, str]]:
    ids = torch.tensor(prompts)
    stops = set(model.config.eos_token_id)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = []
    for row in output[:, ids.shape[1] :].tolist():
        end = next((at for at, token in enumerate(row) if token in stops), len(row))
        stop = tokenizer.convert_ids_to_tokens(row[end]) if end < len(row) else ""
        texts.append((tokenizer.decode(row[:end]).strip(), stop))
    return texts
