"""Damage to files: of bytes, of text, and of JSON that stays JSON."""

import copy
import json
import random
from typing import Any

# Written in place of a text of this name, for json.dumps writes neither.
_RAW = {
    '"@digits@"': "9" * 5000,
    '"@float@"': "1e999999",
    '"@nan@"': "NaN",
    '"@deep@"': "[" * 3000 + "]" * 3000,
    '"@deep enough@"': '{"a":' * 90 + "1" + "}" * 90,
    '"@long@"': '"' + "x" * 20_000 + '"',
    '"@many@"': "[" + ",".join(["1"] * 20_000) + "]",
    '"@surrogate@"': r'"\ud800"',
    '"@nul@"': r'"a\u0000b"',
}
_NASTY: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63)),
    *(10**40, 10**120, 0.5, -0.0, 1e-320, 1e308, "", " ", "a", "..", "/", "../../etc/passwd"),
    *("auto", "float32", "bfloat16", "<|user|>", "\n", "\x1b[2J", "北京", "€" * 300, "1", "-1"),
    *([], {}, [[]], [None], [1, 2, 3], ["a", "a"], {"a": 1}, {"": {}}, {"content": 5}, [0] * 70),
    *(raw.strip('"') for raw in _RAW),
]
_TOKENS = [
    *(b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b"\t", b" "),
    *(b'"', b"'", b"{", b"}", b"[", b"]", b":", b","),
    *(b"\\", b"\\u0000", b"\\ud800", b"&a ", b"*a", b"<<: ", b"!!int ", b"- "),
    *(b"%", b"{{", b"}}", b"{%", b"%}", b"{#", b"9" * 400, b"-1"),
    *(b"1e999", b"null", b"true", b".", b"\x7f" * 4, b"\xff" * 8, b"\0" * 4, b"PK\x03\x04"),
    *(b"\x80\x02", b"|", b">", b"? ", b"~", b"@"),
]


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Change, remove, repeat or insert a few places; a third of the time cut the end off."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        place = rng.randrange(len(changed) + 1)
        kind = rng.randrange(6)
        if kind == 0 and changed:
            changed[place % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 1 and changed:
            changed[place % len(changed)] = rng.randrange(256)
        elif kind == 2:
            del changed[place : place + rng.choice([1, 2, 8, 100])]
        elif kind == 3:
            changed[place:place] = changed[place : place + rng.choice([1, 8, 64, 1000])]
        elif kind == 4:
            changed[place:place] = rng.choice(_TOKENS) * rng.choice([1, 1, 1, 3, 300])
        else:
            token = rng.choice(_TOKENS)
            changed[place : place + len(token)] = token
    return bytes(changed[: rng.randrange(len(changed) + 1)] if rng.random() < 0.1 else changed)


def damage_json(tree: Any, rng: random.Random) -> bytes:
    """Change a few values of a tree; sometimes the text that it becomes, too."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        tree = _damage_tree(tree, rng)
    try:
        text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    except RecursionError:
        text = "[" * 900
    for name, raw in _RAW.items():
        text = text.replace(name, raw)
    content = text.encode("utf-8", "surrogatepass")
    return damage_bytes(content, rng) if rng.random() < 0.15 else content


def _damage_tree(tree: Any, rng: random.Random) -> Any:
    places: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        keys = (
            node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        )
        for key in list(keys)[:200]:
            places.append((node, key))
            stack.append(node[key])
    if not places or rng.random() < 0.01:
        return copy.deepcopy(rng.choice(_NASTY))
    node, key = rng.choice(places)
    other = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[str(rng.choice(_NASTY))[:40]] = copy.deepcopy(node[key])
    elif kind == 2 and isinstance(node, list):
        node += [copy.deepcopy(node[key]) for _ in range(rng.choice([1, 2, 50]))]
    elif kind == 3:
        node[key] = json.loads(json.dumps(other[0][other[1]])) if _is_small(other) else None
    elif kind == 4 and type(node[key]) is int:
        node[key] += rng.choice([-1, 1, 2, -node[key], 1000, 2**32])
    elif kind == 5 and isinstance(node[key], str):
        node[key] = rng.choice([node[key] * 2, node[key][:-1], node[key] + rng.choice("\0 \nx中")])
    else:
        node[key] = copy.deepcopy(rng.choice(_NASTY))
    return tree


def _is_small(place: tuple[Any, Any]) -> bool:
    value = place[0][place[1]]
    return not isinstance(value, dict | list) or len(value) < 50
