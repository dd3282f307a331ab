"""Does a server keep its promises to good clients while others do the worst they can?

    python scripts/fuzz/fuzz_server.py [--checkpoint DIR] [--minutes M] [--clients 64] [--ranks N]
        [--burst 5000] [--settings NAME=VALUE ...] [--seed S] [--parts storm,burst,disk,rank,end]

storm: so many clients at once for M minutes: good ones, whose answers must be what the server said
    when it was alone with each (float32, so that tokens can be compared), beside clients that leave
    in the middle, read slowly, send 100 MB, nested JSON, bytes that are no UTF-8, half a request.
    Memory is told each minute, the median of 30 looks: at the end it must be within 2 % of that at
    minute 5.
burst: so many requests at once: each gets its answer, or 429 with Retry-After.
disk: a server whose log goes to a full disk (/dev/full) answers as ever.
rank: of N ranks one is killed: every client hears of it within seconds, the exit code is 1.
end: SIGTERM under load: every answer comes to its end, the exit code is 0.

After storm and burst all KV-cache blocks must be free, as /metrics counts them. Errors must have
OpenAI's form. Ends with 1 where something is not so.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median

from raw_http import EAGER, Answer, Habit, ask, exchange, write_post
from server_process import REPO, Server, serve
from server_requests import CHAT, COMPLETIONS, KnownRequest, Said, make_requests, read_answer

MINI = REPO / "mindformers_glm" / "assets" / "glm4-mini"
PARTS = ("storm", "burst", "disk", "rank", "end")
_FLOAT32 = (
    *("--model.model_config.params_dtype", "float32"),
    *("--model.model_config.compute_dtype", "float32"),
    *("--kv_cache_dtype", "float32"),
)
_NUM_KNOWN = 45
_TIGHT, _MINUTE_OF_REFERENCE = 0.02, 5
_LARGE_PIECE, _NUM_LARGE = b"x" * 2**20, 100
_SAMPLE_S = 2.0
_NEWS_S = 20.0  # in which clients hear of a rank that has died


@dataclass
class Found:
    """What was seen: how often each thing was done, and what was wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def check(self, is_right: bool, fault: str) -> None:
        """Note a fault, unless it is right."""
        if not is_right:
            self.faults.append(fault)
            print(f"FAULT {fault}"[:600], flush=True)


class Storm:
    """Clients of one server that behave as they are drawn to.

    Args:
        expected: what the server says to each request of `known`.
    """

    def __init__(
        self, port: int, known: list[KnownRequest], expected: list[Said], found: Found, seed: int
    ) -> None:
        self._port, self._known, self._expected = port, known, expected
        self._found = found
        self._rng = random.Random(f"storm {seed}")
        self._kinds: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "good": (10, self._be_good),
            "slow": (2, self._be_slow),
            "leaving": (6, self._leave),
            "deaf": (2, self._be_deaf),
            "half": (2, self._send_half),
            "nested": (2, self._send_nested),
            "no UTF-8": (2, self._send_bytes),
            "wrong": (2, self._send_wrong),
            "large": (1, self._send_large),
        }

    async def client(self, end_s: float) -> None:
        """Behave in one way after the other until a time."""
        names, weights = list(self._kinds), [weight for weight, _ in self._kinds.values()]
        while time.monotonic() < end_s:
            name = self._rng.choices(names, weights)[0]
            self._found.counts[name] += 1
            try:
                await self._kinds[name][1]()
            except (OSError, asyncio.TimeoutError, ValueError) as problem:
                self._found.check(False, f"{name}: {type(problem).__name__} {problem}")

    async def _be_good(self, habit: Habit = EAGER) -> None:
        place = self._rng.randrange(len(self._known))
        path, body = self._known[place]
        is_stream = self._rng.random() < 0.5 or bool(habit.pause_s)
        answer = await ask(self._port, path, body | {"stream": is_stream}, habit)
        if answer.status == 429:
            self._found.counts["429"] += 1
            self._found.check("retry-after" in answer.headers, "429 without retry-after")
            await asyncio.sleep(0.2)
            return
        said, expected = read_answer(answer, is_stream=is_stream), self._expected[place]
        self._found.check(
            said == expected, f"request {place} {path} says {said} instead of {expected}"
        )

    async def _be_slow(self) -> None:
        await self._be_good(Habit(pause_s=self._rng.uniform(0.001, 0.02), piece=256))

    async def _leave(self) -> None:
        path, body = self._rng.choice(self._known)
        long = {"max_tokens": 400, "stream": self._rng.random() < 0.7}
        habit = Habit(leave_after=self._rng.randint(0, 6_000), is_rude=self._rng.random() < 0.5)
        await ask(self._port, path, body | long, habit)

    async def _be_deaf(self) -> None:
        path, body = self._rng.choice(self._known)
        habit = Habit(pause_s=self._rng.uniform(0.1, 2), piece=64, leave_after=300, is_rude=True)
        await ask(self._port, path, body | {"stream": True, "max_tokens": 400}, habit)

    async def _send_half(self) -> None:
        sent = write_post(CHAT, b'{"messages": [', length=1_000)
        cut = self._rng.randint(1, len(sent))
        await exchange(self._port, sent[:cut], Habit(leave_after=0, is_rude=cut % 2 == 0))

    async def _send_nested(self) -> None:
        depth = self._rng.choice((129, 5_000, 100_000))
        pair = self._rng.choice((b"[]", (b'{"a":', b"}")))
        body = pair[:1] * depth if isinstance(pair, bytes) else pair[0] * depth
        body = b'{"messages": ' + bytes(body) + b"}"
        self._must_refuse(await exchange(self._port, write_post(CHAT, body)), (400,), "nested")

    async def _send_bytes(self) -> None:
        body = b'{"prompt": "' + bytes(self._rng.choices(range(128, 256), k=50)) + b'"}'
        sent = write_post(COMPLETIONS, body)
        self._must_refuse(await exchange(self._port, sent), (400,), "no UTF-8")

    async def _send_wrong(self) -> None:
        wrong = self._rng.choice(
            (
                {"messages": []},
                {"messages": [{"role": "user", "content": "x"}], "temperature": "hot"},
                {"messages": [{"role": "user", "content": "x" * 400_000}]},
                {"messages": [{"role": "nobody", "content": 5}]},
                {"messages": [{"role": "user", "content": "x"}], "guided_regex": "("},
                {"messages": [{"role": "user", "content": "x"}], "n": 10**9},
            )
        )
        self._must_refuse(await ask(self._port, CHAT, wrong), (400,), str(wrong)[:80])

    async def _send_large(self) -> None:
        head = write_post(CHAT, b"", length=_NUM_LARGE * len(_LARGE_PIECE))
        sent = [head, *[_LARGE_PIECE] * _NUM_LARGE]
        answer = await exchange(self._port, b"".join(sent[:2]), copies=_NUM_LARGE)
        # Whoever is still sending may be cut before the answer is read.
        if answer.status:
            self._must_refuse(answer, (400, 413), "100 MB")

    def _must_refuse(self, answer: Answer, statuses: tuple[int, ...], what: str) -> None:
        is_right = answer.status in statuses and bool(answer.error)
        self._found.check(is_right, f"{what}: {answer.status} {answer.body[:200]!r}")


async def learn_answers(port: int, known: list[KnownRequest], found: Found) -> list[Said]:
    """What the server says to each request while it is alone; streamed it says the same."""
    said = []
    for place, (path, body) in enumerate(known):
        whole = read_answer(await ask(port, path, body), is_stream=False)
        streamed = read_answer(await ask(port, path, body | {"stream": True}), is_stream=True)
        found.check(whole == streamed, f"request {place}: {streamed} streamed, {whole} whole")
        said.append(whole)
    return said


async def check_blocks(server: Server, num_free: float, found: Found, when: str) -> None:
    """All KV-cache blocks must be free again."""
    counts = await server.idle_counts()
    found.check(
        counts["glm:kv_cache_free_blocks"] == num_free and not counts["glm:open_requests"],
        f"after {when} {counts['glm:kv_cache_free_blocks']:g} of {num_free:g} blocks are free, "
        f"{counts['glm:open_requests']:g} requests open",
    )


async def run_storm(
    server: Server, storm: Storm, options: argparse.Namespace, found: Found
) -> None:
    """Let the clients loose for the time asked for, and tell of the memory."""
    begin_s = time.monotonic()
    end_s = begin_s + 60 * options.minutes
    clients = [asyncio.ensure_future(storm.client(end_s)) for _ in range(options.clients)]
    everyone = asyncio.gather(*clients)
    samples: list[int] = []
    by_minute: list[float] = []
    while not everyone.done():
        await asyncio.wait([everyone], timeout=_SAMPLE_S)
        samples.append(server.memory_bytes())
        if time.monotonic() < min(begin_s + 60 * (len(by_minute) + 1), end_s):
            continue
        by_minute.append(median(samples))  # one sample may see a body of many megabytes
        print(
            f"minute {len(by_minute)}: {by_minute[-1] / 2**20:.1f} MiB (most "
            f"{max(samples) / 2**20:.1f}), {sum(found.counts.values())} requests, "
            f"{len(found.faults)} faults",
            flush=True,
        )
        samples.clear()
        if time.monotonic() >= end_s:
            break
    await everyone
    print(", ".join(f"{name} {count}" for name, count in sorted(found.counts.items())))
    if len(by_minute) > _MINUTE_OF_REFERENCE:
        reference, last = by_minute[_MINUTE_OF_REFERENCE - 1], by_minute[-1]
        growth = last / reference - 1
        print(f"memory grew by {100 * growth:.2f} % from minute {_MINUTE_OF_REFERENCE} on")
        found.check(growth <= _TIGHT, f"memory grew by {100 * growth:.2f} %")


async def run_burst(server: Server, count: int, found: Found) -> None:
    """Many requests at once."""
    body = {"prompt": [11, 12, 13], "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    expected = read_answer(await ask(server.port, COMPLETIONS, body), is_stream=False)
    begin_s = time.monotonic()
    answers = await asyncio.gather(
        *(ask(server.port, COMPLETIONS, body) for _ in range(count)), return_exceptions=True
    )
    statuses: Counter[str] = Counter()
    for answer in answers:
        if isinstance(answer, BaseException):
            statuses[type(answer).__name__] += 1
            continue
        statuses[str(answer.status)] += 1
        if answer.status == 200:
            said = read_answer(answer, is_stream=False)
            found.check(said == expected, f"burst: {said} instead of {expected}")
        else:
            is_right = answer.status == 429 and answer.error and "retry-after" in answer.headers
            found.check(bool(is_right), f"burst: {answer.status} {answer.body[:200]!r}")
    print(f"burst of {count} in {time.monotonic() - begin_s:.1f} s: {dict(statuses)}")
    found.check(set(statuses) <= {"200", "429"}, f"burst: {dict(statuses)}")


async def run_end(server: Server, options: argparse.Namespace, found: Found) -> None:
    """SIGTERM while answers are written."""
    body = {"prompt": [11, 12, 13], "max_tokens": 60, "ignore_eos": True, "stream": True}
    asking = [
        asyncio.ensure_future(ask(server.port, COMPLETIONS, body)) for _ in range(options.clients)
    ]
    while (await server.counts())["glm:open_requests"] < options.clients:
        await asyncio.sleep(0.05)
    server.process.terminate()
    for answer in await asyncio.gather(*asking):
        try:
            read_answer(answer, is_stream=True)
        except ValueError as problem:
            found.check(False, f"end: {problem}")
    code = await asyncio.to_thread(server.wait)
    found.check(code == 0, f"end: exit code {code}: {server.text()[-500:]}")


async def run_rank(server: Server, options: argparse.Namespace, found: Found) -> None:
    """Kill the last rank while answers are written."""
    body = {"prompt": [11, 12, 13], "max_tokens": 1_500, "ignore_eos": True, "stream": True}
    asking = [asyncio.ensure_future(ask(server.port, COMPLETIONS, body)) for _ in range(8)]
    while (await server.counts())["vllm:num_requests_running"] < len(asking):
        await asyncio.sleep(0.05)
    server.find_rank(options.ranks - 1).kill()
    begin_s = time.monotonic()
    for answer in await asyncio.gather(*asking):
        is_told = b'"error"' in answer.body and answer.is_whole
        found.check(is_told, f"rank: {answer.status}, {answer.body[-200:]!r}")
    taken_s = time.monotonic() - begin_s
    code = await asyncio.to_thread(server.wait)
    print(f"rank: clients heard of it after {taken_s:.1f} s, exit code {code}")
    found.check(taken_s < _NEWS_S, f"rank: clients heard of it after {taken_s:.1f} s")
    found.check(code == 1, f"rank: exit code {code}: {server.text()[-500:]}")


def server_options(options: argparse.Namespace, *, is_alone: bool = False) -> list[str]:
    """What the server is started with; `is_alone`: in one process."""
    given = [*_FLOAT32, "--max_queued_requests", "256"]
    if options.ranks > 1 and not is_alone:
        given += ["--tensor-parallel-size", str(options.ranks)]
    for setting in options.settings:
        name, _, value = setting.partition("=")
        given += [f"--{name}", value]
    return given


def run(options: argparse.Namespace) -> Found:
    """Run the parts that were asked for."""
    found = Found()
    given = server_options(options)
    if {"storm", "burst", "end"} & set(options.parts):
        with serve(options.checkpoint, *given) as server:
            asyncio.run(_run_on(server, options, found))
    if "disk" in options.parts:
        # A launcher ends its job where it cannot keep the output: one process goes on.
        alone = server_options(options, is_alone=True)
        with serve(options.checkpoint, *alone, log_device="/dev/full") as server:
            asyncio.run(run_burst(server, 50, found))
            code = server.end()
            found.check(code == 0, f"disk: exit code {code}")
    if "rank" in options.parts and options.ranks > 1:
        with serve(options.checkpoint, *given) as server:
            asyncio.run(run_rank(server, options, found))
    return found


async def _run_on(server: Server, options: argparse.Namespace, found: Found) -> None:
    known = make_requests(options.seed, _NUM_KNOWN)
    num_free = (await server.idle_counts())["glm:kv_cache_free_blocks"]
    if "burst" in options.parts:
        await run_burst(server, options.burst, found)
        await check_blocks(server, num_free, found, "the burst")
    if "storm" in options.parts:
        expected = await learn_answers(server.port, known, found)
        storm = Storm(server.port, known, expected, found, options.seed)
        await run_storm(server, storm, options, found)
        await check_blocks(server, num_free, found, "the storm")
        found.check("Traceback" not in server.text(), "the server has written a traceback")
    if "end" in options.parts:
        await run_end(server, options, found)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", default=str(MINI))
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--burst", type=int, default=5_000)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--parts", type=_parts, default=PARTS)
    return parser.parse_args(arguments)


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; {', '.join(PARTS)}")
    return parts


def main(arguments: list[str] | None = None) -> int:
    """Run it and return the exit code."""
    found = run(parse_arguments(arguments))
    print(f"{len(found.faults)} faults")
    return int(bool(found.faults))


if __name__ == "__main__":
    sys.exit(main())
