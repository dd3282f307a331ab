"""Which template writes a conversation: the folder's, one of several by name, or a given one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.core.errors import CheckpointError, ConfigError, PromptError
from mindformers_glm.tokenizer import load_tokenizer, tokenizer_digest
from mindformers_glm.tokenizer.chat import CHAT_FORMATS, ChatOptions, write_chat
from mindformers_glm.tokenizer.segments import SpecialToken
from tests.unit.tokenizer.conftest import Writer, encode_prompt
from tests.unit.tokenizer.templates import CALLS_IN_TAGS, PLAIN, write

USER = [{"role": "user", "content": "x"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
_TEXT = "{% for m in messages %}{{ m.content }}{% endfor %}"
_TOOL_USE = f"T{{{{ tools[0].function.name }}}}{_TEXT}"
_NAMED = {"default": f"D{_TEXT}", "tool_use": _TOOL_USE, "rag": f"R{_TEXT}"}


def _written(folder: Path, tools: Any = None, **options: Any) -> str:
    tokenizer = load_tokenizer(folder)
    return tokenizer.decode(tokenizer.encode_chat(USER, tools, ChatOptions(**options)))


def _write_list(folder: Path) -> None:
    named = [{"name": name, "template": text} for name, text in _NAMED.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))


def _write_object(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": _NAMED}))


def _write_files(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(_NAMED["default"])
    (folder / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(_NAMED[name])


def _write_json_file(folder: Path) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": _NAMED}))


@pytest.mark.parametrize("place", [_write_list, _write_object, _write_files, _write_json_file])
def test_templates_have_names_wherever_they_stand(write_folder: Writer, place: Any) -> None:
    folder = write_folder(chat_template=None)
    place(folder)
    assert load_tokenizer(folder).has_chat_template
    assert _written(folder) == "Dx"
    assert _written(folder, []) == "Dx"
    assert _written(folder, TOOLS) == "Tfx"
    assert _written(folder, chat_template="rag") == "Rx"
    in_message = [{"role": "system", "content": "", "tools": TOOLS}, *USER]
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode_chat(in_message)) == "Tfx"
    with pytest.raises(ConfigError, match=r"'nope' is neither .*has default, rag, tool_use"):
        _written(folder, chat_template="nope")


def test_named_templates_are_chosen_as_hugging_face_does(write_folder: Writer) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = write_folder(chat_template=None)
    _write_object(folder)
    oracle = PreTrainedTokenizerFast.from_pretrained(str(folder))
    for tools, name in ((None, None), (TOOLS, None), (None, "rag"), (TOOLS, "tool_use")):
        expected = oracle.apply_chat_template(USER, tools, chat_template=name, tokenize=False)
        assert _written(folder, tools, chat_template=name) == expected


def test_the_template_file_takes_the_place_of_the_config(write_folder: Writer) -> None:
    folder = write_folder(f"F{_TEXT}")
    _write_list(folder)
    _write_json_file(folder)
    assert _written(folder) == "Fx"
    (folder / "chat_template.jinja").unlink()
    assert _written(folder) == "Dx"


def test_templates_without_a_default_must_be_named(write_folder: Writer) -> None:
    folder = write_folder(chat_template=None)
    named = {"tool_use": _TOOL_USE, "rag": f"R{_TEXT}"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    with pytest.raises(
        ConfigError, match=r"no default: choose one with chat_template .rag, tool_u"
    ):
        _written(folder)
    assert _written(folder, TOOLS) == "Tfx"


@pytest.mark.parametrize("wrong", [5, ["x"], {"default": 1}, [{"name": "default"}], [{}]])
def test_a_template_that_is_no_text_is_one_sentence(write_folder: Writer, wrong: Any) -> None:
    folder = write_folder(chat_template=None)
    for name in ("tokenizer_config.json", "chat_template.json"):
        (folder / name).write_text(json.dumps({"chat_template": wrong}))
        with pytest.raises(CheckpointError, match=rf"{name}: chat_template must be a text, or sev"):
            load_tokenizer(folder)
        (folder / name).unlink()


def test_every_template_counts_for_the_digest(write_folder: Writer) -> None:
    folder = write_folder()
    digests = {tokenizer_digest(folder)}
    for path in ("chat_template.json", "additional_chat_templates/rag.jinja"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("{}")
        digests.add(tokenizer_digest(folder))
    assert len(digests) == 3


def test_a_template_may_be_given_as_a_text_or_a_file(write_folder: Writer, tmp_path: Path) -> None:
    folder = write_folder(chat_template=None)
    given = tmp_path / "mine.jinja"
    given.write_text(f"M{_TEXT}")
    assert _written(folder, chat_template=str(given)) == "Mx"
    assert _written(folder, chat_template=f"G{_TEXT}") == "Gx"
    with pytest.raises(CheckpointError, match="chat template of chat_template is broken"):
        _written(folder, chat_template="{% if %}")
    given.write_bytes(b"\xff{{")
    with pytest.raises(ConfigError, match="Cannot read"):
        _written(folder, chat_template=str(given))
    with pytest.raises(ConfigError, match="it has none"):
        _written(folder, chat_template="missing.jinja")


def test_variables_of_the_template_are_given_to_it(write_folder: Writer) -> None:
    template = (
        f"{{{{ '!' if enable_thinking is defined and not enable_thinking }}}}{_TEXT}{{{{ a }}}}"
    )
    folder = write_folder(template)
    assert _written(folder) == "x"
    kwargs = {"enable_thinking": False, "a": "<|user|>"}
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode_chat(USER, None, ChatOptions(chat_template_kwargs=kwargs))
    assert tokenizer.decode(ids) == "!x<|user|>"  # it stays text, as that of messages
    with pytest.raises(ConfigError, match="does not read enable_thinkin of chat_template_kwargs"):
        _written(folder, chat_template_kwargs={"enable_thinkin": False})
    with pytest.raises(ConfigError, match="glm4_chat is a built-in format"):
        write_chat("glm4_chat", USER, None, ChatOptions(chat_template_kwargs={"a": 1}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template": 5}, "chat_template must be a template's name"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs must be an object"),
        ({"chat_template_kwargs": {"tools": []}}, "cannot set tools"),
        ({"chat_template_kwargs": {1: 2}}, "must be an object"),
        ({"add_generation_prompt": "yes"}, "add_generation_prompt must be True or False"),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            "give one of them",
        ),
    ],
)
def test_options_of_the_wrong_kind_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChatOptions(**options)


def test_options_of_a_request_go_over_those_of_the_model() -> None:
    model = ChatOptions("a", {"x": 1, "y": 1}, None, True)
    found = ChatOptions(chat_template_kwargs={"y": 2}, continue_final_message=False).over(model)
    assert found == ChatOptions("a", {"x": 1, "y": 2}, None, False)
    assert found.begins_answer
    assert not model.begins_answer


_TALK = [*USER, {"role": "assistant", "content": "The capital is "}]


@pytest.mark.parametrize("text", ["The capital", " y", "a\nb", "<|user|>", "<|us", "天"])
@pytest.mark.parametrize("template", [PLAIN, PLAIN.replace("{% endfor %}", "<|user|>{% endfor %}")])
def test_a_final_message_is_continued_as_hugging_face_does(
    write_folder: Writer, template: str, text: str
) -> None:
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast.from_pretrained(str(write_folder(template)))
    talk = [*USER, {"role": "assistant", "content": text}]
    found = write(template, talk, None, ChatOptions(continue_final_message=True))
    assert found.endswith(f"<|assistant|>\n{text}")
    if template == PLAIN or "<" not in text:  # it takes the last place where the text stands
        expected = oracle.apply_chat_template(talk, tokenize=False, continue_final_message=True)
        assert found == expected


def test_blanks_at_the_end_of_a_continued_message_stay() -> None:
    options = ChatOptions(continue_final_message=True)
    stripped = PLAIN.replace("m.content", "m.content.strip()")
    for template in (PLAIN, stripped):
        assert write(template, _TALK, None, options).endswith("<|assistant|>\nThe capital is ")


def test_no_answer_begins_where_none_is_asked_for() -> None:
    options = ChatOptions(add_generation_prompt=False)
    assert write(PLAIN, USER, None, options) == "[gMASK]<sop><|user|>\nx"
    for name, chat_format in CHAT_FORMATS.items():
        asked, whole = (_text(write_chat(name, USER, None, o)) for o in (options, ChatOptions()))
        assert whole == asked + _text(list(chat_format.opening))


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_the_built_in_formats_continue_a_final_message(name: str) -> None:
    options = ChatOptions(continue_final_message=True)
    thinking = {"role": "assistant", "content": "<think>a</think>b "}
    found = _text(write_chat(name, [*USER, thinking], None, options))
    begin = "答：" if name == "chatglm2" else "<|assistant|>\n"
    assert found.endswith(f"{begin}<think>a</think>b ")
    longer = _text(write_chat(name, [*USER, _TALK[1], *USER]))
    if name not in ("glm_z1", "glm_z1_rumination"):  # which strip blanks of earlier answers
        assert longer.startswith(_text(write_chat(name, _TALK, None, options)))


def test_what_is_no_answer_cannot_be_continued() -> None:
    options = ChatOptions(continue_final_message=True)
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    calling = [*USER, {"role": "assistant", "tool_calls": [call]}]
    with pytest.raises(PromptError, match="the last message of the conversation is none"):
        write(CALLS_IN_TAGS, calling, None, options)
    with pytest.raises(PromptError, match="the last message of the conversation is none"):
        write_chat("glm4_chat", calling, None, options)
    cut = PLAIN.replace("m.content", "m.content.split('</think>')[-1]")
    with pytest.raises(PromptError, match="no place for the text of message 2"):
        write(cut, [*USER, {"role": "assistant", "content": "a</think>b"}], None, options)


def _text(segments: list[Any]) -> str:
    return "".join(s.name if isinstance(s, SpecialToken) else s for s in segments)


@pytest.mark.parametrize(
    ("folder_name", "names", "is_base"),
    [
        ("chatglm3-6b-base", {}, True),
        ("GLM-4-32B-Base-0414", {}, True),
        ("glm-4-9b", {}, True),
        ("glm-4-9b-chat", {"config": "THUDM/glm-4-9b"}, False),
        ("model", {"tokenizer": "THUDM/chatglm3-6b-base"}, True),
        ("model", {"config": "/data/chatglm3_base/"}, True),
        ("model", {"config": "C:\\models\\glm-4-9b"}, True),
        ("models--THUDM--glm-4-9b/snapshots/0a1b", {}, True),
        ("model", {"config": "THUDM/glm-4-9b-chat"}, False),
        ("database", {"config": "THUDM/GLM-4-9B-0414"}, False),
        ("knowledge-base-chat", {}, False),
    ],
)
def test_base_models_are_told_by_their_name(
    write_ranks: Writer, tmp_path: Path, folder_name: str, names: dict[str, str], is_base: bool
) -> None:
    folder = tmp_path / folder_name
    shutil.copytree(write_ranks(name_or_path=names.get("tokenizer", "")), folder)
    (folder / "config.json").write_text(json.dumps({"_name_or_path": names.get("config", "")}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.is_base_model == is_base
    plain, written = tokenizer.encode("x"), tokenizer.encode_chat(USER)
    assert encode_prompt(tokenizer, "x") == (plain if is_base else written)
    assert encode_prompt(tokenizer, "x", True) == written
    (folder / "chat_template.jinja").write_text(PLAIN)
    assert not load_tokenizer(folder).is_base_model


def test_a_base_model_says_once_that_texts_are_taken_as_they_are(
    write_ranks: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mindformers_glm.engine.reply_reader import ReplyParsers
    from mindformers_glm.engine.request_frontend import RequestFrontend

    folder = tmp_path / "glm-4-9b"
    shutil.copytree(write_ranks(), folder)
    frontend = RequestFrontend(load_tokenizer(folder), ReplyParsers("none", "none"))
    for _ in range(2):
        assert not frontend.encode("x")[1]
    assert capsys.readouterr().err.count("this is a base model") == 1
    assert frontend.encode(USER)[1]  # messages are a conversation all the same
