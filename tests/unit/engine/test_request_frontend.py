"""Requests made without an `LLM`, as a server makes them."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.reply_reader import ReplyParsers
from mindformers_glm.engine.request_frontend import RequestFrontend
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.tokenizer import GlmTokenizer, load_tokenizer
from mindformers_glm.tokenizer.replies import ParsedReply
from tests.engine.drive import make_engine, run_all

TEMPLATE = (
    "{{ tools[0].function.name if tools }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
)
MESSAGES = [{"role": "user", "content": "x"}]
TOOLS = [{"name": "f"}]
SHORT = SamplingParams(max_new_tokens=3)


@pytest.fixture
def tokenizer(checkpoint: Path) -> GlmTokenizer:
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    return load_tokenizer(checkpoint)


def _frontend(tokenizer: GlmTokenizer, apply_chat_template: Any = "auto") -> RequestFrontend:
    return RequestFrontend(tokenizer, ReplyParsers("glm4", "none"), apply_chat_template)


@pytest.mark.parametrize(
    ("prompt", "tools", "apply_chat_template", "expected", "is_chat"),
    [
        ("x", None, "auto", "[x]", True),
        ("x", TOOLS, True, "f[x]", True),
        ("x", None, False, "x", False),
        (MESSAGES, None, "auto", "[x]", True),
        (MESSAGES, TOOLS, False, "f[x]", True),
        ([5, 6], None, True, None, False),
    ],
)
def test_what_the_template_writes_has_a_reader(
    tokenizer: GlmTokenizer,
    prompt: Any,
    tools: Any,
    apply_chat_template: Any,
    expected: str | None,
    is_chat: bool,
) -> None:
    frontend = _frontend(tokenizer, apply_chat_template)
    request = frontend.new_request("0", prompt, SHORT, tools)
    assert request.token_ids == (prompt if expected is None else tokenizer.encode(expected))
    assert bool(request.reply_readers) == is_chat
    assert (request.params, request.error) == (SHORT, None)


@pytest.mark.parametrize(
    ("prompt", "tools", "message"),
    [
        (
            None,
            None,
            "A prompt must be a text, a list of token ids or a list of messages, got a NoneType",
        ),
        (b"x", None, "got a bytes"),
        ([5], TOOLS, "tools are written by the chat template"),
        ([{"role": "nobody"}], None, "role"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_its_error_and_its_only_output(
    tokenizer: GlmTokenizer, prompt: Any, tools: Any, message: str
) -> None:
    frontend, engine = _frontend(tokenizer), make_engine()
    request = frontend.new_request("7", prompt, tools=tools)
    output = frontend.submit(request, engine)
    assert output is not None
    assert message in (request.error or "")
    assert (output.request_id, output.finish_reason, output.error) == ("7", "error", request.error)
    assert (output.token_ids, output.text, output.delta_text) == ([], "", "")
    assert not engine.has_unfinished()


def test_a_prompt_that_the_engine_refuses_keeps_its_token_ids(tokenizer: GlmTokenizer) -> None:
    frontend, engine = _frontend(tokenizer), make_engine(max_model_len=4)
    output = frontend.submit(frontend.new_request("0", [1, 2, 3, 4]), engine)
    assert output is not None
    assert output.prompt_token_ids == [1, 2, 3, 4]
    assert "the limit is max_model_len=4" in (output.error or "")


def test_settings_of_another_type_are_an_error_of_the_caller(tokenizer: GlmTokenizer) -> None:
    wrong: Any = {"temperature": 1}
    with pytest.raises(ConfigError, match="sampling_params must be SamplingParams"):
        _frontend(tokenizer).new_request("0", "x", wrong)


def test_outputs_are_read_by_their_own_request(tokenizer: GlmTokenizer) -> None:
    frontend, engine = _frontend(tokenizer, apply_chat_template=False), make_engine(num_blocks=90)
    prompts = {"ids": [1, 2], "chat": MESSAGES}
    requests = {name: frontend.new_request(name, prompts[name], SHORT) for name in prompts}
    requests["chat"].token_ids[:] = [1, 2]  # the engine's vocabulary is smaller
    for request in requests.values():
        assert frontend.submit(request, engine) is None
    last = {}
    for output in run_all(engine):
        last[output.request_id] = requests[output.request_id].read(output)
    assert last["ids"].text == last["chat"].text
    assert last["ids"].reply is None
    assert last["chat"].reply == ParsedReply(last["chat"].text)


def test_threads_make_requests_at_the_same_time(tokenizer: GlmTokenizer) -> None:
    frontend = _frontend(tokenizer)
    texts = [f"text {number}" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        requests = list(pool.map(lambda text: frontend.new_request(text, text), texts))
    assert [r.token_ids for r in requests] == [tokenizer.encode(f"[{text}]") for text in texts]


def test_a_frontend_needs_no_mindspore() -> None:
    code = (
        "import sys, mindformers_glm.engine.request_frontend\n"
        "print([name for name in ('mindspore', 'mindformers', 'torch') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
