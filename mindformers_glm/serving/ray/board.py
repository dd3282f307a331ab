"""Where replicas say that they are there: the key-value store of the cluster's head.

It is the one place that every process of a cluster can reach, and needs no process of its own.
"""

import json
from collections.abc import Iterable
from typing import Any

_PREFIX = "replica."


def post(application: str, name: str, entry: dict[str, Any]) -> None:
    """Say something of a replica; what it said before is dropped.

    Args:
        application: its name in Ray Serve; the replicas of two do not mix.
        entry: `url`, `state`, and `beat`, a number that differs from that before.
    """
    _store()._internal_kv_put(_key(name), json.dumps(entry), namespace=_space(application))


def read_all(application: str) -> dict[str, dict[str, Any]]:
    """What all replicas have said last, by their names."""
    store, space = _store(), _space(application)
    entries = {}
    for key in store._internal_kv_list(_PREFIX, namespace=space):
        value = store._internal_kv_get(key, namespace=space)
        if value is not None:  # taken away meanwhile
            entries[key.decode().removeprefix(_PREFIX)] = json.loads(value)
    return entries


def take_away(application: str, names: Iterable[str]) -> None:
    """Forget replicas."""
    for name in names:
        _store()._internal_kv_del(_key(name), namespace=_space(application))


def _store() -> Any:
    from ray.experimental import internal_kv

    return internal_kv


def _key(name: str) -> str:
    return f"{_PREFIX}{name}"


def _space(application: str) -> str:
    return f"mindformers_glm.{application}"
