"""/v1/completions, and the routes for tokens and models."""

import json
from typing import Any

import pytest

from tests.unit.serving.server.served_model import ServedModel

PATH = "/v1/completions"


def test_a_text_is_gone_on_with_as_it_is(server: ServedModel) -> None:
    ids = server.llm.tokenizer.encode("abc")
    body = server.post(PATH, prompt="abc", max_tokens=4)
    assert body["object"] == "text_completion"
    assert body["usage"]["prompt_tokens"] == 3
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "length"
    assert server.post(PATH, prompt=ids, max_tokens=4)["choices"][0]["text"] == choice["text"]
    events = server.events(PATH, prompt="abc", max_tokens=4)
    text = "".join(event["choices"][0]["text"] for event in events[:-1])
    assert text == choice["text"]


def test_several_prompts_have_their_own_places(server: ServedModel) -> None:
    alone = [server.post(PATH, prompt=text, max_tokens=4)["choices"][0]["text"] for text in "xy"]
    both = server.post(PATH, prompt=["x", "y"], max_tokens=4)["choices"]
    assert [choice["text"] for choice in both] == alone
    assert [choice["index"] for choice in both] == [0, 1]
    ids = [server.llm.tokenizer.encode(text) for text in "xy"]
    both = server.post(PATH, prompt=ids, max_tokens=4, n=2, temperature=1)["choices"]
    assert [choice["index"] for choice in both] == [0, 1, 2, 3]


def test_echo_with_log_probabilities_scores_a_text(server: ServedModel) -> None:
    """As lm-eval asks for it."""
    ids = server.llm.tokenizer.encode("some text")
    body = server.post(
        PATH, prompt=[ids, ids[:4]], max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234
    )
    first, second = body["choices"]
    scores = first["logprobs"]
    assert len(scores["token_logprobs"]) == len(ids) + 1
    assert scores["token_logprobs"][0] is None
    assert scores["top_logprobs"][0] is None
    assert "".join(scores["tokens"][:-1]) == "some text"
    assert scores["text_offset"][:9] == list(range(9))
    assert first["text"].startswith("some text")
    assert second["logprobs"]["token_logprobs"][1:4] == scores["token_logprobs"][1:4]
    for own, top in zip(scores["token_logprobs"][1:], scores["top_logprobs"][1:], strict=True):
        assert own in top.values()
    alone = server.post(PATH, prompt=ids, max_tokens=0, logprobs=1, echo=True)["choices"][0]
    assert alone["text"] == "some text"
    assert alone["logprobs"]["token_logprobs"] == scores["token_logprobs"][:-1]


def test_streamed_echo_begins_with_the_prompt(server: ServedModel) -> None:
    events = server.events(PATH, prompt="abc", max_tokens=4, echo=True)
    text = "".join(event["choices"][0]["text"] for event in events[:-1])
    assert text == server.post(PATH, prompt="abc", max_tokens=4, echo=True)["choices"][0]["text"]


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("prompt", None, "prompt must be"),
        ("prompt", [], "prompt must be"),
        ("prompt", ["a", 1], "prompt must be"),
        ("prompt", "", "empty"),
        ("prompt", [[]], "empty"),
        ("prompt", [-1], "outside the vocabulary"),
        ("prompt", [1, "a"], "must hold whole numbers"),
        ("prompt", ["a"] * 65, "ask for fewer"),
        ("suffix", "x", "suffix"),
        ("logprobs", 21, "from 0 to 20"),
        ("messages", [], "messages"),
    ],
)
def test_what_is_wrong_is_told(server: ServedModel, field: str, value: Any, part: str) -> None:
    status, message = server.refusal(PATH, **({"prompt": "a", "max_tokens": 1} | {field: value}))
    assert status == 400
    assert part in message


def test_tokens_go_to_text_and_back(server: ServedModel) -> None:
    body = server.post("/tokenize", prompt="é!", return_token_strs=True)
    assert (body["count"], body["max_model_len"], len(body["token_strs"])) == (3, 4096, 3)
    assert server.post("/detokenize", tokens=body["tokens"])["prompt"] == "é!"
    messages = [{"role": "user", "content": "x"}]
    prompt = server.post("/tokenize", messages=messages)
    assert server.post("/detokenize", tokens=prompt["tokens"])["prompt"] == (
        "<|user|>\nx<|assistant|>"
    )
    assert server.refusal("/detokenize", tokens=[10**6])[0] == 400
    assert server.refusal("/tokenize", messages=[])[0] == 400


def test_models_health_version_and_tokenizer_are_told(server: ServedModel) -> None:
    models = json.loads(server.request("GET", "/v1/models")[2])
    assert [model["id"] for model in models["data"]] == ["mini", "other/name"]
    assert {"id", "object", "created", "owned_by"} <= models["data"][0].keys()
    assert json.loads(server.request("GET", "/v1/models/other/name")[2])["id"] == "other/name"
    assert server.request("GET", "/v1/models/x")[0] == 404
    assert server.request("GET", "/health")[0] == 200
    assert "version" in json.loads(server.request("GET", "/version")[2])
    info = json.loads(server.request("GET", "/tokenizer_info")[2])
    assert info["eos_token"] == "<|endoftext|>"
    assert "add_generation_prompt" in info["chat_template"]


def test_metrics_have_vllms_names(server: ServedModel) -> None:
    server.post(PATH, prompt="abc", max_tokens=4)
    page = server.request("GET", "/metrics")[2].decode()
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if not line.startswith("#")
    }
    labels = '{engine="0",model_name="mini"}'
    for name in (
        *("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
        *("vllm:time_to_first_token_seconds_count", "vllm:e2e_request_latency_seconds_count"),
        *("vllm:inter_token_latency_seconds_count", "vllm:time_per_output_token_seconds_count"),
        *("vllm:request_queue_time_seconds_count", "vllm:request_generation_tokens_sum"),
    ):
        assert values[f"{name}{labels}"] > 0, name
    assert values[f"vllm:num_requests_running{labels}"] == 0
    assert values[f"vllm:kv_cache_usage_perc{labels}"] == 0
    assert 'vllm:request_success_total{engine="0",finished_reason="length"' in page
