"""A tokenizer from the files of a Hugging Face folder, as transformers 4 or 5 wrote them."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mindformers_glm.config.files import (
    LFS_MAGIC,
    lfs_pointer_message,
    read_json_object,
    require_folder,
)
from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.tokenizer.glm_tokenizer import GlmTokenizer

# Entries of tokenizer_config.json that name one token; a text, or an object with "content".
_TOKEN_KEYS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def load_tokenizer(folder: str | Path) -> GlmTokenizer:
    """Load the fast tokenizer and the chat template of a folder.

    Code that the folder may bring is not run, and `tokenizer_class` is not looked at: the file
    tokenizer.json is complete without it.

    Raises:
        CheckpointError: tokenizer.json is missing, or a file is broken.
        UnsupportedError: it is not a byte-level tokenizer.
    """
    path = require_folder(folder, CheckpointError)
    tokenizer_file = path / "tokenizer.json"
    _check_tokenizer_file(tokenizer_file)
    settings = _read_settings(path)
    with _quiet():
        from tokenizers.decoders import ByteLevel
        from transformers import PreTrainedTokenizerFast

        try:
            fast_tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), **settings)
        except Exception as problem:  # the Rust library raises plain Exception
            raise CheckpointError(
                f"{tokenizer_file} cannot be read as a tokenizer ({problem}): download it again."
            ) from problem
    # Decoding must be byte for byte, so that text can be streamed (detokenizer.py).
    decoder = fast_tokenizer.backend_tokenizer.decoder
    if not isinstance(decoder, ByteLevel):
        raise UnsupportedError(
            f"{tokenizer_file}: a GLM-4 tokenizer has a ByteLevel decoder, this one has "
            f"{type(decoder).__name__}."
        )
    # Limits that the file may have been saved with; the engine has its own.
    fast_tokenizer.backend_tokenizer.no_truncation()
    fast_tokenizer.backend_tokenizer.no_padding()
    return GlmTokenizer(fast_tokenizer, str(path))


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


def _check_tokenizer_file(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist: download the complete model folder. A tokenizer.model alone "
            "(ChatGLM2, ChatGLM3, glm-4-9b-chat) cannot be read by this version."
        )
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_MAGIC)) == LFS_MAGIC
    except OSError as problem:
        raise CheckpointError(f"Cannot read {path}: {problem.strerror}.") from None
    if is_pointer:
        raise CheckpointError(lfs_pointer_message(path))


def _read_settings(folder: Path) -> dict[str, Any]:
    """Return the arguments for PreTrainedTokenizerFast that matter here."""
    raw = _read_if_present(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in raw:  # older files; Hugging Face lets the map win then
        raw |= _read_if_present(folder / "special_tokens_map.json")
    settings: dict[str, Any] = {
        key: _read_token(raw[key], key, folder) for key in _TOKEN_KEYS if raw.get(key) is not None
    }
    # transformers 5 writes extra_special_tokens as a list; 4 wants an object there and has the list
    # under the other name.
    extra = raw.get("additional_special_tokens") or raw.get("extra_special_tokens") or []
    if isinstance(extra, Mapping):
        extra = list(extra.values())
    settings["additional_special_tokens"] = [
        _read_token(token, "additional_special_tokens", folder) for token in extra
    ]
    settings["added_tokens_decoder"] = _read_added_tokens(raw, folder)
    settings["add_prefix_space"] = raw.get("add_prefix_space", False)
    settings["chat_template"] = _read_chat_template(raw, folder)
    return settings


def _read_if_present(path: Path) -> dict[str, Any]:
    return read_json_object(path, CheckpointError) if path.exists() else {}


def _read_token(value: Any, key: str, folder: Path) -> str:
    token = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(token, str):
        raise CheckpointError(
            f"{folder}/tokenizer_config.json: {key} must be a text, got {value!r}."
        )
    return token


def _read_added_tokens(raw: Mapping[str, Any], folder: Path) -> dict[int, Any]:
    from tokenizers import AddedToken

    added = raw.get("added_tokens_decoder") or {}
    try:
        return {int(token_id): AddedToken(**token) for token_id, token in added.items()}
    except (AttributeError, TypeError, ValueError):
        raise CheckpointError(
            f"{folder}/tokenizer_config.json: added_tokens_decoder must map ids to tokens."
        ) from None


def _read_chat_template(raw: Mapping[str, Any], folder: Path) -> str | None:
    """Return the template: the file's, else tokenizer_config.json's."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as problem:
            raise CheckpointError(f"Cannot read {path}: {problem}.") from None
        if text.startswith(LFS_MAGIC.decode()):
            raise CheckpointError(lfs_pointer_message(path))
        if not text.strip():
            raise CheckpointError(f"{path} is empty: download it again, or delete it.")
        return text
    template = raw.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [entry for entry in template if isinstance(entry, Mapping)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise CheckpointError(
            f"{folder}/tokenizer_config.json: chat_template must be a text, got "
            f"{json.dumps(template)[:80]}."
        )
    return template


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what transformers says while it is imported and loads away from the user.

    It warns for example that PyTorch is missing, which is as it should be.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
