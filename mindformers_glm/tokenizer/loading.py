"""A tokenizer from the files of a checkpoint folder, of whichever of the family's kinds it is."""

import hashlib
import re
from pathlib import Path

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.system.files import read_file, read_json_if_present, require_folder
from mindformers_glm.tokenizer.chat import CHAT_FORMATS
from mindformers_glm.tokenizer.chat_template import ChatTemplate
from mindformers_glm.tokenizer.chat_writer import ChatWriter
from mindformers_glm.tokenizer.fast_vocabulary import load_fast_vocabulary
from mindformers_glm.tokenizer.glm_tokenizer import GlmTokenizer
from mindformers_glm.tokenizer.ranks_vocabulary import load_ranks
from mindformers_glm.tokenizer.replies import ASSISTANT_TOKEN, CLOSE_TAG, detect_parsers
from mindformers_glm.tokenizer.sentencepiece_vocabulary import (
    CHATGLM2_SPECIAL_TOKENS,
    CHATGLM3_SPECIAL_TOKENS,
    load_sentencepiece,
)
from mindformers_glm.tokenizer.template_files import DEFAULT_TEMPLATE, list_template_files
from mindformers_glm.tokenizer.token_ids_only import TokenIdsOnly
from mindformers_glm.tokenizer.tokenizer_config import TokenizerConfig
from mindformers_glm.tokenizer.vocabulary import Vocabulary

# In the order in which a folder's are looked for.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
# What TokenizerConfig reads besides, and the templates.
_CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

_RANKS_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s")
_CHAT_NAME = re.compile(r"[-_.](chat|z1|rumination)([-_.]|$)")
_BASE_NAME = re.compile(r"(^|[-_.])base([-_.]|$)|^glm-4-9b$")
_FIRST_PIECE = b"\n"  # field 1 of the protobuf, with a length
_CHATGLM_SPECIAL_TOKENS = {"chatglm2": CHATGLM2_SPECIAL_TOKENS, "chatglm3": CHATGLM3_SPECIAL_TOKENS}


def load_tokenizer(folder: str | Path) -> GlmTokenizer:
    """Load the tokenizer of a folder, and its chat template or the chat format of its model.

    Code that the folder may bring is not run. A tokenizer.json wins over a tokenizer.model; what
    the latter is, a sentencepiece model or a file of ranks, its content tells.

    Raises:
        CheckpointError: there is neither, or a file is broken.
        UnsupportedError: the file is of another kind of tokenizer than the family's.
    """
    path = require_folder(folder, CheckpointError)
    config = TokenizerConfig.read(path)
    vocabulary, built_in = _load_vocabulary(path, config)
    writer, chat_format, parsers = _choose_chat_format(vocabulary, built_in, config)
    is_base = not writer.has_templates and _is_base_model(path, config)
    return GlmTokenizer(vocabulary, writer, chat_format, parsers, is_base_model=is_base)


def open_tokenizer(folder: str | Path) -> GlmTokenizer:
    """As `load_tokenizer`; a folder that has none takes token ids only."""
    path = require_folder(folder, CheckpointError)
    return TokenIdsOnly(str(path)) if find_tokenizer_file(path) is None else load_tokenizer(path)


def find_tokenizer_file(folder: Path) -> Path | None:
    """Return the file that `load_tokenizer` reads; None if there is none."""
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).exists()), None)


def tokenizer_digest(folder: Path) -> str:
    """Return a digest of all files that `load_tokenizer` reads; those of equal files are equal.

    Raises:
        CheckpointError: a file cannot be read.
    """
    vocabulary = find_tokenizer_file(folder)
    paths = [folder / name for name in _CONFIG_FILES] + ([vocabulary] if vocabulary else [])
    paths += list_template_files(folder)
    contents = {
        str(path.relative_to(folder)): read_file(path, CheckpointError)
        for path in paths
        if path.exists()
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return repr(digests)


def check_vocabulary(tokenizer: GlmTokenizer, vocab_size: int, folder: str | Path) -> None:
    """Check that the network knows all the tokenizer's token ids.

    Raises:
        CheckpointError: it does not.
    """
    if tokenizer.num_token_ids > vocab_size:
        raise CheckpointError(
            f"The tokenizer in {folder} has token ids up to {tokenizer.num_token_ids - 1}, the "
            f"network only vocab_size={vocab_size}: the files are of different models."
        )


def _load_vocabulary(folder: Path, config: TokenizerConfig) -> tuple[Vocabulary, str | None]:
    """Return the vocabulary, and the chat format that it tells, a name in CHAT_FORMATS."""
    path = find_tokenizer_file(folder)
    if path is None:
        raise CheckpointError(
            f"{folder} has no tokenizer.json and no tokenizer.model: download the complete model "
            "folder."
        )
    content = read_file(path, CheckpointError)
    if path.name == "tokenizer.json":
        return load_fast_vocabulary(path, config), None  # its library reads the file itself
    if content.startswith(_FIRST_PIECE):
        model = _tell_chatglm(folder, config)
        return load_sentencepiece(path, content, _CHATGLM_SPECIAL_TOKENS[model], config), model
    if _RANKS_LINE.match(content):
        return load_ranks(path, content, config), "glm4_chat"
    raise CheckpointError(
        f"{path} is neither a sentencepiece model (ChatGLM2, ChatGLM3) nor a file of ranks in "
        "base64 (glm-4-9b): it is incomplete or damaged, download it again."
    )


def _tell_chatglm(folder: Path, config: TokenizerConfig) -> str:
    """Tell ChatGLM2 from ChatGLM3: the sentencepiece model is the same, the special tokens not.

    Raises:
        CheckpointError: nothing in the folder tells.
    """
    added = {token["content"] for token in config.added_tokens.values()}
    template = "".join(config.chat_templates.values())
    for name in added:  # a fine-tune's tokens tell nothing
        template = template.replace(name, "")
    if "<|user|>" in added or "<|" in template:
        return "chatglm3"
    code = folder / "tokenization_chatglm.py"  # read, not run
    if code.exists():
        return "chatglm3" if b"<|user|>" in read_file(code, CheckpointError) else "chatglm2"
    raw = read_json_if_present(folder / "config.json", CheckpointError)
    for name in (config.name, str(raw.get("_name_or_path", ""))):
        for model in _CHATGLM_SPECIAL_TOKENS:
            if model in name.lower():
                return model
    raise CheckpointError(
        f"{folder} does not tell whether its tokenizer is that of ChatGLM2 or of ChatGLM3: put "
        f'"name_or_path": "THUDM/chatglm3-6b" (or chatglm2-6b) into {config.path}.'
    )


def _is_base_model(folder: Path, config: TokenizerConfig) -> bool:
    """Whether the model's name says that it goes on with texts and was not trained to answer.

    The folder's own name counts first, then those that its files bring: a fine-tuned model keeps
    the name of the base model there.
    """
    raw = read_json_if_present(folder / "config.json", CheckpointError)
    cached = [part for part in folder.absolute().parts if part.startswith("models--")]
    for path in (folder.absolute().name, *cached, config.name, str(raw.get("_name_or_path", ""))):
        name = re.split(r"[/\\]|--", path.rstrip("/\\"))[-1].lower()
        if _CHAT_NAME.search(name):
            return False
        if _BASE_NAME.search(name):
            return True
    return False


def _choose_chat_format(
    vocabulary: Vocabulary, built_in: str | None, config: TokenizerConfig
) -> tuple[ChatWriter, str, tuple[str, str]]:
    """Return the checkpoint's own templates, else the format built in; what it is; its parsers."""
    templates = config.chat_templates
    source = str(config.path.parent)

    default = templates.get(DEFAULT_TEMPLATE)
    if built_in == "chatglm3" and default is not None:
        template = ChatTemplate(default, config.named_tokens, vocabulary.special_tokens, source)
        if _is_imitation(template):
            templates = {}
    writer = ChatWriter(templates, built_in, config.named_tokens, vocabulary.special_tokens, source)
    if templates:
        parsers = _choose_parsers(writer.template_text(None), vocabulary, built_in)
        return writer, config.template_place, parsers
    if built_in is not None:
        chat_format = CHAT_FORMATS[built_in]
        parsers = (chat_format.tool_call_parser, chat_format.reasoning_parser)
        return writer, f"{built_in}, built in", parsers
    return writer, "none", ("none", "none")


def _choose_parsers(
    chat_template: str, vocabulary: Vocabulary, built_in: str | None
) -> tuple[str, str]:
    """Return the parsers that the template gives away, else those of the model that it is for.

    A tool that fine-tunes a model writes templates of its own, but not another way of answering.
    """
    tool_calls, reasoning = detect_parsers(chat_template)
    names = vocabulary.special_tokens.ids
    if (tool_calls, reasoning) == ("none", "none"):
        if built_in is not None:
            chat_format = CHAT_FORMATS[built_in]
            tool_calls, reasoning = chat_format.tool_call_parser, chat_format.reasoning_parser
        elif ASSISTANT_TOKEN in names:
            tool_calls = "glm4"
    if reasoning == "none" and CLOSE_TAG in names:
        reasoning = "glm_z1"  # it has a token for the end of its thoughts
    return tool_calls, reasoning


def _is_imitation(template: ChatTemplate) -> bool:
    """Whether it is one of the templates that came with ChatGLM3.

    They leave tools out, and give other ids than ChatGLM3's own code, which tokenizes the role line
    and the text apart: they imitate the blank that sentencepiece puts before the text, and one of
    them also that before the line, where sentencepiece puts another.
    """
    written = template.render([{"role": "user", "content": "x"}])
    return re.fullmatch(r"\[gMASK\]sop<\|user\|> ?\n x<\|assistant\|>", written) is not None
