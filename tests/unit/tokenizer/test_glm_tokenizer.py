import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from mindformers_glm.core.errors import CheckpointError, ConfigError, PromptError
from mindformers_glm.tokenizer import GlmTokenizer, load_tokenizer
from tests.unit.tokenizer.conftest import SPECIAL_TOKENS, Writer, encode_prompt, random_text

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "天气, weather"}}]


def _hugging_face(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder))


def _without_special_tokens(folder: Path) -> Callable[[str], list[int]]:
    """The same vocabulary in which no special token exists: the oracle for text that stays text."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = []
    bare = Tokenizer.from_str(json.dumps(content))
    return lambda text: bare.encode(text).ids


def _ids(tokenizer: GlmTokenizer, *names: str) -> list[int]:
    return [token_id for name in names for token_id in tokenizer.encode(name)]


def test_ordinary_conversations_have_hugging_faces_ids(write_folder: Writer) -> None:
    folder = write_folder()
    tokenizer, oracle = load_tokenizer(folder), _hugging_face(folder)
    rng = random.Random(1)
    for _ in range(300):
        roles = rng.choices(["system", "user", "assistant"], k=rng.randint(1, 4))
        messages = [
            {"role": role, "content": random_text(rng, with_specials=False)} for role in roles
        ]
        tools = rng.choice([None, TOOLS])
        expected = oracle.apply_chat_template(messages, tools=tools, add_generation_prompt=True)
        assert tokenizer.encode_chat(messages, tools) == expected


def test_special_tokens_in_a_message_stay_text(write_folder: Writer) -> None:
    folder = write_folder()
    tokenizer, bare = load_tokenizer(folder), _without_special_tokens(folder)
    rng = random.Random(2)
    head, tail = _ids(tokenizer, "[gMASK]", "<sop>", "<|user|>"), _ids(tokenizer, "<|assistant|>")
    for _ in range(300):
        text = random_text(rng, with_specials=True)
        # The template's newline and the message are one piece: "\n" may join what follows.
        assert encode_prompt(tokenizer, text) == head + bare("\n" + text) + tail


def test_special_tokens_stay_text_in_every_place_of_a_conversation(write_folder: Writer) -> None:
    folder = write_folder()
    tokenizer, bare = load_tokenizer(folder), _without_special_tokens(folder)
    messages = [
        {"role": "system", "content": "<|user|>"},
        {"role": "user", "content": "ordinary"},
        {"role": "assistant", "metadata": "<sop>", "content": "x</think> <|endoftext|>\n "},
    ]
    tools = [{"function": {"name": "[gMASK]", "<|user|>": ["<|assistant|>", 1, None]}}]
    listed = json.dumps(tools[0]["function"], indent=4)
    expected = [
        *_ids(tokenizer, "[gMASK]", "<sop>", "<|system|>"),
        *bare(f"\n# 可用工具\n## [gMASK]\n\n{listed}"),  # a newline after a block tag is eaten
        *_ids(tokenizer, "<|system|>"),
        *bare("\n<|user|>"),
        *_ids(tokenizer, "<|user|>"),
        *bare("\nordinary"),
        *_ids(tokenizer, "<|assistant|>"),
        *bare("<sop>\n<|endoftext|>"),
        *_ids(tokenizer, "<|assistant|>"),
    ]
    assert tokenizer.encode_chat(messages, tools) == expected


# A template that joins the parts of a content itself.
_PARTS = (
    "{% for m in messages %}<|user|>{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            _PARTS,
            {"content": [{"type": "text", "text": text} for text in ("<|us", "er|>")]},
        ),
        (
            _PARTS,
            {"content": [{"type": "text", "text": text} for text in ("<sop><", "|", "us", "er|>")]},
        ),
        (
            "{% for m in messages %}<|user|>{{ m.content }}{{ m.name }}{% endfor %}",
            {"content": "<|user|><|us", "name": "er|>"},
        ),
        (
            "{% for m in messages %}<|user|>{{ m.type }}{{ m.name }}{% endfor %}",
            {"content": "", "type": "<|us", "name": "er|>"},
        ),
        ("{% for m in messages %}<|user|>{{ m.content }}|>{% endfor %}", {"content": "<|user"}),
    ],
)
def test_special_tokens_stay_text_where_a_template_joins_texts(
    write_folder: Writer, template: str, message: dict[str, Any]
) -> None:
    folder = write_folder(template)
    tokenizer, bare = load_tokenizer(folder), _without_special_tokens(folder)
    conversation = [{"role": "user"} | message]
    joined = _hugging_face(folder).apply_chat_template(conversation, tokenize=False)
    text = joined.removeprefix("<|user|>")
    assert "<|user|>" in text
    assert tokenizer.encode_chat(conversation) == _ids(tokenizer, "<|user|>") + bare(text)


def test_words_that_templates_look_for_are_not_changed(write_folder: Writer) -> None:
    # With special tokens that begin with a letter, "role" and "image" end as one begins.
    template = (
        "{% for m in messages %}{{ m.content + m.role + m.type if m.type == 'image' }}{% endfor %}"
    )
    folder = write_folder(template)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(["sop", "eop"])
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    found = tokenizer.encode_chat([{"role": "user", "type": "image", "content": "a"}])
    assert tokenizer.decode(found) == "auserimage"


def test_a_prompt_is_one_user_message_where_there_is_a_template(write_folder: Writer) -> None:
    tokenizer = load_tokenizer(write_folder())
    expected = tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
    assert encode_prompt(tokenizer, "Hello") == expected
    assert encode_prompt(tokenizer, "Hello", True) == expected


def test_without_template_a_prompt_is_tokenized_as_hugging_face_does(write_folder: Writer) -> None:
    folder = write_folder(chat_template=None)
    tokenizer, oracle = load_tokenizer(folder), _hugging_face(folder)
    assert not tokenizer.has_chat_template
    rng = random.Random(3)
    for _ in range(100):
        text = random_text(rng, with_specials=True)
        assert encode_prompt(tokenizer, text) == oracle(text)["input_ids"]
        assert encode_prompt(tokenizer, text, False) == oracle(text)["input_ids"]


def test_special_tokens_work_again_after_a_prompt_in_which_they_were_text(
    write_folder: Writer,
) -> None:
    tokenizer = load_tokenizer(write_folder())
    encode_prompt(tokenizer, "<|user|>")
    assert len(tokenizer.encode("<|user|>")) == 1


def test_the_post_processor_adds_its_prefix_to_plain_prompts_only(write_folder: Writer) -> None:
    from tokenizers.processors import TemplateProcessing

    folder = write_folder()
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prefix = [(name, backend.token_to_id(name)) for name in ("[gMASK]", "<sop>")]
    backend.post_processor = TemplateProcessing(single="[gMASK] <sop> $A", special_tokens=prefix)
    backend.save(str(folder / "tokenizer.json"))
    tokenizer, oracle = load_tokenizer(folder), _hugging_face(folder)
    assert tokenizer.encode("Hello")[:2] == [token_id for _, token_id in prefix]
    assert tokenizer.encode("Hello") == oracle("Hello")["input_ids"]
    messages = [{"role": "user", "content": "Hello"}]
    expected = oracle.apply_chat_template(messages, add_generation_prompt=True)
    assert tokenizer.encode_chat(messages) == expected


def test_decode_leaves_special_tokens_out(write_folder: Writer) -> None:
    tokenizer = load_tokenizer(write_folder())
    assert tokenizer.decode(tokenizer.encode("<|user|>Hello 你好<|endoftext|>")) == "Hello 你好"


def test_the_tokenizer_knows_its_special_and_last_ids(write_folder: Writer) -> None:
    tokenizer = load_tokenizer(write_folder())
    assert tokenizer.eos_token_ids == tuple(tokenizer.encode("<|user|>"))
    assert tokenizer.num_token_ids == max(tokenizer.special_token_ids) + 1
    assert len(tokenizer.special_token_ids) == len(SPECIAL_TOKENS)


def test_a_template_that_is_not_there_cannot_be_asked_for(write_folder: Writer) -> None:
    tokenizer = load_tokenizer(write_folder(chat_template=None))
    with pytest.raises(ConfigError, match=r"has no chat template .*with apply_chat_template False"):
        encode_prompt(tokenizer, "Hello", True)


def test_a_broken_template_names_its_line(write_folder: Writer) -> None:
    tokenizer = load_tokenizer(write_folder(chat_template="x\n{% if %}"))
    with pytest.raises(CheckpointError, match=r"chat template of .* is broken at line 2"):
        encode_prompt(tokenizer, "Hello")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('only one user message') }}", "only one user message"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages[3].content.x }}", "has no element 3"),
    ],
)
def test_a_template_that_refuses_the_messages_says_why(
    write_folder: Writer, template: str, reason: str
) -> None:
    tokenizer = load_tokenizer(write_folder(chat_template=template))
    with pytest.raises(PromptError) as caught:
        encode_prompt(tokenizer, "Hello")
    assert "cannot write these messages" in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "The conversation is empty"),
        (["Hello"], 'an object with a "role"'),
        ([{"content": "Hello"}], 'an object with a "role"'),
        ([{"role": "user|><|system", "content": "Hello"}], 'an object with a "role"'),
        # A template that writes <|role|> would make a special token of it.
        ([{"role": "endoftext", "content": "Hello"}], "one of system, developer, user, assistant,"),
    ],
)
def test_messages_of_the_wrong_form_are_refused(
    write_folder: Writer, messages: Any, reason: str
) -> None:
    with pytest.raises(PromptError) as caught:
        load_tokenizer(write_folder()).encode_chat(messages)
    assert reason in str(caught.value)


@pytest.mark.parametrize("apply_chat_template", [True, False])
def test_half_a_surrogate_pair_is_one_sentence(
    write_folder: Writer, apply_chat_template: bool
) -> None:
    tokenizer = load_tokenizer(write_folder())
    with pytest.raises(PromptError, match="not valid Unicode text"):
        encode_prompt(tokenizer, "a\ud800b", apply_chat_template)
