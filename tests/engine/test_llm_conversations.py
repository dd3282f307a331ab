"""Conversations and tools through `LLM`: what the template writes, what is read of the answer."""

from pathlib import Path

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine import llm_engine as llm_engine_module
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.tokenizer.replies import ParsedReply, ToolCall
from tests.engine.conftest import SHORT, ids_of


def test_chat_writes_the_conversation_by_the_template(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(
        "{{ tools[0].function.name if tools }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% endfor %}>"
    )
    llm = LLM(checkpoint)
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert llm.chat(messages, SHORT).prompt_token_ids == ids_of("[user]x[assistant]y>", llm)
    tools = [{"name": "f"}]
    assert llm.chat(messages, SHORT, tools).prompt_token_ids == ids_of("f[user]x[assistant]y>", llm)
    assert llm.generate("x", SHORT)[0].prompt_token_ids == ids_of("[user]x>", llm)
    assert llm.generate([messages, "x"], SHORT)[0].prompt_token_ids[:6] == ids_of("[user]", llm)
    raw = LLM(checkpoint, apply_chat_template=False)
    assert raw.generate("x", SHORT)[0].prompt_token_ids == ids_of("x", llm)


def test_tools_make_a_text_a_users_message(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(
        "{{ tools[0].function.name if tools }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% endfor %}>"
    )
    tools = [{"name": "f"}]
    llm = LLM(checkpoint)
    outputs = list(llm.stream("x", SHORT, tools))
    assert outputs[0].prompt_token_ids == ids_of("f[user]x>", llm)
    (as_ids,) = llm.stream([5], SHORT, tools)
    assert "tools are written by the chat template" in (as_ids.error or "")
    (as_text,) = LLM(checkpoint, apply_chat_template=False).stream("x", SHORT, tools)
    assert "tools are written by the chat template" in (as_text.error or "")


_TOOL_TEMPLATE = (
    "{{ tools[0].function.name if tools }}{% for m in messages %}[{{ m.role }}]{{ m.metadata }}"
    "{{ m.content }}{% endfor %}>"
)


def _write_answer(monkeypatch: pytest.MonkeyPatch, llm: LLM, text: str) -> None:
    """Make the engine write this text, letter by letter."""
    token_ids = iter(ids_of(text, llm))
    monkeypatch.setattr(llm_engine_module, "sample_token", lambda logits, sequence: next(token_ids))


def test_the_answer_to_a_conversation_is_told_apart(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint / "chat_template.jinja").write_text(_TOOL_TEMPLATE)
    llm = LLM(checkpoint, prompt_lookup_num_tokens=0)
    text = 'ab\nf\n{"x": 1}'
    params = SamplingParams(max_new_tokens=len(text))
    tools = [{"type": "function", "function": {"name": "f"}}]
    expected = ParsedReply("ab\n", tool_calls=(ToolCall("f", '{"x": 1}'),))
    _write_answer(monkeypatch, llm, text)
    output = llm.chat([{"role": "user", "content": "x"}], params, tools)
    assert (output.text, output.reply) == (text, expected)

    _write_answer(monkeypatch, llm, text)
    outputs = list(llm.stream("x", params, tools))
    deltas = [output.delta_reply or ParsedReply() for output in outputs]
    assert sum(deltas, ParsedReply()) == outputs[-1].reply == expected
    assert [delta.content for delta in deltas[:4]] == ["a", "b", "\n", ""]

    _write_answer(monkeypatch, llm, text)
    in_message = [{"role": "system", "content": "", "tools": tools}]
    assert llm.generate(in_message, params)[0].reply == expected

    _write_answer(monkeypatch, llm, text)
    assert llm.generate("x", params)[0].reply == ParsedReply(text)  # no tools were offered

    _write_answer(monkeypatch, llm, text)
    assert llm.generate([1, 2], params)[0].reply is None  # nobody knows what the prompt is
    assert not llm._requests


def test_thoughts_that_the_prompt_opened_are_told_apart(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{{ messages[0].content.split('</think>')[-1] }}<|endoftext|><think>"
    (checkpoint / "chat_template.jinja").write_text(template)
    llm = LLM(checkpoint, prompt_lookup_num_tokens=0)
    _write_answer(monkeypatch, llm, "a</think>b")
    output = llm.chat([{"role": "user", "content": "x"}], SamplingParams(max_new_tokens=10))
    assert output.reply == ParsedReply("b", "a")

    llm = LLM(checkpoint, prompt_lookup_num_tokens=0, reasoning_parser="none")
    _write_answer(monkeypatch, llm, "a</think>b")
    output = llm.chat([{"role": "user", "content": "x"}], SamplingParams(max_new_tokens=10))
    assert output.reply == ParsedReply("a</think>b")


def test_messages_in_openais_form_fit_a_template_of_the_family(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(_TOOL_TEMPLATE)
    llm = LLM(checkpoint)
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "r"}]},
    ]
    found = llm.chat(messages, SHORT).prompt_token_ids
    assert found == ids_of('[assistant]f{"a":1}[observation]r>', llm)


_ROLES = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}{{ '!' if loud }}"
)
_TALK = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "so "}]


def test_a_conversation_is_written_as_it_is_asked_for(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(_ROLES)
    llm = LLM(checkpoint)
    for options, expected in (
        ({}, "[user]x[assistant]so [assistant]"),
        ({"add_generation_prompt": False}, "[user]x[assistant]so "),
        ({"continue_final_message": True}, "[user]x[assistant]so "),
        ({"chat_template_kwargs": {"loud": True}}, "[user]x[assistant]so [assistant]!"),
        ({"chat_template": "{% for m in messages %}{{ m.content }};{% endfor %}"}, "x;so ;"),
    ):
        made = LLM(checkpoint, **options)  # type: ignore[arg-type]
        for found in (
            llm.chat(_TALK, SHORT, **options),  # type: ignore[arg-type]
            list(llm.stream(_TALK, SHORT, **options))[-1],  # type: ignore[arg-type]
            made.chat(_TALK, SHORT),
            made.generate(_TALK, SHORT)[0],
        ):
            assert found.prompt_token_ids == ids_of(expected, llm)
    quiet = LLM(checkpoint, continue_final_message=True, chat_template_kwargs={"loud": True})
    found = quiet.chat(_TALK, SHORT, continue_final_message=False)
    assert found.prompt_token_ids == ids_of("[user]x[assistant]so [assistant]!", llm)
    with pytest.raises(ConfigError, match="does not read load"):
        llm.chat(_TALK, SHORT, chat_template_kwargs={"load": True})
    with pytest.raises(ConfigError, match="give one of them"):
        llm.chat(_TALK, SHORT, add_generation_prompt=True, continue_final_message=True)


@pytest.mark.parametrize(
    ("begun", "answer", "expected"),
    [
        ("The capital", " is\nParis", ParsedReply(" is\nParis")),
        ("a", "\nb", ParsedReply("\nb")),
        ("a ", 'f\n{"x": 1}', ParsedReply('f\n{"x": 1}')),  # not at the beginning of a line
        ("a", '\nf\n{"x": 1}', ParsedReply("\n", tool_calls=(ToolCall("f", '{"x": 1}'),))),
        ("<think>I see", " it</think>so", ParsedReply("so", "it")),
        ("<think>I see</think>so", " it", ParsedReply(" it")),
    ],
)
def test_a_continued_answer_is_told_apart(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    begun: str,
    answer: str,
    expected: ParsedReply,
) -> None:
    template = "{{ tools[0].function.name if tools }}" + _ROLES + "{# metadata </think> #}"
    (checkpoint / "chat_template.jinja").write_text(template)
    llm = LLM(checkpoint, prompt_lookup_num_tokens=0)
    _write_answer(monkeypatch, llm, answer)
    talk = [_TALK[0], {"role": "assistant", "content": begun}]
    params = SamplingParams(max_new_tokens=len(answer))
    found = llm.chat(talk, params, [{"name": "f"}], continue_final_message=True)
    assert found.reply == expected


def test_a_given_template_tells_the_parsers_where_the_folder_has_none(checkpoint: Path) -> None:
    template = "{# metadata </think> #}" + _ROLES
    llm = LLM(checkpoint, chat_template=template)
    assert llm.tokenizer.parsers_for(None) == ("none", "none")
    assert llm.tokenizer.parsers_for(template) == ("glm4", "glm_z1")
    assert llm.generate("x", SHORT)[0].prompt_token_ids == ids_of("[user]x[assistant]", llm)
    assert llm.generate("x", SHORT)[0].reply is not None
