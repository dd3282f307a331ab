"""The names under which the family is published, and what each of them means: a repository, and
the folder that `mindformers-glm download` puts it into."""

import difflib
import os
import re
from pathlib import Path

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.system.log import note

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
_HUB_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
# THUDM is what zai-org was called on Hugging Face.
_FAMILY_OWNERS = {owner.lower() for owner in (*_OWNERS.values(), "THUDM")}


def find_repository(name: str, source: str) -> str:
    """Return the repository that `name` means on `source`, a hub's name as in `_OWNERS`.

    A published model may be called by its name alone or below any of its owners, old or of the
    other hub, in capitals or not. Any other owner/name is taken as it is.

    Raises:
        ConfigError: a name without an owner that is none of the family's.
    """
    if published := _find_published(name):
        return f"{_OWNERS[source]}/{published}"
    if "/" not in name:
        nearest = difflib.get_close_matches(name.lower(), _NAMES, n=1)
        guess = f"did you mean {_NAMES[nearest[0]]}? Another" if nearest else "a"
        raise ConfigError(
            f"No published model is called {name!r}: {guess} repository is named with its owner, "
            "OWNER/NAME."
        )
    return name


def default_folder(repo_id: str) -> Path:
    """Where `download` puts a repository unless it is told otherwise."""
    return Path(repo_id.rpartition("/")[2])


def locate_folder(folder: str | Path) -> str | Path:
    """Return the folder that a name on a hub means: the one that `download` has made.

    Whatever exists, and what cannot be a hub's name, is returned as it is.

    Raises:
        ConfigError: it is such a name, and has not been downloaded into the working directory.
    """
    if not isinstance(folder, str | Path) or os.path.exists(os.path.expanduser(folder)):
        return folder
    name = str(folder).rstrip("/")
    owner, _, _ = name.rpartition("/")
    published = _find_published(name)
    # Below a folder of this name it is a path, and not written as it should be.
    is_repository = _HUB_NAME.fullmatch(name) and owner and not os.path.exists(owner)
    if not (published or is_repository):
        return folder
    place = default_folder(published or name)
    if place.is_dir():
        note(f"{name} is taken from {place.absolute()}, where `mindformers-glm download` puts it")
        return place
    raise ConfigError(
        f"The folder {name} does not exist, and the model of this name is not in "
        f"{place.absolute()} either: `mindformers-glm download {published or name}` puts it there; "
        "or give the path of a Hugging Face folder."
    )


def _find_published(name: str) -> str | None:
    owner, slash, short = name.rpartition("/")
    is_of_the_family = not slash or owner.lower() in _FAMILY_OWNERS
    return _NAMES.get(short.lower()) if is_of_the_family else None
