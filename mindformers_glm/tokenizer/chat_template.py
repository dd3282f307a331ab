"""The checkpoint's own chat template, in which the users' special tokens stay text."""

import re
import secrets
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mindformers_glm.core.errors import CheckpointError, PromptError
from mindformers_glm.tokenizer.chat import TemplateDialect
from mindformers_glm.tokenizer.segments import Segment
from mindformers_glm.tokenizer.vocabulary import SpecialTokens

_COMPARED = ("role", "type")  # keys whose values templates compare with words


class ChatTemplate:
    """A Jinja template as a chat format.

    The segments are those of Hugging Face's `apply_chat_template(tokenize=True)`, with one
    difference: special tokens that stand in the text of a message (or in a tool's description)
    stay text, also where they begin in one text and end in the next. Hugging Face makes control
    tokens of them, so that a user can end the turn or speak as the system. Only a template that
    takes characters out of a text can still make one, by joining what is left. The text between two
    special tokens of the template is one piece: a newline of the template may join one of the
    message.

    Args:
        named_tokens: eos_token and the like, which a template may write.
        special_tokens: those of the vocabulary.
        source: the folder, for messages.
    """

    def __init__(
        self,
        template: str,
        named_tokens: Mapping[str, Any],
        special_tokens: SpecialTokens,
        source: str,
    ) -> None:
        self._template = template
        self._named_tokens = {name: token for name, token in named_tokens.items() if token}
        self._dialect = TemplateDialect(template)
        self._special_tokens = special_tokens
        self._names = sorted(special_tokens.ids)
        self._max_begun = max(map(len, self._names), default=1) - 1
        self._source = source

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Segment]:
        """Write a conversation up to where the answer begins.

        Raises:
            CheckpointError: the template is broken.
            PromptError: the template cannot write these messages.
        """
        messages, tools = self._dialect.fit(messages, tools)
        marker = secrets.token_hex(16)
        found: list[str] = []

        def mark(text: str) -> str:
            found.append(text)
            return f"{marker}x{len(found) - 1}x"

        def mark_text(text: str, is_name: bool) -> str:
            end = len(text) if is_name else self._find_begun(text)
            marked = self._special_tokens.pattern.sub(
                lambda match: mark(match[0]) if match.end() <= end else match[0], text
            )
            return marked if end == len(text) else marked[: end - len(text)] + mark(text[end:])

        rendered = self.render(_map_texts(list(messages), mark_text), _map_texts(tools, mark_text))
        segments = self._special_tokens.split(rendered)
        if not found:
            return segments
        marks = re.compile(f"{marker}x(\\d+)x")
        return [
            marks.sub(lambda match: found[int(match[1])], segment)
            if isinstance(segment, str)
            else segment
            for segment in segments
        ]

    def _find_begun(self, text: str) -> int:
        """Return where a special token begins that the end of the text cuts off, else the end."""
        begins = [
            begin
            for begin in range(max(len(text) - self._max_begun, 0), len(text))
            if self._is_begun(text[begin:])
        ]
        if not begins:
            return len(text)
        # What belongs to a whole token begins no other.
        whole = [match.span() for match in self._special_tokens.pattern.finditer(text)]
        is_free = (b for b in begins if not any(begin <= b < end for begin, end in whole))
        return next(is_free, len(text))

    def _is_begun(self, text: str) -> bool:
        following = self._names[bisect_right(self._names, text) :][:1]
        return any(name.startswith(text) for name in following)

    def render(self, messages: Any, tools: Any = None) -> str:
        """Write a conversation as one text, special tokens by their names.

        Raises:
            CheckpointError, PromptError: as calling it.
        """
        from jinja2 import TemplateSyntaxError

        from mindformers_glm.tokenizer.template_sandbox import TemplateLimitError, render_template

        given = {"messages": messages, "tools": tools, "documents": None}
        given |= {"add_generation_prompt": True}
        try:
            return render_template(self._template, self._named_tokens | given)
        except TemplateLimitError as problem:
            raise PromptError(
                f"The chat template of {self._source} is stopped, {problem}: take the template of "
                "the original model."
            ) from None
        except TemplateSyntaxError as problem:
            raise CheckpointError(
                f"The chat template of {self._source} is broken at line {problem.lineno} "
                f"({problem.message}): download the file again."
            ) from None
        except Exception as problem:  # the template is a program of its own and may raise anything
            raise PromptError(
                f"The chat template of {self._source} cannot write these messages: {problem}."
            ) from problem


def _map_texts(value: Any, change: Callable[[str, bool], str], is_name: bool = False) -> Any:
    """Return a copy of nested dicts and lists with every text changed.

    Args:
        change: gets the text, and whether it is a name that templates look for: a key, or a role
            or type of one word. Some special tokens begin with a mere letter (sop).
    """
    if isinstance(value, str):
        return change(value, is_name)
    if isinstance(value, Mapping):
        return {
            _map_texts(key, change, is_name=True): _map_texts(
                item, change, is_name=key in _COMPARED and str(item).isidentifier()
            )
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_map_texts(item, change) for item in value]
    return value
