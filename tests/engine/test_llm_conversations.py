"""Conversations and tools through `LLM`: what the template writes, what is read of the answer."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine import answer_sampler
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.tokenizer.replies import ParsedReply, ToolCall
from tests.e2e.random_checkpoint import write_checkpoint
from tests.engine.conftest import SHORT, VOCAB, ids_of


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
    monkeypatch.setattr(answer_sampler, "sample_token", lambda *row: next(token_ids))


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


def test_several_conversations_are_answered_together(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(_TOOL_TEMPLATE)
    llm = LLM(checkpoint)
    conversations = [[{"role": "user", "content": text}] for text in ("x", "yy", "z")]
    alone = [llm.chat(messages, SHORT).token_ids for messages in conversations]
    assert [output.token_ids for output in llm.chat(conversations, SHORT)] == alone
    params = [SamplingParams(max_tokens=count) for count in (1, 2, 3)]
    outputs = llm.chat(tuple(conversations), params, [{"name": "f"}])
    assert [len(output.token_ids) for output in outputs] == [1, 2, 3]
    assert outputs[1].prompt_token_ids == ids_of("f[user]yy>", llm)
    (only,) = llm.chat(conversations[:1], SHORT)
    assert only.token_ids == alone[0]
    with pytest.raises(ConfigError, match="3 sampling_params were given for 2 prompts"):
        llm.chat(conversations[:2], params)


def test_a_bad_conversation_keeps_its_place(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(_TOOL_TEMPLATE)
    good = [{"role": "user", "content": "x"}]
    outputs = LLM(checkpoint).chat([good, [{"role": "pope", "content": "x"}], good], SHORT)
    assert [output.finish_reason == "error" for output in outputs] == [False, True, False]
    assert "pope" in (outputs[1].error or "")


def test_each_of_several_answers_is_told_apart(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint / "chat_template.jinja").write_text(_TOOL_TEMPLATE)
    llm = LLM(checkpoint, prompt_lookup_num_tokens=0)
    texts = ['f\n{"x": 1}', 'ab\nf\n{"x": 2}', "cd"]
    letters = [iter([*ids_of(text, llm), 256]) for text in texts]
    monkeypatch.setattr(
        answer_sampler,
        "sample_token",
        lambda logits, sequence, allowed: next(letters[sequence.sample_index]),
    )
    params = SamplingParams(n=3, do_sample=True, max_tokens=40)
    outputs = list(llm.stream("x", params, [{"name": "f"}]))
    last = outputs[-1]
    assert [completion.text for completion in last.outputs] == texts
    replies = [completion.reply for completion in last.outputs]
    assert replies == [
        ParsedReply(tool_calls=(ToolCall("f", '{"x": 1}'),)),
        ParsedReply("ab\n", tool_calls=(ToolCall("f", '{"x": 2}'),)),
        ParsedReply("cd"),
    ]
    for index, reply in enumerate(replies):
        deltas = [output.samples[index].delta_reply or ParsedReply() for output in outputs]
        assert ParsedReply.join(deltas) == reply
    assert (last.reply, last.finish_reason) == (replies[0], "stop")


_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|assistant|>", "<mark>")


@pytest.fixture
def with_tags(tmp_path: Path) -> LLM:
    """A folder whose vocabulary has the tags as special tokens."""
    folder = tmp_path / "tags"
    folder.mkdir()
    write_checkpoint(folder, vocab_size=VOCAB + len(_TAGS))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([*_TAGS])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}<|assistant|>"
        "{{ '<think>' if messages[0].content == 'think' }}{{ tools[0].function.name if tools }}"
    )
    return LLM(folder, prompt_lookup_num_tokens=0)


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("think", "算一下</think>四", ParsedReply("四", "算一下")),
        ("x", "<think>算一下</think>\n四", ParsedReply("四", "算一下")),
        ("x", "\n你好<mark>四", ParsedReply("你好四")),
        ("think", "a</think>b</think>👍<mark>", ParsedReply("b👍", "a")),
        ("think", "算", ParsedReply("", "算")),
        (
            "x",
            'go<tool_call>f\n{"x": 1}</tool_call>f\n{}<|assistant|>\n好',
            ParsedReply("go\n好", "", (ToolCall("f", '{"x": 1}'), ToolCall("f", "{}"))),
        ),
    ],
)
def test_tags_that_are_tokens_are_told_by_their_id(
    with_tags: LLM,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    answer: str,
    expected: ParsedReply,
    shown: bool,
) -> None:
    params = SamplingParams(max_tokens=100, skip_special_tokens=not shown)
    _write_answer(monkeypatch, with_tags, answer + "<|endoftext|>")
    outputs = list(with_tags.stream(prompt, params, [{"name": "f"}] if "f" in answer else None))
    text = outputs[-1].text
    for tag in _TAGS:
        answer = answer if shown else answer.replace(tag, "")
    assert (outputs[-1].error, text) == (None, answer)
    assert outputs[-1].reply == expected
    assert ParsedReply.join([o.delta_reply or ParsedReply() for o in outputs]) == expected
    if shown:
        assert all(text[place:].startswith("<|assistant|>") for place in outputs[-1].turn_starts)


def test_a_stop_text_within_a_shown_name_cuts_it(
    with_tags: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_answer(monkeypatch, with_tags, "ab<mark>cd")
    params = SamplingParams(max_tokens=9, skip_special_tokens=False, stop="ark>c")
    output = with_tags.chat([{"role": "user", "content": "x"}], params)
    assert (output.text, output.finish_reason) == ("ab<m", "stop")
    assert output.reply == ParsedReply("ab<m")


def test_with_tool_choice_none_the_model_is_not_told_of_tools(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint / "chat_template.jinja").write_text(_TOOL_TEMPLATE)
    llm = LLM(checkpoint, prompt_lookup_num_tokens=0)
    messages, tools = [{"role": "user", "content": "x"}], [{"name": "f"}]
    params = SamplingParams(max_tokens=4)
    plain = llm.chat(messages, params).prompt_token_ids
    for choice, has_tools in (("auto", True), (None, True), ("none", False)):
        _write_answer(monkeypatch, llm, "f\n{}")
        output = llm.chat(messages, params, tools, tool_choice=choice)
        assert (output.prompt_token_ids == plain) is not has_tools
        call = ParsedReply(tool_calls=(ToolCall("f", "{}"),))
        assert output.reply == (call if has_tools else ParsedReply("f\n{}"))
    _write_answer(monkeypatch, llm, "f\n{}")
    assert [*llm.stream("x", params, tools, "none")][-1].reply == ParsedReply("f\n{}")


@pytest.mark.parametrize("choice", ["any", True, {"type": "allowed_tools"}, {"type": "function"}])
def test_a_tool_choice_that_is_none_is_refused(checkpoint: Path, choice: Any) -> None:
    (checkpoint / "chat_template.jinja").write_text(_TOOL_TEMPLATE)
    llm = LLM(checkpoint)
    with pytest.raises(ConfigError, match='must be "auto", "none", "required" or'):
        llm.chat([{"role": "user", "content": "x"}], SHORT, [{"name": "f"}], tool_choice=choice)
    assert not llm.engine.has_unfinished()


@pytest.mark.parametrize(
    ("params", "is_call"),
    [
        (SamplingParams(max_tokens=20), True),
        (SamplingParams(max_tokens=1), False),
        (SamplingParams(max_tokens=20, stop="\n"), False),
    ],
)
def test_a_name_alone_is_a_call_unless_it_was_cut_off(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, params: SamplingParams, is_call: bool
) -> None:
    (checkpoint / "chat_template.jinja").write_text(_TOOL_TEMPLATE)
    llm = LLM(checkpoint, prompt_lookup_num_tokens=0)
    _write_answer(monkeypatch, llm, "f\n<|endoftext|>")
    output = llm.chat([{"role": "user", "content": "x"}], params, [{"name": "f"}])
    assert output.reply is not None
    assert bool(output.reply.tool_calls) == is_call
    assert (output.reply.content == "") == is_call


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
