"""How fast are the answers of a served checkpoint, with 1 to 64 clients at once, beside others?

    python scripts/bench/bench_serving.py --checkpoint /tmp/slices/9b4 \\
        --llama_cpp_server /tmp/peers/llama/bin/llama-server \\
        --llama_cpp_models /tmp/peers/gguf/9b4 --vllm_python /tmp/peers/vllm/bin/python \\
        [--formats bf16,int8] [--clients 1,4,16,64]

The servers of a format are started together and stopped at the end; those without their options are
left out. For each number of clients they have one turn each, in every round. Each gets the same
prompts of token ids, 200 to 1,000 long, and answers of 64 to 256 tokens, greedy and without an end
of text; each number of clients and round has prompts of its own, so that no prefix cache helps.
Printed are tokens/s of all clients together, time to first token, time of a token behind it (one
number for each answer) and between events (p50 and p99, ms), requests that failed, which count
nowhere else, and answers that were cut after --most_s, whose tokens count.

`--parts own` measures ours alone: what HTTP, JSON and detokenizing take with as many streams as
clients, and the time to first token with a prompt of 1,000 tokens of which 900 are shared, with and
without prefix cache.
"""

import argparse
import json
import os
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from load_clients import HEAD, Result, make_requests, run_clients
from machine import describe_machine, positive, run_main
from peer_servers import (
    LlamaCppServer,
    OurServer,
    Place,
    Running,
    VllmServer,
    processor_s_of_threads,
)

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import GlmError
from mindformers_glm.tokenizer import load_tokenizer

Server: TypeAlias = "OurServer | LlamaCppServer | VllmServer"
PROMPT_LENS, NEW_LENS = (200, 1_000), (64, 256)
# Format -> our setting, llama.cpp's name of it, whether vLLM has it.
FORMATS: dict[str, tuple[tuple[str, ...], str, bool]] = {
    "bf16": ((), "BF16", True),
    "int8": (("quantization=w8a8_dynamic",), "Q8_0", False),
}
_SHARED_LEN, _SHARED = 1_000, 900


def list_servers(group: str, options: argparse.Namespace) -> list[Server]:
    """The servers of a format that are here, ours first."""
    settings, gguf, has_vllm = FORMATS[group]
    name = " ".join(["ours", group, *options.settings])
    found: list[Server] = [
        OurServer(name, options.checkpoint, (*settings, *options.settings)),
    ]
    if options.llama_cpp_server:
        path = f"{options.llama_cpp_models}/{gguf}.gguf"
        found.append(LlamaCppServer(f"llama.cpp {gguf}", options.llama_cpp_server, path))
    if options.vllm_python and has_vllm:
        found.append(VllmServer(f"vLLM {group}", options.vllm_python, options.checkpoint))
    return found


def compare(
    servers: Sequence[Server], place: Place, options: argparse.Namespace, vocab_size: int
) -> list[dict[str, Any]]:
    """Start the servers, let them take turns, print a table for each number of clients.

    Another engine's server that does not start is told, noted and left out.
    """
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        running = [stack.enter_context(servers[0].start(place))]
        for server in servers[1:]:
            try:
                running.append(stack.enter_context(server.start(place)))
            except GlmError as problem:
                print(f"left out: {problem}", flush=True)
                found.append({"server": server.name, "problem": str(problem), "rounds": []})
        for count in options.clients:
            results = take_turns(running, count, options, vocab_size)
            print_table(count, results)
            found += [
                {"server": name, "clients": count, "rounds": [one.as_json() for one in rounds]}
                for name, rounds in results.items()
            ]
    return found


def take_turns(
    running: Sequence[Running], count: int, options: argparse.Namespace, vocab_size: int
) -> dict[str, list[Result]]:
    """Each server's runs with `count` clients, one in every round."""
    results: dict[str, list[Result]] = {one.name: [] for one in running}
    models = {one.name: name_of_model(one.url) for one in running}
    for one in running:
        warm_up = make_requests(-count, count, vocab_size, (8, 8), (4, 4))
        run_clients(one.url, models[one.name], warm_up, count)
    for number in range(options.rounds):
        seed = 1_000 * number + count
        total = count * options.requests_per_client
        requests = make_requests(seed, total, vocab_size, PROMPT_LENS, NEW_LENS)
        for one in running:
            result = run_clients(one.url, models[one.name], requests, count, most_s=options.most_s)
            results[one.name].append(result)
    return results


def name_of_model(url: str) -> str:
    """What the server calls its model."""
    with urllib.request.urlopen(f"{url}/models", timeout=30) as response:
        return str(json.load(response)["data"][0]["id"])


def print_table(count: int, results: dict[str, list[Result]]) -> None:
    """Print a row for each server and round, and how much faster ours, the first, is."""
    print(f"\nclients: {count}\n")
    print("| server | answers | " + " | ".join(HEAD) + " | ours is faster by |")
    print("|" + "---|" * (len(HEAD) + 3))
    ours, *_ = results.values()
    for name, rounds in results.items():
        for own, result in zip(ours, rounds, strict=True):
            is_other = result is not own and result.tokens_per_s
            ratio = f"{own.tokens_per_s / result.tokens_per_s:.2f}" if is_other else ""
            cells = [name, str(result.num_requests), *result.row(), ratio]
            print("| " + " | ".join(cells) + " |", flush=True)


def measure_own(place: Place, options: argparse.Namespace, vocab_size: int) -> dict[str, Any]:
    """Print what the server itself takes, and what the prefix cache is worth; returns all of it."""
    ours = OurServer("ours", options.checkpoint, tuple(options.settings))
    most = max(options.clients)
    with ours.start(place) as one:
        requests = make_requests(5, most, vocab_size, (32, 32), (128, 128))
        run_clients(one.url, "model", requests, most)
        before = processor_s_of_threads(one.pid)
        result = run_clients(one.url, "model", requests, most)
        shares = shares_of_server(before, processor_s_of_threads(one.pid), one.pid, place.threads)
        text_s = seconds_to_detokenize(options.checkpoint, result.num_new)
        print(
            f"\n{most} streams, {result.num_new} tokens in {result.wall_s:.1f} s, "
            f"{result.num_failed} failed. Event loop (HTTP, JSON) {shares['loop_s']:.2f} s, "
            f"{shares['loop_s'] / result.wall_s:.1%} of the time; detokenizing {text_s:.2f} s, "
            f"{text_s / result.wall_s:.1%}.\nBeside the processor time of the rest over "
            f"{place.threads} threads, which another program's load does not stretch: "
            f"{(shares['loop_s'] + text_s) / shares['rest_s']:.1%} together",
            flush=True,
        )
        cached_ms = first_tokens_with_a_shared_prompt(one.url, vocab_size)
    settings = (*options.settings, "enable_prefix_caching=False")
    with OurServer("ours", options.checkpoint, settings).start(place) as one:
        plain_ms = first_tokens_with_a_shared_prompt(one.url, vocab_size)
    print(
        f"first token of a prompt that shares {_SHARED} of {_SHARED_LEN}: {cached_ms:.0f} ms, "
        f"without prefix cache {plain_ms:.0f} ms: {cached_ms / plain_ms:.2f}"
    )
    times = {**shares, "detokenizing_s": text_s, "cached_ms": cached_ms, "plain_ms": plain_ms}
    return {"server": "ours alone", "clients": most, "rounds": [result.as_json()], **times}


def shares_of_server(
    before: dict[int, tuple[str, float]],
    after: dict[int, tuple[str, float]],
    pid: int,
    num_threads: int,
) -> dict[str, float]:
    """Processor time of the first thread, which is the event loop, and of the rest by threads."""
    taken = {key: end - before.get(key, ("", 0.0))[1] for key, (_, end) in after.items()}
    loop_s = taken.pop(pid)
    return {"loop_s": loop_s, "rest_s": sum(taken.values()) / num_threads}


def seconds_to_detokenize(folder: str, count: int) -> float:
    """Processor time of detokenizing so many tokens, as the engine's thread does it."""
    tokenizer = load_tokenizer(folder)
    ids = np.random.default_rng(0).integers(10, tokenizer.num_token_ids // 2, count).tolist()
    detokenizer = tokenizer.new_detokenizer()
    begin = time.process_time()
    for token_id in ids:
        detokenizer.feed(token_id)
    return time.process_time() - begin


def first_tokens_with_a_shared_prompt(url: str, vocab_size: int) -> float:
    """Median time to first token of 8 prompts with one beginning, one at a time, ms."""
    lens = (_SHARED_LEN, _SHARED_LEN)
    requests = make_requests(77, 9, vocab_size, lens, (4, 4), num_shared=_SHARED)
    run_clients(url, "model", requests[:1], 1)
    return 1e3 * float(np.median(run_clients(url, "model", requests[1:], 1).first_s))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="folder with a tokenizer.json")
    parser.add_argument("--settings", nargs="*", default=[], metavar="NAME=VALUE", help="of ours")
    parser.add_argument("--parts", nargs="+", choices=["peers", "own"], default=["peers", "own"])
    parser.add_argument("--formats", default=list(FORMATS), type=_formats, metavar="bf16,int8")
    parser.add_argument("--clients", default=[1, 4, 16, 64], type=parse_counts, metavar="1,4,16,64")
    parser.add_argument("--requests_per_client", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=1)
    parser.add_argument("--most_s", type=positive, default=60, help="of a server's turn")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--llama_cpp_server", metavar="BINARY", help="of build_llama_cpp.sh")
    parser.add_argument("--llama_cpp_models", metavar="DIR", help="folder of make_gguf.py")
    parser.add_argument("--vllm_python", help="interpreter of build_vllm.sh")
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    options = parser.parse_args(arguments)
    if bool(options.llama_cpp_server) != bool(options.llama_cpp_models):
        parser.error("--llama_cpp_server and --llama_cpp_models need each other")
    if unclear := [setting for setting in options.settings if "=" not in setting]:
        parser.error(f"expected NAME=VALUE after --settings, got {unclear[0]}")
    return options


def write_report(path: Path | None, report: list[dict[str, Any]]) -> None:
    """Write what was measured so far, if a file is named."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1))


def parse_counts(text: str) -> list[int]:
    """Numbers of clients: "1,4,16"."""
    return [positive(part) for part in text.split(",")]


def _formats(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(f"takes {', '.join(FORMATS)}, got {name!r}")
    return names


def main() -> int:
    """Print the tables; exit code 1 if a request failed or a server did not start."""
    options = parse_arguments()
    vocab_size = GlmConfig.from_hf(options.checkpoint).vocab_size
    longest = PROMPT_LENS[1] + NEW_LENS[1] + 8
    place = Place(options.threads, max(options.clients), longest)
    print(describe_machine())
    print(
        f"{options.checkpoint}, {place.threads} threads; prompts {PROMPT_LENS}, answers "
        f"{NEW_LENS}, {options.requests_per_client} a client, {options.rounds} rounds, at most "
        f"{options.most_s} s a turn"
    )
    report: list[dict[str, Any]] = []
    for group in options.formats if "peers" in options.parts else ():
        print(f"\n## {group}", flush=True)
        report += compare(list_servers(group, options), place, options, vocab_size)
        write_report(options.json, report)  # after each: a later one may fail
    if "own" in options.parts:
        report.append(measure_own(place, options, vocab_size))
        write_report(options.json, report)
    is_left_out = any("problem" in entry for entry in report)
    return int(is_left_out or any(run["num_failed"] for e in report for run in e["rounds"]))


if __name__ == "__main__":
    run_main(main)
