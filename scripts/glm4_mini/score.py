"""Score a checkpoint folder with Hugging Face alone: greedy text against the expected answer."""

import json
from collections import defaultdict
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
        prompt = tokenizer.apply_chat_template(
            list(example.messages), tools=list(example.tools) or None, add_generation_prompt=True
        )
        by_length[len(prompt)].append((prompt, example))
    asked: dict[str, int] = {example.category: 0 for example in examples}
    right = dict.fromkeys(asked, 0)
    misses = []
    model.eval()
    for prompts in by_length.values():
        texts = _generate(model, tokenizer, [prompt for prompt, _ in prompts])
        for (_, example), (text, stop) in zip(prompts, texts, strict=True):
            asked[example.category] += 1
            if text == example.answer and stop == example.stop:
                right[example.category] += 1
            else:
                question = example.messages[-1]["content"]
                misses.append(Miss(example.category, question, example.answer, text))
    model.train()
    return Score(right, asked, misses)


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
