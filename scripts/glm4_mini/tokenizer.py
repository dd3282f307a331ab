"""The tokenizer of glm4-mini: byte-level BPE with GLM-4's pre-tokenizer and special tokens."""

import itertools
import json
import re
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from glm4_mini import skills
from glm4_mini.corpus import training_examples

VOCAB_SIZE = 3072

# Order and spelling of GLM-4's special tokens (glm-4-9b-chat tokenizer_config.json).
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
]
PAD_TOKEN = "<|endoftext|>"
EOS_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")

# GLM-4's pre-tokenizer expression (glm-4-9b-chat tokenizer.json).
GLM4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Same shape as GLM-4-0414: a role token, a newline, the text; the reply starts with a newline, a
# tool call with the tool's name (kept in `metadata` when it is history).
CHAT_TEMPLATE = """[gMASK]<sop>
{%- if tools -%}
<|system|>
{{ '# 可用工具' }}
{%- for tool in tools %}
{%- set function = tool.function if tool.function is defined else tool %}
{{ '\\n\\n## ' + function.name + '\\n\\n' + (function | tojson(indent=4, ensure_ascii=False)) }}
{%- endfor %}
{{ '\\n\\n需要工具时，第一行写工具名，第二行写 JSON 参数。' }}
{%- endif -%}
{%- for message in messages -%}
{%- set role = 'observation' if message.role == 'tool' else message.role -%}
{{ '<|' + role + '|>' }}
{%- if message.metadata is defined %}{{ message.metadata }}{% endif -%}
{{ '\\n' }}
{%- if role == 'assistant' %}{{ message.content | trim }}{% else %}{{ message.content }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif -%}
"""


def train_tokenizer(seed: int = 0) -> Tokenizer:
    """Train the BPE merges on a sample of the training text.

    Digits are cut out of that text, so no merge holds a digit and every digit stays one token:
    arithmetic is then a matter of single digits.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GLM4_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(seed), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def to_hugging_face(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """Wrap the trained tokenizer the way GLM-4-0414 ships it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|user|>",
        pad_token=PAD_TOKEN,
        additional_special_tokens=SPECIAL_TOKENS,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        padding_side="left",
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json (the chat template inside the latter)."""
    tokenizer.save_pretrained(folder)
    (folder / "special_tokens_map.json").unlink(
        missing_ok=True
    )  # says nothing tokenizer_config does not
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["chat_template"] = CHAT_TEMPLATE
    text = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
    config_path.write_text(text + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def _tokenizer_texts(seed: int) -> list[str]:
    texts: dict[str, None] = {}  # a set that keeps its order
    schemas: dict[str, None] = {}
    for example in itertools.islice(training_examples(seed), 20000):
        contents = [message["content"] for message in example.messages]
        if example.category.startswith("copy"):
            contents = []  # random rows of words: the words themselves follow below
        contents.append(example.answer)
        texts.update(dict.fromkeys(re.sub(r"[0-9]+", "\n", text) for text in contents))
        schemas.update(
            (json.dumps(tool["function"], indent=4, ensure_ascii=False), None)
            for tool in example.tools
        )
    characters = sorted({character for text in texts for character in text if character > "\u2e80"})
    words = sorted({word for text in texts for word in re.findall(r" ?[A-Za-z]+", text)})
    # every character and word is worth few tokens; those that are copied are one token each
    boosted = characters * 20 + words * 20 + list(schemas) * 20
    for language in ("zh", "en"):
        for word in (*skills.all_words(language), *skills.CITIES, *skills.CITIES_EN):
            boosted += [word, " " + word] * 40
    return [*texts, *boosted]
