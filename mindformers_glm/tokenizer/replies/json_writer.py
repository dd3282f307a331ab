"""Strict JSON of an object that is still being written, so that nobody waits for its end."""

import re

# What is written bare, by what it means in JSON.
_WORDS = {name: name for name in ("true", "false", "null")}
_WORDS |= {"True": "true", "False": "false", "None": "null"}
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_PLAIN = {quote: re.compile(rf"[^{quote}\"\\\x00-\x1f]+") for quote in "\"'"}
_WORD = re.compile(r"[^\s{}\[\],:\"']+")
_BLANKS = re.compile(r"\s+")
_ESCAPES = frozenset('"\\/bfnrt')
_HEX = re.compile(r"[0-9a-fA-F]{4}", re.ASCII)
_MAX_DEPTH = 100
_MAX_WORD = 400  # longer ones are no numbers


class JsonWriter:
    """Takes an object as models write it and gives the JSON that is certain of it.

    Mended are the same things as in `to_strict_json`: raw control characters in strings, single
    quotes, a comma behind the last item, Python's True, False and None. What is strict stays as it
    is, blanks included. What comes out does not depend on where the text is cut.

    Attributes:
        written: the JSON so far.
        is_broken: the text cannot be JSON from here on; nothing more is written.
    """

    def __init__(self) -> None:
        self.written = ""
        self.is_broken = False
        self._pending = ""  # not read yet: may be the beginning of something
        self._comma = ""  # held with the blanks behind it: it may be the last one
        self._closers: list[str] = []
        self._expects = "object"  # or: first key, key, colon, first value, value, next, nothing
        self._quote = ""

    @property
    def unread(self) -> str:
        """What was given and not written: held back, or broken."""
        return self._comma + self._pending

    def feed(self, text: str) -> None:
        """Take the next piece; behind the object's end nothing may come."""
        self._pending += text
        parts: list[str] = []
        while self._pending and not self.is_broken:
            part = self._read_string() if self._quote else self._read_mark()
            if part is None:
                break
            parts.append(part)
        self.written += "".join(parts)

    def _take(self, count: int) -> str:
        taken, self._pending = self._pending[:count], self._pending[count:]
        return taken

    def _break(self) -> str | None:
        self.is_broken = True
        return None

    def _read_string(self) -> str | None:
        """The next part of a string; None: more text is needed, or it is broken."""
        plain = _PLAIN[self._quote].match(self._pending)
        if plain is not None:
            return self._take(plain.end())
        mark = self._pending[0]
        if mark == self._quote:
            self._take(1)
            self._quote = ""
            self._expects = "colon" if self._expects == "key string" else "next"
            return '"'
        if mark == '"':  # within single quotes
            self._take(1)
            return '\\"'
        if mark != "\\":
            return f"\\u{ord(self._take(1)):04x}"
        return self._read_escape()

    def _read_escape(self) -> str | None:
        if len(self._pending) < 2:
            return None
        escaped = self._pending[1]
        if escaped == "'" == self._quote:
            self._take(2)
            return "'"
        if escaped in _ESCAPES:
            return self._take(2)
        digits = self._pending[2:6]
        if escaped == "u" and len(digits) < 4 and "\\" not in digits:
            return None
        if escaped == "u" and _HEX.fullmatch(digits):
            return self._take(6)
        return self._break()

    def _read_mark(self) -> str | None:
        """The next thing outside of strings, likewise."""
        blanks = _BLANKS.match(self._pending)
        if blanks is not None:
            text = self._take(blanks.end())
            if self._comma:
                self._comma += text
                return ""
            # JSON knows fewer blanks than Unicode.
            return "".join(char if char in " \t\n\r" else " " for char in text)
        mark = self._pending[0]
        if mark in "}]":
            return self._close(mark)
        if mark == ",":
            if self._expects != "next" or not self._closers:
                return self._break()
            self._comma = self._take(1)
            self._expects = "key" if self._closers[-1] == "}" else "value"
            return ""
        if mark == ":":
            if self._expects != "colon":
                return self._break()
            self._expects = "value only"
            return self._take(1)
        if mark in "\"'":
            return self._open_string(mark)
        if mark in "{[":
            return self._open(mark)
        return self._read_word()

    def _close(self, mark: str) -> str | None:
        may_end = self._expects in ("first key", "first value", "next") or self._comma
        if not self._closers or self._closers[-1] != mark or not may_end:
            return self._break()
        blanks, self._comma = self._comma[1:], ""
        self._closers.pop()
        self._expects = "next" if self._closers else "nothing"
        return blanks + self._take(1)

    def _open(self, mark: str) -> str | None:
        is_right = self._expects in ("first value", "value", "value only")
        is_right = is_right or (self._expects == "object" and mark == "{")
        if not is_right or len(self._closers) >= _MAX_DEPTH:
            return self._break()
        self._closers.append("}" if mark == "{" else "]")
        self._expects = "first key" if mark == "{" else "first value"
        return self._release_comma() + self._take(1)

    def _open_string(self, mark: str) -> str | None:
        if self._expects in ("first key", "key"):
            self._expects = "key string"
        elif self._expects not in ("first value", "value", "value only"):
            return self._break()
        self._quote = self._take(1)
        return self._release_comma() + '"'

    def _read_word(self) -> str | None:
        found = _WORD.match(self._pending)
        assert found is not None, "all other characters are marks"
        if found.end() == len(self._pending) and found.end() < _MAX_WORD:
            return None
        word = found[0]
        meaning = _WORDS.get(word, word if _NUMBER.fullmatch(word) else "")
        if not meaning or self._expects not in ("first value", "value", "value only"):
            return self._break()
        self._take(found.end())
        self._expects = "next"
        return self._release_comma() + meaning

    def _release_comma(self) -> str:
        comma, self._comma = self._comma, ""
        return comma
