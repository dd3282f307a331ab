"""Which replica answers a request: the one that has most likely seen the beginning of its prompt.

Source: consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016,
arXiv:1608.01350), over the order of rendezvous hashing (Thaler, Ravishankar 1998). Ingresses need
not talk to each other: the same beginning leads each of them to the same replicas.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterable
from typing import Any, Protocol, TypeVar

# Of the prompt: long enough that two system prompts differ, short enough that questions about one
# document stay together.
_MAX_CHARACTERS = 1024
_FIELDS = ("system", "instructions", "tools", "messages", "input", "prompt", "inputs")
_LOAD_FACTOR = 1.25  # of the mean load, that a replica may have before its requests go elsewhere


class Loaded(Protocol):
    """What is chosen from."""

    @property
    def name(self) -> str:
        """Stays the same for as long as the replica lives."""
        ...

    @property
    def load(self) -> int:
        """Requests under way."""
        ...


Item = TypeVar("Item", bound=Loaded)


def prompt_beginning(body: bytes) -> bytes:
    """What of a request's body its prompt begins with; empty where nothing can be told."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):  # the replica says what is wrong with it
        return b""
    if not isinstance(fields, dict):
        return b""
    parts: list[str] = []
    for name in _FIELDS:
        parts.extend(_texts(fields.get(name)))
        if sum(map(len, parts)) >= _MAX_CHARACTERS:
            break
    return "\n".join(parts)[:_MAX_CHARACTERS].encode("utf-8", "replace")


def _texts(value: Any) -> Iterable[str]:
    """The texts of a prompt in their order, whatever form it has; token ids count as texts."""
    stack, found = [value], 0
    while stack and found < _MAX_CHARACTERS:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(reversed(item.values()))
        elif isinstance(item, list):
            stack.extend(reversed(item[:_MAX_CHARACTERS]))
        elif isinstance(item, (str, int, float)):
            text = str(item)[:_MAX_CHARACTERS] if isinstance(item, str) else repr(item)
            found += len(text) + 1
            yield text


def choose_replica(
    replicas: Iterable[Item], beginning: bytes, avoided: Collection[str] = ()
) -> Item | None:
    """The replica for a prompt that begins so; None where there is none.

    Args:
        avoided: names of replicas that have failed this request: chosen only where all have.
    """
    every = list(replicas)
    usable = [replica for replica in every if replica.name not in avoided] or every
    if not usable:
        return None
    if not beginning:
        return min(usable, key=lambda replica: (replica.load, replica.name))
    most = math.ceil(_LOAD_FACTOR * (sum(replica.load for replica in usable) + 1) / len(usable))
    ranked = sorted(usable, key=lambda replica: _weight(replica.name, beginning), reverse=True)
    return next(replica for replica in ranked if replica.load < most)  # all cannot have more


def _weight(name: str, beginning: bytes) -> bytes:
    return hashlib.blake2b(beginning, key=name.encode()[:64], digest_size=8).digest()
