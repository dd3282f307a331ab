"""JSON as models write it, where that can only mean one thing."""

import re

from mindformers_glm.tokenizer.tool_call import read_json, write_json

_TOKEN = re.compile(
    r"""(?P<double>"(?:[^"\\]|\\.)*")|(?P<single>'(?:[^'\\]|\\.)*')|(?P<mark>[{}\[\],:])"""
    r"""|(?P<blank>\s+)|(?P<word>[^\s{}\[\],:"']+)""",
    re.DOTALL,
)
# One without end reaches to the end: so no character is looked at from two beginnings.
_STRING = re.compile(r""""(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?""", re.DOTALL)
# A control character behind a backslash belongs to an escape, and stays.
_ESCAPE_OR_CONTROL = re.compile(r"\\.|[\x00-\x1f]", re.DOTALL)
_PYTHONS = {"True": "true", "False": "false", "None": "null"}


def to_strict_json(text: str) -> str:
    """Return the text itself where it is JSON, else the JSON that it can only mean.

    Read are raw control characters in strings, strings in single quotes, a comma behind the last
    item, and Python's True, False and None.

    Raises:
        ValueError: it is nothing like that.
    """
    try:
        read_json(text)
    except ValueError:
        return write_json(read_json(_mend(text)))
    return text


def escape_raw_characters(code: str) -> str:
    """Return Python code in which control characters within strings are escapes."""
    return _STRING.sub(lambda found: _escape(found[0]), code)


def _mend(text: str) -> str:
    parts: list[str] = []
    place = 0
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            raise ValueError("a string without end")
        place = token.end()
        if token["blank"]:
            parts.append(" ")
            continue
        if token[0] in ("}", "]"):
            _drop_last_comma(parts)
        parts.append(_mend_token(token))
    return "".join(parts)


def _mend_token(token: re.Match[str]) -> str:
    if token["word"]:
        return _PYTHONS.get(token[0], token[0])
    if token["mark"]:
        return token[0]
    body = token[0][1:-1]
    if token["single"]:
        # \' is no escape of JSON, and " must be one.
        body = re.sub(r"\\.|\"", lambda found: _requote(found[0]), body, flags=re.DOTALL)
    return f'"{_escape(body)}"'


def _escape(text: str) -> str:
    def write(found: re.Match[str]) -> str:
        return found[0] if found[0][0] == "\\" else f"\\u{ord(found[0]):04x}"

    return _ESCAPE_OR_CONTROL.sub(write, text)


def _requote(found: str) -> str:
    return {"\\'": "'", '"': '\\"'}.get(found, found)


def _drop_last_comma(parts: list[str]) -> None:
    """Take away a comma that stands behind an item."""
    seen = [index for index, part in enumerate(parts[-4:], max(len(parts) - 4, 0)) if part != " "]
    if len(seen) > 1 and parts[seen[-1]] == "," and parts[seen[-2]] not in ("{", "[", ",", ":"):
        del parts[seen[-1]]
