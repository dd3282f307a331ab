"""How fast does a server answer that is there already, whoever's it is?

    python scripts/bench/bench_url.py http://HOST:PORT/v1 [--clients 1,4,16,64] [--model NAME]
        [--api_key_file FILE] [--num_token_ids 60000] [--rounds 1] [--most_s 60]

Any server with OpenAI's /v1/completions that takes token ids (ours, vLLM's, llama.cpp's). Prompts
and answers, and what is printed, are those of bench_serving.py, which starts the servers itself.
"""

import argparse
import json
import urllib.request
from pathlib import Path

from bench_serving import NEW_LENS, PROMPT_LENS, parse_counts
from load_clients import HEAD, make_requests, run_clients
from machine import describe_machine, positive, run_main

from mindformers_glm.core.errors import GlmError


def first_model(url: str, api_key: str) -> str:
    """What the server calls its first model.

    Raises:
        GlmError: nothing answers there, or not as such a server does.
    """
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        request = urllib.request.Request(f"{url}/models", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return str(json.load(response)["data"][0]["id"])
    except (OSError, ValueError, LookupError, TypeError) as problem:
        raise GlmError(
            f"{url}/models names no model ({problem}): give the URL of a server with OpenAI's "
            "routes, up to its /v1, or --model NAME."
        ) from None


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="http://HOST:PORT/v1")
    parser.add_argument("--model", help="its name there; the first one of /v1/models")
    parser.add_argument("--api_key_file", type=Path)
    parser.add_argument("--num_token_ids", type=positive, default=60_000, help="of prompts")
    parser.add_argument("--clients", default=[1, 4, 16, 64], type=parse_counts, metavar="1,4,16,64")
    parser.add_argument("--rounds", type=positive, default=1)
    parser.add_argument("--most_s", type=positive, default=60, help="of a number of clients")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each number of clients and round; exit code 1 if a request failed."""
    options = parse_arguments(arguments)
    url = options.url.rstrip("/")
    try:
        api_key = options.api_key_file.read_text().strip() if options.api_key_file else ""
    except OSError as problem:
        raise GlmError(f"Cannot read --api_key_file {options.api_key_file}: {problem}.") from None
    model = options.model or first_model(url, api_key)
    print(f"{describe_machine()}\n{model} at {url}; prompts {PROMPT_LENS}, answers {NEW_LENS}\n")
    print("| clients | " + " | ".join(HEAD) + " |\n" + "|---" * (len(HEAD) + 1) + "|")
    num_failed = 0
    for count in options.clients:
        for number in range(options.rounds):
            seed = 1_000 * number + count
            requests = make_requests(seed, count, options.num_token_ids, PROMPT_LENS, NEW_LENS)
            result = run_clients(url, model, requests, count, api_key, options.most_s)
            num_failed += result.num_failed
            print(f"| {count} | " + " | ".join(result.row()) + " |", flush=True)
    return int(num_failed > 0)


if __name__ == "__main__":
    run_main(main)
