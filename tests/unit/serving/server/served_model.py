"""A server in this process, on a runner that writes what a test tells it to."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.engine.llm import LLM
from mindformers_glm.serving.server.app import create_app
from mindformers_glm.serving.server.engine_link import EngineLink, Limits
from mindformers_glm.serving.server.metrics import Metrics
from mindformers_glm.serving.server.run_server import HttpServer, ListenSettings, open_socket
from mindformers_glm.serving.server.service import Service, ServiceSettings
from tests.engine.fake_runner import FakeRunner

ASSISTANT = "<|assistant|>"
TEMPLATE = (
    "{{ tools | tojson if tools else '' }}{% for m in messages %}<|{{ m.role }}|>\n"
    "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}<think>{% endif %}"
    "{% endif %}"
)


class ScriptedRunner(FakeRunner):
    """Answers the prompts it has a script for; others by a hash, as FakeRunner does."""

    scripts: dict[tuple[int, ...], list[int]]
    eos_token_id = -1

    def __init__(self, vocab_size: int, block_size: int) -> None:
        super().__init__(vocab_size, block_size)
        self.scripts = {}
        self.pause = threading.Event()
        self.pause.set()

    def execute(self, batch: Any) -> np.ndarray:
        self.pause.wait(20)
        return super().execute(batch)

    def _hash(self, history: np.ndarray) -> np.ndarray:
        logits = np.zeros(self.vocab_size)
        lengths = {len(prompt) for prompt in self.scripts}
        for length in (length for length in lengths if length <= len(history)):
            answer = self.scripts.get(tuple(history[:length].tolist()))
            if answer is not None:
                place = len(history) - length
                is_over = place >= len(answer)
                logits[self.eos_token_id if is_over else answer[place]] = 20.0
                return logits
        return super()._hash(history)


class ServedModel:
    """A server on a free port; `stop` ends it."""

    def __init__(
        self,
        folder: Path,
        *,
        max_answers: int = 64,
        timeout_s: float = 30.0,
        client_timeout_s: float = 30.0,
        keep_alive_s: float = 15.0,
        max_body_bytes: int = 2**20,
        any_model_name: bool = False,
        api_keys: tuple[str, ...] = (),
        allowed_origins: tuple[str, ...] = (),
        sampling: dict[str, Any] | None = None,
        **llm: Any,
    ) -> None:
        self.metrics = Metrics("mini")
        limits = Limits(max_answers, timeout_s)
        self.link = EngineLink(lambda: LLM(folder, **llm), limits, self.metrics)
        self.llm = self.link.start()
        self.metrics.watch(lambda: self.link.state, lambda: self.link.num_open)
        self.runner: Any = self.llm.engine.runner
        self.runner.eos_token_id = self.llm.config.vocab_size - 1
        names = ("mini", "other/name")
        settings = ServiceSettings(
            str(folder),
            names,
            any_model_name,
            sampling or {},
            max_body_bytes,
            client_timeout_s,
            keep_alive_s,
        )
        app = create_app(
            Service(self.link, self.llm, settings),
            api_keys=api_keys,
            allowed_origins=allowed_origins,
            has_access_log=True,
        )
        listen = ListenSettings("127.0.0.1", 0, None, None, client_timeout_s, 20.0)
        listener = open_socket("127.0.0.1", 0)
        self.port: int = listener.getsockname()[1]
        is_ready = threading.Event()
        self.server = HttpServer(app, self.link, listen, is_ready.set)
        self._thread = threading.Thread(target=lambda: self.server.run_on(listener))
        self._thread.start()
        assert is_ready.wait(20)

    def stop(self) -> int:
        if self._thread.is_alive():
            self.server.ask_to_end()
            self._thread.join(20)
            assert not self._thread.is_alive()
        self.link.stop(20)
        return self.server.exit_code

    def script(self, messages: list[Any], text: str, **asked: Any) -> None:
        """Let the model answer a conversation so; ASSISTANT in the text is the token."""
        from mindformers_glm.tokenizer.chat import ChatOptions

        kwargs = {"enable_thinking": True} if asked.get("enable_thinking") else {}
        options = ChatOptions(chat_template_kwargs=kwargs)
        prompt, _ = self.llm.frontend.encode(messages, asked.get("tools"), options)
        self.runner.scripts[tuple(prompt)] = self.llm.tokenizer.encode(text)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {"content-type": "application/json"} | (headers or {})
        connection.request(method, path, content, given)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        content = response.read()
        connection.close()
        return response.status, found, content

    def post(self, path: str, **body: Any) -> Any:
        """The JSON of an answer, which must be one."""
        status, _, content = self.request("POST", path, body)
        assert status == 200, content
        return json.loads(content)

    def refusal(self, path: str, **body: Any) -> tuple[int, str]:
        """Status and message of an error."""
        status, _, content = self.request("POST", path, body)
        return status, json.loads(content)["error"]["message"]

    def events(self, path: str, **body: Any) -> list[Any]:
        """The data of all events; the last of OpenAI's is "[DONE]"."""
        status, _, content = self.request("POST", path, body | {"stream": True})
        assert status == 200, content
        return [data for _, data in read_events(content)]


def read_events(content: bytes) -> Iterator[tuple[str, Any]]:
    """Names and data of server-sent events, comments left out."""
    for block in content.decode().split("\n\n"):
        name, data = "", None
        for line in block.splitlines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data = value if value == "[DONE]" else json.loads(value)
        if data is not None:
            yield name, data


def join_chat(events: list[Any], index: int = 0) -> dict[str, Any]:
    """The message that chunks add up to, as a client puts it together."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for event in events:
        for choice in event["choices"] if event != "[DONE]" else ():
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(message["tool_calls"]):
                    assert call["type"] == "function"
                    assert call["id"]
                    message["tool_calls"].append({"name": "", "arguments": ""})
                for key in ("name", "arguments"):
                    message["tool_calls"][call["index"]][key] += call["function"].get(key) or ""
            message["finish_reason"] = choice["finish_reason"] or message.get("finish_reason")
    return message


def plain_message(choice: dict[str, Any]) -> dict[str, Any]:
    """A whole answer in the same form."""
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return {
        "content": message["content"] or "",
        "reasoning_content": message.get("reasoning_content", ""),
        "tool_calls": [{"name": c["name"], "arguments": c["arguments"]} for c in calls],
        "finish_reason": choice["finish_reason"],
    }
