"""The checkpoint's own chat template, in which the users' special tokens stay text."""

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mindformers_glm.core.errors import CheckpointError, PromptError
from mindformers_glm.tokenizer.chat import TemplateDialect
from mindformers_glm.tokenizer.fast_tokenizer import new_fast_tokenizer
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
        from tokenizers import Tokenizer, models

        # Without a vocabulary: it only renders, with what Hugging Face gives to templates.
        self._renderer = new_fast_tokenizer(
            tokenizer_object=Tokenizer(models.BPE()), chat_template=template, **named_tokens
        )
        self._dialect = TemplateDialect(template)
        self._special_tokens = special_tokens
        self._whole_or_begun = _find_begun_too(special_tokens)
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

        def mark(match: re.Match[str]) -> str:
            found.append(match[0])
            return f"{marker}x{len(found) - 1}x"

        def mark_text(text: str, is_name: bool) -> str:
            pattern = self._special_tokens.pattern if is_name else self._whole_or_begun
            return pattern.sub(mark, text)

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

    def render(self, messages: Any, tools: Any = None) -> str:
        """Write a conversation as one text, special tokens by their names.

        Raises:
            CheckpointError, PromptError: as calling it.
        """
        from jinja2 import TemplateSyntaxError

        try:
            return self._renderer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=True, tokenize=False
            )
        except TemplateSyntaxError as problem:
            raise CheckpointError(
                f"The chat template of {self._source} is broken at line {problem.lineno} "
                f"({problem.message}): download the file again."
            ) from None
        except Exception as problem:  # the template is a program of its own and may raise anything
            raise PromptError(
                f"The chat template of {self._source} cannot write these messages: {problem}."
            ) from problem


def _find_begun_too(special_tokens: SpecialTokens) -> re.Pattern[str]:
    """Match special tokens, and the beginning of one at the end of a text."""
    beginnings = {name[:end] for name in special_tokens.ids for end in range(1, len(name))}
    longest_first = sorted(beginnings, key=len, reverse=True)
    begun = "|".join(map(re.escape, longest_first)) or "(?!)"
    return re.compile(f"{special_tokens.pattern.pattern}|(?:{begun})\\Z")


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
