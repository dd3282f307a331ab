"""How fast a run was and what it took, in a line at its end; --verbose splits it."""

import statistics
import time
from math import floor, log10
from typing import Protocol

import psutil

from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.step_times import StepTimes
from mindformers_glm.system.host_memory import read_peak_memory
from mindformers_glm.system.log import detail, note


class Measured(Protocol):
    """What there is to tell of an `LLM`."""

    times: StepTimes
    compile_s: float
    weights_bytes: int
    kv_cache_bytes: int


class RunFigures:
    """Follows a run from its first line to its last."""

    def __init__(self) -> None:
        self._begun_s = time.perf_counter()
        # Since the system's start, to a hundredth of a second; when that was is known to a second.
        created_s = psutil.Process().create_time() - psutil.boot_time()
        self._start_s = max(time.clock_gettime(time.CLOCK_BOOTTIME) - created_s, 0.0)
        self._loaded_s, self._compiled_s = self._begun_s, 0.0
        self._first_token_s: dict[int, float] = {}
        self._num_prompt_tokens = self._num_cached_tokens = 0

    def end_loading(self, llm: Measured) -> None:
        """Call when the model is ready to answer; the time to the first token begins."""
        self._compiled_s = llm.compile_s
        self._loaded_s = time.perf_counter()

    def take(self, index: int, output: RequestOutput) -> None:
        """Take an output of the prompt at `index`."""
        if output.delta_token_ids and index not in self._first_token_s:
            self._first_token_s[index] = time.perf_counter() - self._loaded_s
            self._num_prompt_tokens += len(output.prompt_token_ids)
            self._num_cached_tokens += output.num_cached_tokens

    def tell(self, llm: Measured, ranks: int) -> None:
        """Write the line, and what it is made of before it where that is asked for."""
        ended_s = time.perf_counter()
        waits_s = sorted(self._first_token_s.values())
        if not waits_s:
            return
        times, load_s = llm.times, self._loaded_s - self._begun_s
        detail(
            f"time: start {_seconds(self._start_s)}, load {_seconds(load_s)} "
            f"({_seconds(self._compiled_s)} of it compiling), prompts {_seconds(times.prompt_s)}, "
            f"answers {_seconds(times.answer_s)} ({_seconds(llm.compile_s - self._compiled_s)} of "
            f"both compiling); all after loading {_seconds(ended_s - self._loaded_s)}"
        )
        detail(
            f"tokens: {times.num_prompt_tokens} of prompts computed, {self._num_cached_tokens} "
            f"taken over from prompts that begin alike; {times.num_new_tokens} new ones in "
            f"{times.num_steps} steps, {times.num_first_tokens} of them by a prompt's last step"
        )
        detail(
            f"first tokens of {len(waits_s)} answers: the soonest after {_seconds(waits_s[0])}, "
            f"half of them after {_seconds(statistics.median(waits_s))}, the last after "
            f"{_seconds(waits_s[-1])}"
        )
        detail(f"memory: weights {_size(llm.weights_bytes)}, KV cache {_size(llm.kv_cache_bytes)}")
        s = "" if len(waits_s) == 1 else "s"
        read = _tokens(self._num_prompt_tokens, times.num_prompt_tokens, times.prompt_s)
        written = _tokens(times.num_new_tokens, times.num_next_tokens, times.answer_s)
        where = f" on rank 0 of {ranks}" if ranks > 1 else ""
        note(
            f"prompt{s} {read}; answer{s} {written}; first token after {_seconds(waits_s[0])}; "
            f"load {_seconds(load_s)}; peak memory {_size(read_peak_memory())}{where}"
        )


def _tokens(count: int, num_timed: int, duration_s: float) -> str:
    """The tokens and their speed; of an answer the first one belongs to the prompt's time."""
    speed = (
        f", {_three_digits(num_timed / duration_s)} tokens/s" if num_timed and duration_s else ""
    )
    return f"{count} token{'' if count == 1 else 's'}{speed}"


def _seconds(duration_s: float) -> str:
    return f"{_three_digits(duration_s)} s"


def _size(num_bytes: int) -> str:
    if num_bytes < 2**30:
        return f"{_three_digits(num_bytes / 2**20)} MB"
    return f"{num_bytes / 2**30:.2f} GB"


def _three_digits(value: float) -> str:
    """0.0123, 1.23, 12.3, 123, 1235: so that rounding changes nothing by half a percent."""
    if value < 0.001:
        return "0"
    return f"{value:.{max(2 - floor(log10(value)), 0)}f}"
