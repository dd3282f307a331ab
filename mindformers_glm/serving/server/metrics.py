"""Prometheus metrics by vLLM's names, so that its dashboards work, and a few of our own.

Read: vLLM 0.10 `vllm/v1/metrics/loggers.py`. Counters of tokens and steps come from the engine when
they are asked for; times of requests are taken where the server sees them.
"""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mindformers_glm.engine.engine_thread import EngineState
from mindformers_glm.engine.request_output import RequestOutput

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LABELS = ("model_name", "engine")
# Bucket limits, as vLLM's.
_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_FIRST_S = (*_SECONDS, 20, 40, 80, 160, 640, 2560)
_BETWEEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, *_SECONDS[10:], 20, 40, 80)
_SHORT_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60)
_REQUEST_S = (*_SHORT_REQUEST_S, 120, 240, 480, 960, 1920, 7680)
_TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
_BETWEEN, _OLDER_BETWEEN = "inter_token_latency_seconds", "vllm:time_per_output_token_seconds"
# vLLM's name -> (what it says, buckets).
_HISTOGRAMS = {
    "time_to_first_token_seconds": ("time to the first token", _FIRST_S),
    _BETWEEN: ("time between two outputs of an answer", _BETWEEN_S),
    "request_time_per_output_token_seconds": ("mean time of a token of a request", _BETWEEN_S),
    "e2e_request_latency_seconds": ("time of a request", _REQUEST_S),
    "request_queue_time_seconds": ("time until a request runs", _REQUEST_S),
    "request_prefill_time_seconds": ("time from there to the first token", _REQUEST_S),
    "request_decode_time_seconds": ("time from there to the last token", _REQUEST_S),
    "request_inference_time_seconds": ("both together", _REQUEST_S),
    "request_prompt_tokens": ("tokens of a prompt", _TOKENS),
    "request_generation_tokens": ("tokens of the answers to it", _TOKENS),
}
_COUNTERS = {
    "num_preemptions": ("requests that lost their KV cache", "num_preemptions"),
    "spec_decode_num_draft_tokens": ("tokens guessed by prompt lookup", "num_drafted"),
    "spec_decode_num_accepted_tokens": ("those that were right", "num_accepted"),
}


class Metrics:
    """The metrics of one server.

    Args:
        model_name: the label of all of them.
    """

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._values = (model_name, "0")
        histograms = {
            name: Histogram(f"vllm:{name}", text, _LABELS, buckets=buckets, registry=self._registry)
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        self._between = histograms[_BETWEEN]
        self._histograms = {
            name: histogram.labels(*self._values) for name, histogram in histograms.items()
        }
        self._success = Counter(
            "vllm:request_success",
            "requests that came to their end, by the reason",
            (*_LABELS, "finished_reason"),
            registry=self._registry,
        )
        self._prompt = self._counter("prompt_tokens", "tokens of prompts")
        self._new = self._counter("generation_tokens", "tokens of answers")
        self._queries = self._counter("prefix_cache_queries", "tokens of prompts looked up")
        self._hits = self._counter("prefix_cache_hits", "those that were in the prefix cache")
        self.answers = Counter(
            "glm:http_responses", "answers by status", ("status",), registry=self._registry
        )

    def watch(self, read_state: Callable[[], EngineState], num_open: Callable[[], int]) -> None:
        """Tell the engine's own counts too."""
        self._registry.register(_OlderName(self._between))
        self._registry.register(_EngineCollector(read_state, num_open, self._values))

    def new_request(self) -> "RequestTimes":
        """Begin to time a request that has come."""
        return RequestTimes(self)

    def expose(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)

    def observe(self, name: str, value: float) -> None:
        """Enter a value into a histogram."""
        self._histograms[name].observe(value)

    def count_first(self, output: RequestOutput) -> None:
        """Count a prompt that has been read."""
        num_tokens = len(output.prompt_token_ids)
        self._prompt.inc(num_tokens)
        self._queries.inc(num_tokens)
        self._hits.inc(output.num_cached_tokens)
        self.observe("request_prompt_tokens", num_tokens)

    def count_tokens(self, number: int) -> None:
        """Count tokens of answers."""
        self._new.inc(number)

    def count_end(self, reason: str) -> None:
        """Count a request by how it ended."""
        self._success.labels(*self._values, reason).inc()

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(f"vllm:{name}", text, _LABELS, registry=self._registry)
        return counter.labels(*self._values)


class RequestTimes:
    """When the things of one HTTP request happened."""

    def __init__(self, metrics: Metrics) -> None:
        self.arrival_s = time.monotonic()
        self._metrics = metrics
        self._started_s = self._first_s = self._last_s = 0.0
        self._num_tokens = 0
        self._seen: set[str] = set()
        self._reasons: list[str] = []

    def start(self, begin_s: float) -> None:
        """It has blocks since a step that began then."""
        if not self._started_s:
            self._started_s = max(begin_s, self.arrival_s)
            self._metrics.observe("request_queue_time_seconds", self._started_s - self.arrival_s)

    def take_first(self) -> None:
        """It has its first token."""
        self._first_s = time.monotonic()
        self._metrics.observe("time_to_first_token_seconds", self._first_s - self.arrival_s)

    def take(self, output: RequestOutput) -> None:
        """It has an output."""
        now_s = time.monotonic()
        if not self._first_s:
            self.take_first()
        elif self._last_s:
            self._metrics.observe(_BETWEEN, now_s - self._last_s)
        if output.request_id not in self._seen:
            self._seen.add(output.request_id)
            self._metrics.count_first(output)
        new = sum(len(sample.delta_token_ids) for sample in output.samples or (output,))
        if output.finished and not self._num_tokens:  # the only output, of the whole answer
            new = sum(len(sample.token_ids) for sample in output.samples or (output,))
        self._num_tokens += new
        self._metrics.count_tokens(new)
        self._last_s = now_s
        if output.finish_reason is not None:
            self._reasons.append(output.finish_reason)

    def end(self) -> None:
        """Nothing more is done for it."""
        for reason in self._reasons or ["abort"]:
            self._metrics.count_end(reason)
        if not self._first_s:
            return
        started_s = self._started_s or self.arrival_s
        times = {
            "e2e_request_latency_seconds": time.monotonic() - self.arrival_s,
            "request_prefill_time_seconds": self._first_s - started_s,
            "request_decode_time_seconds": self._last_s - self._first_s,
            "request_inference_time_seconds": self._last_s - started_s,
            "request_generation_tokens": self._num_tokens,
        }
        if self._num_tokens > 1:
            mean_s = (self._last_s - self._first_s) / (self._num_tokens - 1)
            times["request_time_per_output_token_seconds"] = mean_s
        for name, value in times.items():
            self._metrics.observe(name, value)


class _OlderName(Collector):
    """Tells the time between tokens by the name that older dashboards look for, too."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def collect(self) -> Iterator[Metric]:
        """The same values."""
        for metric in self._histogram.collect():
            older = Metric(_OLDER_BETWEEN, metric.documentation, metric.type)
            older.samples = [
                sample._replace(name=sample.name.replace(metric.name, _OLDER_BETWEEN))
                for sample in metric.samples
            ]
            yield older


class _EngineCollector(Collector):
    """Reads the engine's counts when the page is asked for."""

    def __init__(
        self,
        read_state: Callable[[], EngineState],
        num_open: Callable[[], int],
        values: tuple[str, str],
    ) -> None:
        self._read_state = read_state
        self._num_open = num_open
        self._values = values

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are."""
        state = self._read_state()
        used = 1 - state.num_free_blocks / max(state.num_blocks, 1)
        gauges = {
            "vllm:num_requests_running": ("answers that are computed", state.num_running),
            "vllm:num_requests_waiting": ("answers that wait for it", state.num_waiting),
            "vllm:kv_cache_usage_perc": ("used share of the KV cache, 1 is all", used),
            "vllm:gpu_cache_usage_perc": ("the same, by its older name", used),
            "glm:kv_cache_free_blocks": ("free KV-cache blocks", state.num_free_blocks),
            "glm:open_requests": ("requests that are not finished", self._num_open()),
            "glm:step_age_seconds": ("time since the last step", time.monotonic() - state.step_s),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            gauge.add_metric(self._values, value)
            yield gauge
        for name, (text, attribute) in _COUNTERS.items():
            yield self._count(f"vllm:{name}", text, getattr(state, attribute))
        yield self._count("glm:steps", "batches that were run", state.num_steps)

    def _count(self, name: str, text: str, value: int) -> CounterMetricFamily:
        counter = CounterMetricFamily(name, text, labels=_LABELS)
        counter.add_metric(self._values, value)
        return counter
