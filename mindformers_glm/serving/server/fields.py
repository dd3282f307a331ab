"""The fields of a request: what is known is read with its type, nothing is dropped in silence."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from mindformers_glm.serving.server.errors import RequestError

# What clients send that cannot change an answer: who asks, bookkeeping, hints for caches.
_HARMLESS = frozenset(
    (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "prediction", "priority", "request_id", "cache_salt"),
        *("moderation", "guided_decoding_backend"),
    )
)
# What changes an answer where a route reads it; one that knows it by another name, or not at all,
# must not leave it out.
_CHANGING = frozenset(
    (
        *("messages", "prompt", "input", "inputs", "system", "instructions", "parameters", "echo"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "seed"),
        *("do_sample", "temperature", "top_p", "top_k", "min_p", "n", "stop", "stop_sequences"),
        *("stop_token_ids", "ignore_eos", "min_tokens", "logit_bias", "bad_words", "grammar"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "logprobs"),
        *("top_logprobs", "tools", "tool_choice", "response_format", "structured_outputs"),
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "thinking"),
        *("enable_thinking", "chat_template_kwargs", "continue_final_message"),
    )
)
_NOTHING = ("auto", "none", "text")  # values that ask for nothing, besides empty ones
_NEAR = 0.8  # of difflib: a name that near was meant, and its value would be missing
_SHOWN_NAME = re.compile(r"[\w.-]{1,40}", re.ASCII)
_MAX_SHOWN = 20
_MAX_UNREAD = 200  # each is compared with all known ones, in the event loop
_NAMES = {bool: "true or false", int: "a whole number", str: "a text", list: "a list"}
_NAMES |= {dict: "an object", float: "a number"}


class Fields:
    """One JSON object; a member that is null counts as one that is absent."""

    def __init__(self, body: Mapping[str, Any], name: str = "") -> None:
        self._body = {key: value for key, value in body.items() if value is not None}
        self._prefix = f"{name}." if name else ""
        self._known: set[str] = set()
        self._inner: list[Fields] = []

    def raw(self, name: str, default: Any = None) -> Any:
        """A member of any type, which somebody else checks."""
        self._known.add(name)
        return self._body.get(name, default)

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        """A member of one JSON type.

        Raises:
            RequestError: it is of another one.
        """
        value = self.raw(name, default)
        if name not in self._body:
            return value
        is_number = kind is float and isinstance(value, int | float)
        if not isinstance(value, kind) and not is_number:
            raise self.wrong(name, _NAMES[kind], value)
        if isinstance(value, bool) and kind is not bool:
            raise self.wrong(name, _NAMES[kind], value)
        return value

    def inner(self, name: str) -> "Fields":
        """The fields of a member that is an object, none where it is absent.

        What nobody reads of them counts as unread of this object, see `ignored`.

        Raises:
            RequestError: it is of another type.
        """
        fields = Fields(self.take(name, dict, {}), f"{self._prefix}{name}")
        self._inner.append(fields)
        return fields

    def without(self, name: str) -> "Fields":
        """The same object with a member taken as read."""
        return self._with({key: value for key, value in self._body.items() if key != name})

    def with_members(self, members: Mapping[str, Any]) -> "Fields":
        """The same object with some members in another form."""
        return self._with({**self._body, **members})

    def _with(self, body: Mapping[str, Any]) -> "Fields":
        other = Fields(body)
        other._prefix, other._known, other._inner = self._prefix, self._known, self._inner
        return other

    def wrong(self, name: str, expected: str, value: Any) -> RequestError:
        """The error for a value that cannot be taken."""
        full = f"{self._prefix}{name}"
        return RequestError(400, f"{full} must be {expected}, got {value!r:.80}.", param=full)

    def refuse(self, neutral_values: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
        """Refuse members that would change the answer and cannot.

        Args:
            neutral_values: the values at which each asks for nothing, and what to do instead.
        Raises:
            RequestError: one has another value.
        """
        for name, (neutral, advice) in neutral_values.items():
            value = self.raw(name)
            if value is None or any(
                value == same and type(value) is type(same) for same in neutral
            ):
                continue
            full = f"{self._prefix}{name}"
            raise RequestError(
                400,
                f"{full}={value!r:.80} is not supported by this server: {advice}.",
                param=full,
                code="unsupported_parameter",
            )

    def ignored(self, *, is_answer: bool = True) -> list[str]:
        """The members that nobody has read, as they can be shown.

        Args:
            is_answer: the model answers, so that a field which other routes read would change it.
        Raises:
            RequestError: there are too many, or one is such a field, or so like a known field that
                it was probably meant.
        """
        unread = [name for name in self._body if name not in self._known]
        if len(unread) > _MAX_UNREAD:
            raise RequestError(
                400,
                f"The request has {len(unread)} fields that this server does not know, at most "
                f"{_MAX_UNREAD} are ignored: send none of them.",
            )
        for name in unread:
            if name in _CHANGING:  # a right name, elsewhere
                if is_answer and self._asks(name):
                    raise RequestError(
                        400,
                        f"{self._prefix}{name} is no field of this route: it would change the "
                        "answer, so use the route's own name for it, or leave it out.",
                        param=name,
                        code="unsupported_parameter",
                    )
                continue
            near = difflib.get_close_matches(name.lower()[:80], self._known, n=1, cutoff=_NEAR)
            if near and name not in _HARMLESS:
                raise RequestError(
                    400,
                    f"Unknown field {self._prefix}{name:.40}: did you mean {near[0]}?",
                    param=f"{name:.40}",
                )
        shown = [name if _SHOWN_NAME.fullmatch(name) else "(unprintable)" for name in unread]
        names = [f"{self._prefix}{name}" for name in shown]
        names += (name for inner in self._inner for name in inner.ignored(is_answer=is_answer))
        return names[:_MAX_SHOWN]

    def _asks(self, name: str) -> bool:
        value = self._body[name]
        return bool(value) and value not in _NOTHING
