"""How long does the mask of a token take, at the true vocabularies?

    python scripts/bench/bench_masks.py [TOKENIZER_DIR ...] [--count N]

Two kinds of answers by random schemas and by the forms below: texts as the tokenizer writes them,
which is what a trained model answers, and tokens drawn at random from the masks, which visits every
corner of a grammar. Times are the processor's (what else runs does not count) of one row on the
thread that computes masks: finding the mask, making an array of it, taking the token. "applied" is
what the engine's own thread then does to the logits of the row. Without a folder: glm4-mini, and
the fixtures' tokenizers where they are.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, run_main

sys.path.append(str(Path(__file__).resolve().parents[1] / "fuzz"))
from random_schemas import make_schema

from mindformers_glm.engine.answer_grammar import write_answer_grammar
from mindformers_glm.engine.constraints import AnswerGrammar, ConstraintCompiler
from mindformers_glm.engine.structured_outputs import StructuredOutputsParams
from mindformers_glm.tokenizer import GlmTokenizer, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(os.environ.get("GLM_FIXTURES", ROOT.parent / "shared" / "fixtures"))
_VOCAB_SIZES = {"glm-4-9b-chat": 151_552, "glm-4-hf": 151_552, "chatglm3-6b": 65_024}
_MAX_TOKENS = 200

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "summary": {"type": "string"},
        "age": {"type": "integer"},
        "score": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string"},
                "city": {"enum": ["北京", "上海", "重庆"]},
            },
            "required": ["street", "city"],
        },
    },
    "required": ["name", "age", "tags"],
}
_ANSWER = {
    "name": "张三",
    "summary": 'He said: "it\'s fine"\nand left. 他住在北京市，是一名软件工程师，喜欢爬山和摄影。',
    "age": 41,
    "score": -1.25e-3,
    "tags": ["engineer", "爬山", "photography (film)", "a, b; c"],
    "address": {"street": "朝阳北路 101号", "city": "北京"},
}


def list_answers(tokenizer: GlmTokenizer) -> Iterator[tuple[StructuredOutputsParams, list[int]]]:
    """Yield forms with an answer that has it, as tokens."""
    forms: list[tuple[dict[str, Any], str]] = [
        ({"json": _PERSON}, json.dumps(_ANSWER, ensure_ascii=False)),
        ({"json": _PERSON}, json.dumps(_ANSWER, ensure_ascii=False, indent=4)),
        ({"json_object": True}, json.dumps(_ANSWER, ensure_ascii=False)),
        ({"regex": r"(\d{4}-\d{2}-\d{2}: [^\n]{1,80}\n)+"}, "2024-05-01: 天气晴 (22 °C)\n" * 5),
        ({"choice": ["positive", "negative", "neutral"]}, "neutral"),
    ]
    for form, text in forms:
        yield StructuredOutputsParams(**form), tokenizer.vocabulary.encode_within(text)


class Times:
    """Milliseconds of one kind."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.values: list[float] = []

    def print(self) -> None:
        p50, p99 = np.percentile(self.values, (50, 99))
        print(
            f"  {self.label:<28} {len(self.values):6} tokens  mean {np.mean(self.values):6.3f}  "
            f"p50 {p50:6.3f}  p99 {p99:6.3f}  max {max(self.values):7.3f} ms"
        )


def walk(
    compiler: ConstraintCompiler,
    grammar: AnswerGrammar,
    token_ids: list[int] | None,
    times: Times,
    applied: Times,
    rng: np.random.Generator,
) -> None:
    """Go through one answer, or through random tokens, and take the times."""
    constraint = compiler.start(grammar, frozenset())
    logits = rng.standard_normal(compiler._vocab_size, np.float32)
    for place in range(_MAX_TOKENS if token_ids is None else len(token_ids)):
        begin = time.thread_time()
        (mask,) = constraint.compute_masks([])
        computed_s = time.thread_time() - begin
        begin = time.thread_time()
        scores = np.where(mask.allowed, logits, np.float32(-np.inf))
        applied.values.append((time.thread_time() - begin) * 1e3)
        if mask.is_end or constraint.error is not None:
            break
        rng.shuffle(logits)
        token_id = int(np.argmax(scores)) if token_ids is None else token_ids[place]
        begin = time.thread_time()
        constraint.accept(token_id)
        times.values.append((computed_s + time.thread_time() - begin) * 1e3)
        assert constraint.error is None, constraint.error
        if constraint.is_complete:
            break


def measure(folder: Path, count: int) -> None:
    """Print the table of one tokenizer."""
    tokenizer = load_tokenizer(folder)
    vocab_size = _VOCAB_SIZES.get(folder.name, tokenizer.num_token_ids)
    compiler = ConstraintCompiler(tokenizer.vocabulary, vocab_size)
    begin = time.perf_counter()
    compiler.check(write_answer_grammar(StructuredOutputsParams(json_object=True)))
    print(f"{folder.name}: {vocab_size} tokens, opened in {time.perf_counter() - begin:.2f} s")
    rng = np.random.default_rng(0)
    applied, compiled = Times("applied to the logits"), Times("compiling a grammar")
    first, later = Times("JSON, new grammar"), Times("JSON, known grammar")
    others = Times("regex and choice")
    for form, token_ids in list_answers(tokenizer):
        grammar = write_answer_grammar(form)
        is_json = form.json is not None or form.json_object
        for repetition in range(6):
            times = (later if repetition else first) if is_json else others
            walk(compiler, grammar, token_ids, times, applied, rng)
    randomly = Times(f"random tokens, {count} schemas")
    for number in range(count):
        schema = make_schema(random.Random(f"schema {number}"))
        grammar = write_answer_grammar(StructuredOutputsParams(json=schema))
        begin = time.perf_counter()
        compiler.check(grammar)
        compiled.values.append((time.perf_counter() - begin) * 1e3)
        walk(compiler, grammar, None, randomly, applied, rng)
    for times in (first, later, others, randomly, applied, compiled):
        times.print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    print(describe_machine())
    fixtures = [FIXTURES / "tokenizers" / name for name in _VOCAB_SIZES]
    default = [ROOT / "mindformers_glm/assets/glm4-mini", *filter(Path.is_dir, fixtures)]
    for folder in options.folders or default:
        measure(folder, options.count)


if __name__ == "__main__":
    run_main(main)
