"""tokenizer_config.json and its neighbours, as transformers 4 or 5 wrote them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.system.files import read_json_if_present
from mindformers_glm.tokenizer.template_files import read_chat_templates
from mindformers_glm.tokenizer.vocabulary import check_tokens

# Entries that name one token; a text, or an object with "content".
_TOKEN_KEYS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True)
class TokenizerConfig:
    """What a folder says of its tokenizer beside the vocabulary itself.

    Args:
        path: tokenizer_config.json, which need not exist.
        named_tokens: eos_token and the like, and the list additional_special_tokens.
        added_tokens: id to the token's properties, of added_tokens_decoder and added_tokens.json.
        chat_templates: texts by name; most folders have one, "default".
        template_place: where they stand.
        name: the model's name on the hub, or where it was trained.
    """

    path: Path
    named_tokens: Mapping[str, Any]
    added_tokens: Mapping[int, Mapping[str, Any]]
    add_prefix_space: bool
    chat_templates: Mapping[str, str]
    template_place: str
    name: str

    @classmethod
    def read(cls, folder: Path) -> "TokenizerConfig":
        """Read the files of a folder, as far as they are there.

        Raises:
            CheckpointError: one of them is broken.
        """
        path = folder / "tokenizer_config.json"
        raw = read_json_if_present(path, CheckpointError)
        if "added_tokens_decoder" not in raw:  # older files; Hugging Face lets the map win then
            raw |= read_json_if_present(folder / "special_tokens_map.json", CheckpointError)
        templates, place = read_chat_templates(folder, raw)
        named_tokens = _read_named_tokens(raw, path)
        added_tokens = _read_added_tokens(raw, path)
        # Beside a tokenizer.json the map is all that counts, for Hugging Face too.
        if not added_tokens or not (folder / "tokenizer.json").exists():
            added_tokens = _read_added_tokens_file(folder, named_tokens) | added_tokens
        check_tokens([token["content"] for token in added_tokens.values()])
        for tokens in named_tokens.values():
            check_tokens(tokens if isinstance(tokens, list) else [tokens])
        return cls(
            path=path,
            named_tokens=named_tokens,
            added_tokens=added_tokens,
            add_prefix_space=raw.get("add_prefix_space", False),
            chat_templates=templates,
            template_place=place,
            name=str(raw.get("name_or_path", "")),
        )


def _read_named_tokens(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    tokens: dict[str, Any] = {
        key: _read_token(raw[key], key, path) for key in _TOKEN_KEYS if raw.get(key) is not None
    }
    # transformers 5 writes extra_special_tokens as a list; 4 wants an object there and has the list
    # under the other name.
    extra = raw.get("additional_special_tokens") or raw.get("extra_special_tokens") or []
    if isinstance(extra, Mapping):
        extra = list(extra.values())
    if not isinstance(extra, list):
        raise CheckpointError(
            f"{path}: additional_special_tokens must be a list of tokens, got {extra!r:.80}."
        )
    tokens["additional_special_tokens"] = [
        _read_token(token, "additional_special_tokens", path) for token in extra
    ]
    return tokens


def _read_token(value: Any, key: str, path: Path) -> str:
    token = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(token, str):
        raise CheckpointError(f"{path}: {key} must be a text, got {value!r:.80}.")
    return token


def _read_added_tokens(raw: Mapping[str, Any], path: Path) -> dict[int, Mapping[str, Any]]:
    added = raw.get("added_tokens_decoder") or {}
    try:
        tokens = {int(token_id): token for token_id, token in added.items()}
    except (AttributeError, ValueError):
        raise added_tokens_error(path) from None
    for token in tokens.values():
        if not isinstance(token, Mapping) or not isinstance(token.get("content"), str):
            raise added_tokens_error(path)
    return tokens


def _read_added_tokens_file(
    folder: Path, named_tokens: Mapping[str, Any]
) -> dict[int, Mapping[str, Any]]:
    """Read the tokens and ids of added_tokens.json; those that have a role are special."""
    path = folder / "added_tokens.json"
    raw = read_json_if_present(path, CheckpointError)
    if any(type(token_id) is not int for token_id in raw.values()):
        raise CheckpointError(f"{path} must map tokens to ids: download the file again.")
    extra = named_tokens["additional_special_tokens"]
    special = {*extra, *(name for name in named_tokens.values() if isinstance(name, str))}
    return {
        token_id: {"content": name, "special": name in special, "normalized": name not in special}
        for name, token_id in raw.items()
    }


def added_tokens_error(path: Path) -> CheckpointError:
    """Say that added_tokens_decoder is not what it should be."""
    return CheckpointError(f"{path}: added_tokens_decoder must map ids to tokens.")
