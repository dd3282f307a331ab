"""How fast are the answers of a served checkpoint, with 1 to 64 clients at once?

    python scripts/bench/bench_serving.py --checkpoint /tmp/slices/9b4 [--settings NAME=VALUE] \\
        [--llama_cpp_server build/bin/llama-server --gguf 9b4-bf16.gguf] \\
        [--vllm_url http://127.0.0.1:8001/v1] [--clients 1,4,16,64] [--requests_per_client 2]

Servers run one after another on this machine (vLLM's is started by the reader, and should be alone
then). Each gets the same prompts of token ids, 200 to 1,000 long, and answers of 64 to 256 tokens,
greedy and without an end of text; each number of clients has prompts of its own, so that no prefix
cache helps. Printed are tokens/s of all clients together, time to first token and time between
tokens (p50, p99, ms), and requests that failed, which count nowhere else.

Then, for ours: what HTTP, JSON and detokenizing take at 64 streams, as processor time of the thread
of the event loop and of detokenizing so many tokens, to the time of the run; and the time to first
token with a prompt of 1,000 tokens of which 900 are shared, with and without prefix cache.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from load_clients import Result, make_requests, run_clients
from machine import REPO, describe_machine, positive, run_main

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import GlmError
from mindformers_glm.tokenizer import load_tokenizer

PROMPT_LENS, NEW_LENS = (200, 1_000), (64, 256)
_START_S = 900.0
_HEAD = ["tokens/s", "first p50", "first p99", "between p50", "between p99", "failed"]


@contextmanager
def serve_ours(folder: str, settings: list[str], max_num_seqs: int) -> Iterator[tuple[str, int]]:
    """Start our server; its URL and process id."""
    command = [sys.executable, "-m", "mindformers_glm", "serve", folder, "--port", "0"]
    command += ["--max_num_seqs", str(max_num_seqs), "--any_model_name", "True"]
    command += ["--access_log", "False"]
    for setting in settings:
        name, _, value = setting.partition("=")
        command += [f"--{name}", value]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    lines: list[str] = []
    try:
        for line in process.stderr:
            lines.append(line)
            if match := re.search(r"at (http://\S+/v1)", line):
                # Nobody may stop reading, or the server's log would block it.
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield match[1], process.pid
                return
        raise GlmError(f"The server ended before it answered: {''.join(lines[-3:])}")
    finally:
        _end(process)


@contextmanager
def serve_llama_cpp(
    binary: str, gguf: str, threads: int, num_clients: int
) -> Iterator[tuple[str, int]]:
    """Start llama.cpp's server with a slot for each client."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = num_clients * (PROMPT_LENS[1] + NEW_LENS[1] + 8)
    command = [binary, "-m", gguf, "--host", "127.0.0.1", "--port", str(port)]
    command += ["-t", str(threads), "-np", str(num_clients), "-c", str(context), "-ngl", "0"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}/v1", process.pid
        finally:
            _end(process)


def _wait_until_healthy(url: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise GlmError(f"llama.cpp's server does not answer at {url}: run it by hand to see why.")


def _end(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def processor_s_of_threads(pid: int) -> dict[int, tuple[str, float]]:
    """Name and processor time of each thread of a process, by its id."""
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    found = {}
    for folder in Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (folder / "stat").read_text()
        except OSError:  # it has ended meanwhile
            continue
        found[int(folder.name)] = parse_stat(text, ticks_per_s)
    return found


def parse_stat(text: str, ticks_per_s: int) -> tuple[str, float]:
    """Name and seconds of user and system time in a line of /proc/*/stat."""
    name, rest = text.partition("(")[2].rsplit(")", 1)
    fields = rest.split()
    return name, (int(fields[11]) + int(fields[12])) / ticks_per_s


def seconds_of_event_loop(
    before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]], pid: int
) -> float:
    """Processor time of a server's first thread, which reads and writes HTTP and JSON."""
    return after[pid][1] - before.get(pid, ("", 0.0))[1]


def seconds_to_detokenize(folder: str, count: int) -> float:
    """Processor time of detokenizing so many tokens, as the engine's thread does it."""
    tokenizer = load_tokenizer(folder)
    ids = np.random.default_rng(0).integers(10, tokenizer.num_token_ids // 2, count).tolist()
    detokenizer = tokenizer.new_detokenizer()
    begin = time.process_time()
    for token_id in ids:
        detokenizer.feed(token_id)
    return time.process_time() - begin


def name_of_model(url: str) -> str:
    """What the server calls its model."""
    with urllib.request.urlopen(f"{url}/models", timeout=30) as response:
        return str(json.load(response)["data"][0]["id"])


def load(url: str, counts: list[int], per_client: int, vocab_size: int) -> dict[int, Result]:
    """Run each number of clients; a short warm-up before."""
    model = name_of_model(url)
    warm_up = make_requests(-1, 2, vocab_size, (32, 32), (8, 8))
    run_clients(url, model, warm_up, 2)
    found = {}
    for count in counts:
        requests = make_requests(count, count * per_client, vocab_size, PROMPT_LENS, NEW_LENS)
        found[count] = run_clients(url, model, requests, count)
    return found


def first_tokens_with_a_shared_prompt(url: str, vocab_size: int) -> float:
    """Median time to first token of 8 prompts that share 900 of 1,000 tokens, one at a time, ms."""
    lens = (1_000, 1_000)
    requests = make_requests(77, 9, vocab_size, lens, (4, 4), num_shared=900)
    run_clients(url, "model", requests[:1], 1)
    return 1e3 * float(np.median(run_clients(url, "model", requests[1:], 1).first_s))


def print_table(name: str, results: dict[int, Result]) -> None:
    """Print the rows of one server."""
    print(f"\n{name}")
    print("| clients | requests | " + " | ".join(_HEAD) + " |")
    print("|" + "---|" * (len(_HEAD) + 2))
    for count, result in results.items():
        print(f"| {count} | {result.num_requests} | " + " | ".join(result.row()) + " |")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--settings", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--clients", default="1,4,16,64", type=_counts)
    parser.add_argument("--requests_per_client", type=positive, default=2)
    parser.add_argument("--threads", type=positive, default=os.cpu_count())
    parser.add_argument("--llama_cpp_server", metavar="BINARY")
    parser.add_argument("--gguf", nargs="*", default=[], help="one run of llama.cpp for each")
    parser.add_argument("--vllm_url", help="of a vLLM server that runs, ending in /v1")
    options = parser.parse_args(arguments)
    if bool(options.llama_cpp_server) != bool(options.gguf):
        parser.error("--llama_cpp_server and --gguf need each other")
    return options


def _counts(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def main() -> int:
    options = parse_arguments()
    vocab_size = GlmConfig.from_hf(options.checkpoint).vocab_size
    counts, most = options.clients, max(options.clients)
    print(describe_machine())
    print(f"prompts {PROMPT_LENS}, answers {NEW_LENS}, {options.requests_per_client} per client")
    failed = 0
    with serve_ours(options.checkpoint, options.settings, most) as (url, pid):
        results = load(url, counts, options.requests_per_client, vocab_size)
        print_table(f"ours {' '.join(options.settings)}", results)
        failed += sum(result.num_failed for result in results.values())
        requests = make_requests(5, most, vocab_size, (32, 32), (128, 128))
        before = processor_s_of_threads(pid)
        result = run_clients(url, "model", requests, most)
        loop_s = seconds_of_event_loop(before, processor_s_of_threads(pid), pid)
        text_s = seconds_to_detokenize(options.checkpoint, result.num_new)
        print(
            f"\nat {most} streams of {result.wall_s:.1f} s: event loop (HTTP, JSON) "
            f"{loop_s / result.wall_s:.1%}, detokenizing {text_s / result.wall_s:.1%}"
        )
        cached_ms = first_tokens_with_a_shared_prompt(url, vocab_size)
    settings = [*options.settings, "enable_prefix_caching=False"]
    with serve_ours(options.checkpoint, settings, most) as (url, _):
        plain_ms = first_tokens_with_a_shared_prompt(url, vocab_size)
    print(
        f"first token of a prompt that shares 900 of 1,000: {cached_ms:.0f} ms, without prefix "
        f"cache {plain_ms:.0f} ms: {cached_ms / plain_ms:.2f}"
    )
    for gguf in options.gguf:
        with serve_llama_cpp(options.llama_cpp_server, gguf, options.threads, most) as (url, _):
            results = load(url, counts, options.requests_per_client, vocab_size)
            print_table(f"llama.cpp {Path(gguf).name}", results)
    if options.vllm_url:
        results = load(options.vllm_url, counts, options.requests_per_client, vocab_size)
        print_table("vLLM", results)
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(main)
