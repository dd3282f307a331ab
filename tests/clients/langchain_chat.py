"""LangChain against a served glm4-mini: a chat, a stream, a tool call and a parsed answer.

    python tests/clients/langchain_chat.py [PYTHON]

PYTHON is an interpreter that has langchain-openai; without it, one is made in a temporary folder
and langchain-openai is installed into it.
"""

import json
import signal
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
MINI = REPO / "mindformers_glm" / "assets" / "glm4-mini"
_CLIENT = "--client"


def run_client(url: str, api_key: str) -> None:
    """What LangChain does; in an interpreter that has it."""
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="glm4-mini", base_url=f"{url}/v1", api_key=api_key, temperature=0, max_retries=0
    )
    whole = model.invoke("请介绍一下北京")
    assert "首都" in whole.content, whole
    assert whole.usage_metadata["output_tokens"] > 3, whole
    pieces = list(model.stream("请介绍一下北京"))
    assert len(pieces) > 3
    assert "".join(piece.content for piece in pieces) == whole.content

    question = _tool_question()
    user = HumanMessage(next(m for m in question["messages"] if m["role"] == "user")["content"])
    with_tools = model.bind_tools(question["tools"])
    called = with_tools.invoke([user])
    (call,) = called.tool_calls
    streamed: Any = None
    for piece in with_tools.stream([user]):
        streamed = piece if streamed is None else streamed + piece
    assert [(c["name"], c["args"]) for c in streamed.tool_calls] == [(call["name"], call["args"])]
    result = ToolMessage('{"weather": "晴", "temperature": 20}', tool_call_id=call["id"])
    answer = with_tools.invoke([user, called, result])
    assert isinstance(answer, AIMessage)
    assert answer.content, answer

    schema = {
        "title": "City",
        "type": "object",
        "properties": {"capital": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
        "required": ["capital", "size"],
        "additionalProperties": False,
    }
    for method in ("json_schema", "function_calling"):
        parsed = model.with_structured_output(schema, method=method).invoke("北京")
        assert isinstance(parsed["capital"], bool), (method, parsed)
        assert parsed["size"] in ("small", "large"), (method, parsed)
    texts = model.batch(["你好", "请介绍一下北京"])
    assert texts[1].content == whole.content
    print("a chat, a stream, a tool call and its result, two parsed answers, a batch: as expected")


def _tool_question() -> dict[str, Any]:
    lines = (MINI / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = next(q for q in map(json.loads, lines) if q["category"] == "tool_call")
    return found


def main() -> int:
    if sys.argv[1:2] == [_CLIENT]:
        run_client(*sys.argv[2:])
        return 0
    if len(sys.argv) > 2:
        print(f"usage: {sys.argv[0]} [PYTHON]", file=sys.stderr)
        return 2
    sys.path.insert(0, str(REPO))
    from tests.clients.conftest import API_KEY, start_server

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = sys.argv[1] if len(sys.argv) == 2 else _make_python(folder / "venv")
        server = start_server("--api_key", API_KEY, cwd=folder)
        try:
            command = [python, __file__, _CLIENT, server.url, API_KEY]
            code = subprocess.run(command).returncode
        finally:
            server.process.send_signal(signal.SIGTERM)
            ended = server.process.wait(60)
    return int(code != 0 or ended != 0)


def _make_python(folder: Path) -> str:
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "langchain-openai"], check=True)
    return python


if __name__ == "__main__":
    sys.exit(main())
