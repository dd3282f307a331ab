"""Clients of an OpenAI server that all ask at once, and what they saw: the clocks of bench_serving.

One thread and one connection for each client; a request is streamed by /v1/completions from token
ids, so that every server gets the same prompt whatever its tokenizer is.
"""

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class LoadRequest:
    """A prompt of token ids, and how many tokens its answer has."""

    prompt: list[int]
    num_new: int


@dataclass
class Seen:
    """What the client of one request saw, in seconds from the beginning of the run.

    Attributes:
        sent_s: when the request was sent.
        event_s: of each event that brought text.
        num_new: tokens of the answer as the server counts them; of a cut one, its events.
        error: why there is no whole answer; empty: there is.
        is_cut: the run's time was over before its end.
    """

    sent_s: float = 0.0
    event_s: list[float] = field(default_factory=list)
    num_new: int = 0
    error: str = ""
    is_cut: bool = False


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        num_cut: answers that were not at their end, or not begun, when the time was over.
        num_new, num_prompt: tokens of all answers, and of their prompts.
        wall_s: from the first request to the last token.
        first_s: time to first token of each request.
        per_token_s: of each request that came to its end, the time of a token behind the first.
        between_s: the pauses between a client's events. A server that sends several tokens in one
            event has fewer and longer ones.
    """

    num_requests: int
    num_failed: int
    num_cut: int
    num_prompt: int
    num_new: int
    wall_s: float
    first_s: np.ndarray
    per_token_s: np.ndarray
    between_s: np.ndarray

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all clients together."""
        return self.num_new / self.wall_s if self.wall_s else 0.0

    def row(self) -> list[str]:
        """Cells for HEAD, times in ms."""
        cells = [f"{self.tokens_per_s:.1f}"]
        for values in (self.first_s, self.per_token_s, self.between_s):
            for percent in (50, 99):
                found = f"{1e3 * np.percentile(values, percent):.1f}" if len(values) else "-"
                cells.append(found)
        return [*cells, str(self.num_failed), str(self.num_cut)]

    def as_json(self) -> dict[str, object]:
        """Everything, for a file."""
        arrays = {"first_s", "per_token_s", "between_s"}
        return {
            name: value.tolist() if name in arrays else value for name, value in vars(self).items()
        }


HEAD = [
    *("tokens/s", "first p50", "first p99", "a token p50", "a token p99"),
    *("between p50", "between p99", "failed", "cut"),
]


def make_requests(
    seed: int,
    count: int,
    vocab_size: int,
    prompt_lens: tuple[int, int],
    new_lens: tuple[int, int],
    num_shared: int = 0,
) -> list[LoadRequest]:
    """Random prompts whose lengths are drawn evenly from the ranges.

    Args:
        num_shared: leading tokens that are the same in all prompts, of their length.
    """
    rng = random.Random(f"load {seed}")
    # The first ids of all vocabularies of the family are text; special ones come last.
    ids = range(10, vocab_size // 2)
    shared = rng.choices(ids, k=num_shared)
    requests = []
    for _ in range(count):
        length = max(rng.randint(*prompt_lens), num_shared + 1)
        prompt = shared + rng.choices(ids, k=length - num_shared)
        requests.append(LoadRequest(prompt, rng.randint(*new_lens)))
    return requests


def run_clients(
    url: str,
    model: str,
    requests: list[LoadRequest],
    num_clients: int,
    api_key: str = "",
    most_s: float = TIMEOUT_S,
) -> Result:
    """Let clients work through the requests; each sends its next one when it has its answer.

    Args:
        most_s: after which the clients hang up. What has come by then counts.
    """
    waiting = list(enumerate(requests))[::-1]
    seen = [Seen() for _ in requests]
    lock = threading.Lock()
    is_over = threading.Event()
    connections = [_Connection(url, api_key) for _ in range(num_clients)]
    begin = time.perf_counter()

    def work(connection: "_Connection") -> None:
        while True:
            with lock:
                if not waiting or is_over.is_set():
                    break
                place, request = waiting.pop()
            seen[place].sent_s = time.perf_counter() - begin
            try:
                connection.ask(model, request, seen[place], begin)
            except (OSError, ValueError, http.client.HTTPException) as problem:
                connection.close()
                if is_over.is_set():
                    seen[place].is_cut = True
                else:
                    seen[place].error = str(problem) or type(problem).__name__
        connection.close()

    def hang_up() -> None:
        is_over.set()
        for connection in connections:
            connection.cut()

    threads = [threading.Thread(target=work, args=(one,), daemon=True) for one in connections]
    for thread in threads:
        thread.start()
    timer = threading.Timer(most_s, hang_up)
    timer.daemon = True
    timer.start()
    for thread in threads:
        thread.join()
    timer.cancel()
    for place, _ in waiting:  # nobody has come to them
        seen[place].is_cut = True
    return summarize(requests, seen)


def summarize(requests: list[LoadRequest], seen: list[Seen]) -> Result:
    """Put together what the clients saw; of failed requests nothing but their number counts."""
    good = [(request, one) for request, one in zip(requests, seen, strict=True) if not one.error]
    last_s = max((one.event_s[-1] for _, one in good if one.event_s), default=0.0)
    first_sent_s = min((one.sent_s for _, one in good), default=0.0)
    pauses = [np.diff(one.event_s) for _, one in good if one.event_s]
    per_token_s = [
        (one.event_s[-1] - one.event_s[0]) / (one.num_new - 1)
        for _, one in good
        if not one.is_cut and one.event_s and one.num_new > 1
    ]
    return Result(
        len(requests),
        len(requests) - len(good),
        sum(one.is_cut for one in seen),
        sum(len(request.prompt) for request, one in good if one.event_s),
        sum(len(one.event_s) if one.is_cut else one.num_new for _, one in good),
        last_s - first_sent_s,
        np.array([one.event_s[0] - one.sent_s for _, one in good if one.event_s]),
        np.array(per_token_s),
        np.concatenate(pauses) if pauses else np.empty(0),
    )


class _Connection:
    """One client's connection, kept for its requests."""

    def __init__(self, url: str, api_key: str) -> None:
        self._address = urlsplit(url)
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._connection: http.client.HTTPConnection | None = None
        self._is_cut = False

    def ask(self, model: str, request: LoadRequest, seen: Seen, begin: float) -> None:
        """Stream one answer.

        Raises:
            ValueError: it is an error, or ends before its last token.
        """
        if self._connection is None:
            host, port = self._address.hostname or "", self._address.port
            self._connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        body = {
            "model": model,
            "prompt": request.prompt,
            "max_tokens": request.num_new,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        path = f"{self._address.path.rstrip('/')}/completions"
        self._connection.request("POST", path, json.dumps(body), self._headers)
        response = self._connection.getresponse()
        if response.status != 200:
            raise ValueError(f"status {response.status}: {response.read(300)!r}")
        is_done = False
        for line in response:
            if self._is_cut:
                raise ValueError("the time is over")
            if not line.startswith(b"data: "):
                continue
            now_s = time.perf_counter() - begin
            is_done = line.startswith(b"data: [DONE]")
            if not is_done:
                read_event(json.loads(line[6:]), seen, now_s)
        if not is_done:
            raise ValueError("the stream ends before [DONE]")
        if not seen.num_new:  # a server that tells no usage: one token an event
            seen.num_new = len(seen.event_s)
        if seen.num_new != request.num_new:
            raise ValueError(f"{seen.num_new} tokens instead of {request.num_new}")

    def cut(self) -> None:
        """From another thread: end what is being read, which then fails."""
        self._is_cut = True
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it; the next request opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def read_event(event: dict[str, object], seen: Seen, now_s: float) -> None:
    """Take note of an event of a stream.

    Raises:
        ValueError: it is an error.
    """
    if event.get("error"):
        raise ValueError(f"an error in the stream: {event['error']}")
    usage, choices = event.get("usage"), event.get("choices")
    if isinstance(usage, dict):
        seen.num_new = int(usage["completion_tokens"])
    if isinstance(choices, list) and any(choice.get("text") for choice in choices):
        seen.event_s.append(now_s)
