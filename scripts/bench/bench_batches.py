"""What do many sequences cost together, and a prompt that comes while others are answered?

Decodes 1, 4, 8, 16 and 32 sequences on a slice of true GLM-4-9B shape (make_slice.py); then, with
--decoding sequences under way, gives the engine a prompt and times the steps in which its chunks
ride along, beside a plain decode step and a prefill alone.

    python scripts/bench/bench_batches.py DIR [--quantization w8a8_dynamic] [--context 512]
"""

import argparse
import time

import numpy as np
from machine import describe_machine, positive, run_main

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.cpu import library
from mindformers_glm.engine.llm_engine import LLMEngine


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of make_slice.py")
    parser.add_argument("--quantization", help="default: none")
    parser.add_argument("--sequences", nargs="+", type=positive, default=[1, 4, 8, 16, 32])
    parser.add_argument("--context", type=positive, default=512)
    parser.add_argument(
        "--prompt", type=positive, default=2048, help="tokens of the one that comes"
    )
    parser.add_argument("--decoding", nargs="+", type=int, default=[1, 8], help="sequences then")
    parser.add_argument("--steps", type=positive, default=16, help="decode steps that are timed")
    parser.add_argument("--repeats", type=positive, default=3, help="prompts that come")
    args = parser.parse_args()
    longest = max([args.context + args.steps, args.prompt]) + 64 + 64 * args.repeats
    llm = LLM(
        args.model,
        quantization=args.quantization,
        max_num_seqs=max(args.sequences + [decoding + 1 for decoding in args.decoding]),
        max_model_len=longest,
        prompt_lookup_num_tokens=0,
        enable_prefix_caching=False,
    )
    bench = BatchBench(llm.engine, llm.config.vocab_size, longest)
    print(describe_machine())
    print(f"{library.isa()}, {args.quantization or llm.settings.params_dtype}")
    print(f"\n{'sequences':>9} {'ms a step':>10} {'p90':>7} {'tokens/s':>9} {'of one':>7}")
    first = 0.0
    for num_sequences in args.sequences:
        seconds = bench.decode(num_sequences, args.context, args.steps)
        tokens_per_s = num_sequences / float(np.median(seconds))
        first = first or tokens_per_s / num_sequences
        print(
            f"{num_sequences:>9} {np.median(seconds) * 1e3:10.1f} "
            f"{np.percentile(seconds, 90) * 1e3:7.1f} {tokens_per_s:9.1f} "
            f"{tokens_per_s / first:7.2f}",
            flush=True,
        )
    print(f"\na prompt of {args.prompt} tokens comes while others are answered; medians")
    print(f"{'decoding':>9} {'decode ms':>10} {'alone ms':>9} {'beside ms':>10} {'of the sum':>11}")
    for num_sequences in args.decoding:
        decode_s, alone_s, beside_s, num_steps = bench.admit(
            num_sequences, args.context, args.prompt, args.steps, args.repeats
        )
        # Beside others a prompt takes num_steps steps, in each of which they get a token.
        print(
            f"{num_sequences:>9} {decode_s * 1e3:10.1f} {alone_s * 1e3:9.1f} "
            f"{beside_s * 1e3:10.1f} {beside_s / (alone_s + num_steps * decode_s):11.2f}",
            flush=True,
        )


class BatchBench:
    """Drives an engine step by step with random prompts.

    Args:
        max_tokens: no request gets longer, and none ends before.
    """

    def __init__(self, engine: LLMEngine, vocab_size: int, max_tokens: int) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._params = SamplingParams(do_sample=False, ignore_eos=True, max_length=max_tokens)
        self._rng = np.random.default_rng(0)
        self._num_requests = 0
        self._running: list[str] = []

    def decode(self, num_sequences: int, context: int, num_steps: int) -> list[float]:
        """Seconds of each of `num_steps` steps of sequences that begin at `context` tokens."""
        self._start(num_sequences, context)
        self._time_step()
        seconds = [self._time_step() for _ in range(num_steps)]
        self._stop()
        return seconds

    def admit(
        self, num_sequences: int, context: int, prompt_len: int, num_steps: int, repeats: int
    ) -> tuple[float, float, float, int]:
        """Seconds of a decode step, a prompt alone, a prompt beside decoding; its steps then."""
        alone_s = [self._time_prompt(prompt_len)[0] for _ in range(repeats + 1)][1:]
        self._start(num_sequences, context)
        decode_s = [self._time_step() for _ in range(num_steps)]
        beside = [self._time_prompt(prompt_len) for _ in range(repeats + 1)][1:]
        self._stop()
        medians = [float(np.median(times)) for times in (decode_s, alone_s, [b[0] for b in beside])]
        return medians[0], medians[1], medians[2], beside[0][1]

    def _time_prompt(self, prompt_len: int) -> tuple[float, int]:
        """Seconds and steps until a prompt's first token; the request ends there."""
        request_id = self._add(prompt_len)
        begin = time.perf_counter()
        num_steps = 1
        while request_id not in {output.request_id for output in self._engine.step()}:
            num_steps += 1
        seconds = time.perf_counter() - begin
        self._engine.abort(request_id)
        return seconds, num_steps

    def _start(self, num_sequences: int, context: int) -> None:
        self._running = [self._add(context) for _ in range(num_sequences)]
        waiting = set(self._running)
        while waiting:
            waiting -= {output.request_id for output in self._engine.step()}

    def _stop(self) -> None:
        for request_id in self._running:
            self._engine.abort(request_id)

    def _time_step(self) -> float:
        begin = time.perf_counter()
        outputs = self._engine.step()
        assert len(outputs) == len(self._running), "a sequence has ended"
        return time.perf_counter() - begin

    def _add(self, prompt_len: int) -> str:
        request_id = str(self._num_requests)
        self._num_requests += 1
        prompt = self._rng.integers(self._vocab_size, size=prompt_len).tolist()
        self._engine.add_request(request_id, prompt, self._params)
        return request_id


if __name__ == "__main__":
    run_main(main)
