"""/v1/chat/completions in OpenAI's form."""

from typing import Any

import pytest

from tests.unit.serving.server.conftest import StartServer
from tests.unit.serving.server.served_model import ServedModel, join_chat, plain_message

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}


def test_a_whole_answer_has_openais_members(server: ServedModel) -> None:
    server.script(HELLO, "\nHi there")
    body = server.post(PATH, model="mini", messages=HELLO)
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "mini"
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Hi there",
        "refusal": None,
    }
    assert body["choices"][0]["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["completion_tokens"] == len("\nHi there") + 1  # the one that ends it
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_has_a_role_first_a_reason_last_and_then_done(server: ServedModel) -> None:
    server.script(HELLO, "\nHi there")
    events = server.events(PATH, messages=HELLO)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert {event["object"] for event in events[:-1]} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events[:-1]}) == 1
    assert not any("usage" in event for event in events[:-1])


def test_usage_is_streamed_where_it_is_asked_for(server: ServedModel) -> None:
    server.script(HELLO, "\nHi there")
    events = server.events(PATH, messages=HELLO, stream_options={"include_usage": True})
    assert [event["usage"] for event in events[:-2]] == [None] * (len(events) - 2)
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 10
    every = {"include_usage": True, "continuous_usage_stats": True}
    events = server.events(PATH, messages=HELLO, stream_options=every)
    assert all(event["usage"]["prompt_tokens"] for event in events[:-1])


def test_text_is_streamed_as_it_comes_though_tools_are_given(server: ServedModel) -> None:
    text = "\nIt is warm and sunny"
    server.script(HELLO, text, tools=[WEATHER])
    events = server.events(PATH, messages=HELLO, tools=[WEATHER])
    assert join_chat(events)["content"] == text[1:]
    assert sum(bool(e["choices"][0]["delta"].get("content")) for e in events[:-1]) > 10


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_tool_choice_none_takes_nothing_for_a_call(server: ServedModel, choice: str) -> None:
    text = 'get_weather\n{"city": "Rome"}'
    offered = [WEATHER] if choice == "auto" else None
    server.script(HELLO, text, tools=offered)
    body = {"messages": HELLO, "tools": [WEATHER], "tool_choice": choice}
    message = plain_message(server.post(PATH, **body)["choices"][0])
    assert bool(message["tool_calls"]) == (choice == "auto")
    assert message == join_chat(server.events(PATH, **body))


@pytest.mark.parametrize("is_parallel", [True, False])
def test_one_call_ends_the_answer_where_calls_may_not_be_parallel(
    server: ServedModel, is_parallel: bool
) -> None:
    text = 'get_weather\n{"city": "Rome"}\nget_weather\n{"city": "Bonn"}\nDone, and much more'
    server.script(HELLO, text, tools=[WEATHER])
    body = {"messages": HELLO, "tools": [WEATHER], "parallel_tool_calls": is_parallel}
    whole = server.post(PATH, **body)
    message = plain_message(whole["choices"][0])
    assert len(message["tool_calls"]) == 1 + is_parallel
    assert message["finish_reason"] == "tool_calls"
    assert message == join_chat(server.events(PATH, **body))
    assert is_parallel or whole["usage"]["completion_tokens"] < len(text) / 2


def test_the_arguments_of_a_long_call_come_piece_by_piece(server: ServedModel) -> None:
    arguments = '{"text": "' + "long " * 100 + '"}'
    server.script(HELLO, f"get_weather\n{arguments}", tools=[WEATHER])
    body = {"messages": HELLO, "tools": [WEATHER]}
    events = server.events(PATH, **body)
    calls = [c for e in events[:-1] for c in e["choices"][0]["delta"].get("tool_calls", ())]
    assert len(calls) > 15  # prompt lookup guesses several tokens of each
    assert calls[0]["function"]["name"] == "get_weather"
    assert all(call.keys() == {"index", "function"} for call in calls[1:])
    assert join_chat(events)["tool_calls"] == [{"name": "get_weather", "arguments": arguments}]
    cut = body | {"max_tokens": 300}
    message = join_chat(server.events(PATH, **cut))
    assert message == plain_message(server.post(PATH, **cut)["choices"][0])
    assert message["finish_reason"] == "length"
    assert arguments.startswith(message["tool_calls"][0]["arguments"])


def test_one_long_call_ends_the_answer_where_calls_may_not_be_parallel(
    server: ServedModel,
) -> None:
    call = 'get_weather\n{"text": "' + "long " * 100 + '"}'
    server.script(HELLO, f"{call}\n{call}", tools=[WEATHER])
    body = {"messages": HELLO, "tools": [WEATHER], "parallel_tool_calls": False}
    message = join_chat(server.events(PATH, **body))
    assert [c["arguments"] for c in message["tool_calls"]] == [call.partition("\n")[2]]
    assert message == plain_message(server.post(PATH, **body)["choices"][0])


def test_a_call_can_be_sent_back_with_its_result(server: ServedModel) -> None:
    text = 'get_weather\n{"city": "Rome"}'
    server.script(HELLO, text, tools=[WEATHER])
    message = server.post(PATH, messages=HELLO, tools=[WEATHER])["choices"][0]["message"]
    call = message["tool_calls"][0]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "22 degrees"}
    messages = [*HELLO, message, result]
    body = server.post(PATH, messages=messages, tools=[WEATHER], max_tokens=3, ignore_eos=True)
    assert body["usage"]["completion_tokens"] == 3


def test_a_forced_call_of_a_tool_nobody_offered_is_refused(server: ServedModel) -> None:
    choice = {"type": "function", "function": {"name": "x"}}
    status, message = server.refusal(PATH, messages=HELLO, tools=[WEATHER], tool_choice=choice)
    assert (status, "'x'" in message) == (400, True)


def test_n_answers_are_streamed_by_their_index(server: ServedModel) -> None:
    body = {"messages": HELLO[:1] + HELLO, "n": 3, "seed": -5, "temperature": 1, "max_tokens": 9}
    whole = server.post(PATH, **body)
    events = server.events(PATH, **body)
    for index in range(3):
        assert join_chat(events, index) == plain_message(whole["choices"][index])
    assert len({choice["message"]["content"] for choice in whole["choices"]}) == 3
    assert whole["usage"]["completion_tokens"] == 27


def test_log_probabilities_are_those_of_the_tokens(server: ServedModel) -> None:
    body = {"messages": HELLO * 3, "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    whole = server.post(PATH, **body)["choices"][0]["logprobs"]["content"]
    events = server.events(PATH, **body)
    streamed = [
        entry
        for event in events[:-1]
        for entry in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == whole
    assert len(whole) == 4
    assert [len(entry["top_logprobs"]) for entry in whole] == [2] * 4
    best = whole[0]["top_logprobs"][0]
    assert (best["token"], best["logprob"]) == (whole[0]["token"], whole[0]["logprob"])
    plain = server.post(PATH, **body | {"top_logprobs": 0})["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in plain] == [[]] * 4


def test_a_stop_text_and_a_length_end_the_answer(server: ServedModel) -> None:
    server.script(HELLO, "\none two three")
    body = server.post(PATH, messages=HELLO, stop=["two"])["choices"][0]
    assert (body["message"]["content"], body["finish_reason"]) == ("one ", "stop")
    assert body["stop_reason"] == "two"
    body = server.post(PATH, messages=HELLO, max_completion_tokens=4)["choices"][0]
    assert (body["message"]["content"], body["finish_reason"]) == ("one", "length")


def test_an_answer_without_a_limit_is_as_long_as_the_model_allows(server: ServedModel) -> None:
    body = server.post(PATH, messages=[{"role": "user", "content": "x"}], ignore_eos=True)
    assert body["usage"]["total_tokens"] == 4096


def test_harmless_fields_are_named_in_a_header(server: ServedModel) -> None:
    server.script(HELLO, "\nHi")
    body = {"messages": HELLO, "user": "me", "store": True, "zzz\r\nx": 1, "seed": None}
    status, headers, _ = server.request("POST", PATH, body)
    assert status == 200
    assert headers["warning"] == '299 mindformers-glm "ignored fields: user store (unprintable)"'


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("temprature", 0.5, "did you mean temperature?"),
        ("temperature", "hot", "temperature must be"),
        ("temperature", -1, "temperature must be"),
        ("top_p", 2, "top_p must be"),
        ("max_tokens", 0, "max_tokens must be a whole number of at least 1"),
        ("max_completion_tokens", True, "max_completion_tokens must be"),
        ("n", 129, "n must be at most 128"),
        ("n", 2, "greedy answers would all be the same"),
        ("stream", 1, "stream must be true or false"),
        ("stream_options", {"include_usage": True}, "needs stream true"),
        ("top_logprobs", 3, "needs logprobs true"),
        ("top_logprobs", 21, "from 0 to 20"),
        ("logit_bias", {"x": 1}, "logit_bias must map"),
        ("logit_bias", {"100000": 1}, "outside the vocabulary"),
        ("stop", ["x"] * 65, "stop may have 64 texts"),
        ("tools", {}, "tools must be a list"),
        ("tools", [1], "tools must be a list of"),
        ("tool_choice", "required", "tool_choice needs tools"),
        ("tool_choice", "some", "tool_choice must be"),
        ("chat_template", "{{ 1 }}", "may not bring a template"),
        ("chat_template_kwargs", {"chat_template": "x"}, "cannot set chat_template"),
        ("chat_template_kwargs", {"unread": 1}, "unread"),
        ("reasoning_effort", "high", "reasoning_effort"),
        ("best_of", 2, "best_of"),
        ("audio", {}, "audio"),
        ("response_format", {"type": "xml"}, "response_format must be"),
        ("response_format", {"type": "json_schema"}, "needs"),
        ("guided_regex", "a(", "regex"),
        ("guided_whitespace_pattern", "x", "guided_whitespace_pattern"),
        ("structured_outputs", {"regex": "a", "choice": ["b"]}, "exactly one"),
        ("messages", [], "at least one message"),
        ("messages", "hello", "messages must be a list"),
        ("messages", [1], "messages must hold objects"),
        ("messages", [{"role": "robot", "content": "x"}], "robot"),
        ("messages", [{"role": "user", "content": "x" * 5000}], "4096"),
        ("messages", [{"role": "user", "content": "\ud800"}], "Unicode"),
    ],
)
def test_what_would_change_the_answer_is_refused_in_a_sentence(
    server: ServedModel, field: str, value: Any, part: str
) -> None:
    status, message = server.refusal(PATH, **({"messages": HELLO} | {field: value}))
    assert status == 400
    assert part in message
    is_streamed = {"stream": True} if field not in ("stream", "stream_options") else {}
    again = server.refusal(PATH, **({"messages": HELLO} | is_streamed | {field: value}))
    assert again[0] == 400


def test_a_model_of_another_name_is_not_found(server: ServedModel) -> None:
    status, message = server.refusal(PATH, messages=HELLO, model="gpt-4o")
    assert status == 404
    assert "'gpt-4o' does not exist" in message
    assert server.post(PATH, messages=HELLO, model="other/name", max_tokens=1)["model"] == (
        "other/name"
    )


def test_blocks_of_finished_answers_come_back(server: ServedModel) -> None:
    state = server.link.state
    assert state.num_free_blocks == state.num_blocks


def test_tokens_of_thoughts_are_counted_streamed_as_whole(start_server: StartServer) -> None:
    server = start_server(reasoning_parser="glm_z1")
    server.script(HELLO, "<think>\none two</think>\nfine")
    whole = server.post(PATH, messages=HELLO)
    streamed = server.events(PATH, messages=HELLO, stream_options={"include_usage": True})[-2]
    for usage in (whole["usage"], streamed["usage"]):
        assert usage["completion_tokens_details"] == {"reasoning_tokens": len("one two")}
    told = server.post("/v1/responses", input="hello")["usage"]
    assert told["output_tokens_details"] == {"reasoning_tokens": len("one two")}
    server.script(HELLO, "fine")
    usage = server.post(PATH, messages=HELLO)["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}
