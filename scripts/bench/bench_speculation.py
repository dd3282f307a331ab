"""What does guessing ahead (prompt lookup) win on repetitive answers, and cost on others?

Answers held-out questions of the shipped checkpoint one at a time, each in turn without and with
guessing in the same process, and compares the medians of each question's time, prefill included.
Exit code 1 if an answer differs, or a bound is broken: 1.8 times as fast on questions to copy
something, 0.97 times on questions without repetition.

    python scripts/bench/bench_speculation.py [--prompt_lookup_num_tokens 11] [--repeats 7]
"""

import argparse
import json
import time
from typing import Any

import mindspore
import numpy as np
from machine import REPO, describe_machine, positive, run_main

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.cpu import library
from mindformers_glm.engine.llm_arguments import DEFAULT_PROMPT_LOOKUP_NUM_TOKENS

MINI = REPO / "mindformers_glm/assets/glm4-mini"
GREEDY = SamplingParams(do_sample=False, max_new_tokens=160)
# name -> (categories of held-out questions, least speed against no guessing)
GROUPS = {
    "copy": (("copy", "copy_edit"), 1.8),
    "no repetition": (("fact_zh", "fact_en", "arithmetic"), 0.97),
}


def main() -> int:
    """Print one table; return 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--prompt_lookup_num_tokens", type=int, default=DEFAULT_PROMPT_LOOKUP_NUM_TOKENS
    )
    parser.add_argument("--repeats", type=positive, default=7, help="of each question, both ways")
    parser.add_argument("--questions", type=positive, default=34, help="most of each group")
    args = parser.parse_args()

    print(describe_machine())
    print(
        f"mindspore {mindspore.__version__}, glm4-mini, bfloat16, {library.isa()}, one sequence, "
        f"greedy, prompt_lookup_num_tokens {args.prompt_lookup_num_tokens}"
    )
    plain, guessing = (
        LLM(
            MINI,
            max_num_seqs=1,
            max_model_len=512,
            prompt_lookup_num_tokens=num_tokens,
            enable_prefix_caching=False,  # each question is asked again and again
        )
        for num_tokens in (0, args.prompt_lookup_num_tokens)
    )
    lines = (MINI / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    print(
        f"{'questions':>14} {'number':>6} {'prompt':>6} {'answer':>6} {'steps':>6} {'ahead':>6} "
        f"{'ms':>8} {'p90 ms':>8} {'ahead ms':>8} {'p90 ms':>8} {'speed':>6}"
    )
    is_kept = True
    for name, (categories, bound) in GROUPS.items():
        chosen = [question for question in questions if question["category"] in categories]
        # Evenly from all categories of the group.
        chosen = chosen[:: -(-len(chosen) // args.questions)]
        is_kept &= compare(name, chosen, bound, (plain, guessing), args.repeats)
    return 0 if is_kept else 1


def compare(
    name: str,
    questions: list[dict[str, Any]],
    bound: float,
    models: tuple[LLM, LLM],
    repeats: int,
) -> bool:
    """Print one line; return whether answers are equal and the bound is kept."""
    seconds = np.empty((2, len(questions), repeats))
    num_steps = [0, 0]
    num_prompt_tokens = num_tokens = 0
    is_equal = True
    for index, question in enumerate(questions):
        answers = [ask(llm, question) for llm in models]  # warm up
        is_equal &= answers[0][1] == answers[1][1]
        num_prompt_tokens += answers[0][3]
        num_tokens += len(answers[0][1])
        for which in (0, 1):
            num_steps[which] += answers[which][2]
        for repeat in range(repeats):
            for which in (0, 1) if repeat % 2 else (1, 0):
                seconds[which, index, repeat] = ask(models[which], question)[0]
    medians = np.median(seconds, axis=2).sum(axis=1) / len(questions) * 1e3
    p90s = np.percentile(seconds, 90, axis=2).sum(axis=1) / len(questions) * 1e3
    speed = medians[0] / medians[1]
    print(
        f"{name:>14} {len(questions):6} {num_prompt_tokens / len(questions):6.1f} "
        f"{num_tokens / len(questions):6.1f} {num_steps[0]:6} {num_steps[1]:6} "
        f"{medians[0]:8.2f} {p90s[0]:8.2f} {medians[1]:8.2f} {p90s[1]:8.2f} {speed:6.2f}"
    )
    if not is_equal:
        print(f"{name}: answers differ")
    if speed < bound:
        print(f"{name}: {speed:.2f} is below {bound}")
    return bool(is_equal and speed >= bound)


def ask(llm: LLM, question: dict[str, Any]) -> tuple[float, list[int], int, int]:
    """Return seconds, tokens of the answer, steps that gave tokens, tokens of the prompt."""
    begin = time.perf_counter()
    outputs = list(llm.stream(question["messages"], GREEDY))
    seconds = time.perf_counter() - begin
    last = outputs[-1]
    return seconds, last.token_ids, len(outputs), len(last.prompt_token_ids)


if __name__ == "__main__":
    run_main(main)
