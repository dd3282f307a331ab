"""The names under which the family is published, and the repository each of them means."""

import difflib

from mindformers_glm.core.errors import ConfigError

# Repositories have the same name on both hubs, below one owner on each. README of zai-org/GLM-4
# (0414, glm-4-9b), xinference's and LLaMA-Factory's model lists (chatglm, codegeex4).
_PUBLISHED = (
    "GLM-4-9B-0414",
    "GLM-4-32B-0414",
    "GLM-4-32B-Base-0414",
    "GLM-Z1-9B-0414",
    "GLM-Z1-32B-0414",
    "GLM-Z1-Rumination-32B-0414",
    "glm-4-9b",
    "glm-4-9b-chat",
    "glm-4-9b-chat-1m",
    "glm-4-9b-hf",
    "glm-4-9b-chat-hf",
    "chatglm2-6b",
    "chatglm3-6b",
    "chatglm3-6b-32k",
    "codegeex4-all-9b",
)
_NAMES = {name.lower(): name for name in _PUBLISHED}
_OWNERS = {"huggingface": "zai-org", "modelscope": "ZhipuAI"}
# THUDM is what zai-org was called on Hugging Face.
_FAMILY_OWNERS = {owner.lower() for owner in (*_OWNERS.values(), "THUDM")}


def find_repository(name: str, source: str) -> str:
    """Return the repository that `name` means on `source`, a hub's name as in `_OWNERS`.

    A published model may be called by its name alone or below any of its owners, old or of the
    other hub, in capitals or not. Any other owner/name is taken as it is.

    Raises:
        ConfigError: a name without an owner that is none of the family's.
    """
    owner, slash, short = name.rpartition("/")
    published = _NAMES.get(short.lower())
    if published is not None and (not slash or owner.lower() in _FAMILY_OWNERS):
        return f"{_OWNERS[source]}/{published}"
    if not slash:
        nearest = difflib.get_close_matches(name.lower(), _NAMES, n=1)
        guess = f"did you mean {_NAMES[nearest[0]]}? Another" if nearest else "a"
        raise ConfigError(
            f"No published model is called {name!r}: {guess} repository is named with its owner, "
            "OWNER/NAME."
        )
    return name
