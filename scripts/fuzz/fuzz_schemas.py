"""Is every answer that a random network finishes valid by the schema it was asked to follow?

    python scripts/fuzz/fuzz_schemas.py [--tokenizer DIR] [--seed S] [--count N]

Schema number i is the one that `random.Random("schema i")` makes. All run through the engine in
batches, with guesses and with several answers each, on a network whose logits are random numbers:
nothing but the masks leads to JSON. Prints the answers that are not valid, and ends with 1 if there
are any; `jsonschema` judges too where it is installed.
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from random_schemas import find_fault, make_schema

from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.engine.constraints import ConstraintCompiler
from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.engine.structured_outputs import StructuredOutputsParams
from mindformers_glm.tokenizer import GlmTokenizer, load_tokenizer

MINI = Path(__file__).resolve().parents[2] / "mindformers_glm" / "assets" / "glm4-mini"
_MAX_TOKENS = 400


class RandomRunner:
    """A network whose logits are random numbers."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self.vocab_size = vocab_size
        self.weights_bytes = self.mapped_weight_bytes = self.read_weight_bytes = 0
        self.workspace_bytes = 0
        self.kv_block_bytes = 1
        self.compile_s = 0.0
        self._rng = np.random.default_rng(seed)

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """There is none."""

    def close(self) -> None:
        """There is nothing to give back."""

    def execute(self, batch: ModelBatch) -> np.ndarray:
        return self._rng.standard_normal((len(batch.sample_rows), self.vocab_size), np.float32)


def make_random_engine(tokenizer: GlmTokenizer, seed: int, **sizes: int) -> LLMEngine:
    """Return an engine with the tokenizer on a random network."""
    config: dict[str, int] = {
        "max_num_seqs": 16,
        "max_num_batched_tokens": 256,
        "max_model_len": 4096,
        "block_size": 16,
        "num_blocks": 8192,
        "seed": seed,
        "prompt_lookup_num_tokens": 40,
    }
    vocab_size = -(-tokenizer.num_token_ids // 64) * 64
    return LLMEngine(
        RandomRunner(vocab_size, seed),
        EngineConfig(**(config | sizes)),
        tokenizer,
        tokenizer.eos_token_ids,
        special_token_names=tokenizer.special_token_names,
        constraints=ConstraintCompiler(tokenizer.vocabulary, vocab_size),
    )


def answer_schemas(
    engine: LLMEngine, schemas: list[dict[str, Any]], **params: Any
) -> list[RequestOutput]:
    """Return the last output for each schema."""
    for number, schema in enumerate(schemas):
        form = StructuredOutputsParams(json=schema, disable_any_whitespace=number % 4 == 0)
        settings = {"max_tokens": _MAX_TOKENS, "temperature": 1.0, "top_k": 0} | params
        engine.add_request(
            str(number), [1, 2, 3], SamplingParams(structured_outputs=form, **settings)
        )
    done: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        done |= {output.request_id: output for output in engine.step() if output.finished}
    return [done[str(number)] for number in range(len(schemas))]


def judge(output: RequestOutput, schema: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield how each answer ended, and what is wrong with it; None: nothing."""
    for answer in output.outputs:
        reason = str(answer.finish_reason)
        fault = output.error if reason == "error" else None
        if reason == "stop":
            try:
                value = json.loads(answer.text)
                fault = find_fault(value, schema) or _second_opinion(value, schema)
            except ValueError as problem:
                fault = str(problem)
        yield reason, None if fault is None else f"{fault}: {answer.text!r}"


def _second_opinion(value: Any, schema: dict[str, Any]) -> str | None:
    try:
        import jsonschema
    except ImportError:
        return None
    return next(
        (fault.message for fault in jsonschema.Draft202012Validator(schema).iter_errors(value)),
        None,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, default=MINI)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=500)
    options = parser.parse_args()
    engine = make_random_engine(load_tokenizer(options.tokenizer), options.seed)
    numbers = range(options.seed, options.seed + options.count)
    schemas = [make_schema(random.Random(f"schema {number}")) for number in numbers]
    counts: Counter[str] = Counter()
    for number, schema, output in zip(
        numbers, schemas, answer_schemas(engine, schemas, n=2), strict=True
    ):
        for reason, fault in judge(output, schema):
            counts["wrong" if fault else reason] += 1
            if fault:
                print(f"schema {number}: {fault}\n    {json.dumps(schema, ensure_ascii=False)}")
    print(f"{options.count} schemas, 2 answers each:", dict(counts))
    print(f"guessed tokens: {engine.num_drafted}, right: {engine.num_accepted}")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
