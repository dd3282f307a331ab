"""A chat template of a checkpoint or a user, in which the users' special tokens stay text."""

import re
import secrets
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mindformers_glm.core.errors import ConfigError, PromptError
from mindformers_glm.tokenizer.chat import (
    NO_OPTIONS,
    NOTHING_TO_CONTINUE,
    ChatOptions,
    MarkedConversation,
    Message,
    TemplateForm,
    Tool,
    count_leading,
    list_forms,
    read_messages,
    read_tools,
)
from mindformers_glm.tokenizer.segments import Segment
from mindformers_glm.tokenizer.template_renderer import TemplateRenderer, TemplateStoppedError
from mindformers_glm.tokenizer.vocabulary import SpecialTokens

_COMPARED = ("role", "type")  # keys whose values templates compare with words
_USER = [{"role": "user", "content": "x"}]
_MAX_NAMED = 5  # parts without a place, in a message


class _Found(NamedTuple):
    """What came of trying forms.

    Attributes:
        form: the first in which nothing is lost.
        lost: what the best of the others loses.
        failure: what the template says of the first that it does not take.
    """

    form: TemplateForm | None
    lost: list[str]
    failure: PromptError | None


class ChatTemplate:
    """A Jinja template as a chat format.

    Templates differ in what they read: calls in `tool_calls` or in the family's own form, tools
    beside the messages or in one of them. Which form holds the whole of a conversation is found by
    rendering it with marks; what no form can hold is an error.

    The segments are those of Hugging Face's `apply_chat_template(tokenize=True)` of that form, with
    one difference: special tokens that stand in the text of a message (or in a tool's description)
    stay text, also where they begin in one text and end in the next. Hugging Face makes control
    tokens of them, so that a user can end the turn or speak as the system. Only a template that
    takes characters out of a text can still make one, by joining what is left. The text between two
    special tokens of the template is one piece: a newline of the template may join one of the
    message.

    Args:
        named_tokens: eos_token and the like, which a template may write.
        special_tokens: those of the vocabulary.
        source: where it comes from, for messages.
    """

    def __init__(
        self,
        template: str,
        named_tokens: Mapping[str, Any],
        special_tokens: SpecialTokens,
        source: str,
    ) -> None:
        self._template = template
        self._renderer = TemplateRenderer(template, named_tokens, source)
        self._special_tokens = special_tokens
        self._names = sorted(special_tokens.ids)
        self._max_begun = max(map(len, self._names), default=1) - 1
        self._source = source

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: ChatOptions = NO_OPTIONS,
    ) -> list[Segment]:
        """Write a conversation up to where the answer begins.

        Raises:
            CheckpointError: the template is broken.
            ConfigError: the template does not read one of the options.
            PromptError: it cannot write these messages, or has no place for a part of them.
        """
        self._check_variables(options)
        conversation, offered = read_messages(messages), read_tools(tools or ())
        self._renderer.begin_conversation()
        form = self._choose_form(conversation, offered, options)
        return self._write(*form.write(conversation, offered), options)

    def render(self, messages: Any, tools: Any = None, options: ChatOptions = NO_OPTIONS) -> str:
        """Write a conversation as one text, special tokens by their names.

        Raises:
            CheckpointError, PromptError: as calling it.
        """
        return self._renderer.render(
            messages,
            tools,
            add_generation_prompt=options.begins_answer,
            variables=options.chat_template_kwargs,
        )

    def _check_variables(self, options: ChatOptions) -> None:
        unread = [
            name
            for name in options.chat_template_kwargs
            if not re.search(rf"\b{re.escape(name)}\b", self._template)
        ]
        if unread:
            raise ConfigError(
                f"The chat template of {self._source} does not read {', '.join(unread)} of "
                "chat_template_kwargs: correct the name or leave it out."
            )

    def _choose_form(
        self, messages: Sequence[Message], tools: Sequence[Tool], options: ChatOptions
    ) -> TemplateForm:
        """Return the first form in which nothing is lost."""
        forms = list(list_forms(messages, tools))
        num_leading = count_leading(messages)
        if num_leading < len(messages) // 2 and len(forms) > 1:
            # A long conversation in dozens of forms takes minutes: its beginning tells which.
            begun = self._try_forms(messages[:num_leading], tools, forms, options)
            if begun.form is not None:
                whole = self._try_forms(messages, tools, [begun.form], options)
                if whole.form is not None:
                    return whole.form
            elif begun.lost:  # what the beginning loses is lost, where its end is not refused
                raise self._no_place(begun.lost)
        found = self._try_forms(messages, tools, forms, options)
        if found.form is not None:
            return found.form
        if found.failure is not None and not found.lost:
            raise found.failure
        raise self._no_place(found.lost)

    def _no_place(self, lost: Sequence[str]) -> PromptError:
        return PromptError(
            f"The chat template of {self._source} has no place for {', '.join(lost[:_MAX_NAMED])}"
            f"{', ...' if len(lost) > _MAX_NAMED else ''}: leave out what it cannot write, or give "
            "another chat_template."
        )

    def _try_forms(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        forms: Sequence[TemplateForm],
        options: ChatOptions,
    ) -> _Found:
        """Find the first form in which nothing is lost.

        One that makes a role's token out of a role for which there is none (`<|tool|>`) is taken
        where no other is left.
        """
        marked = MarkedConversation(
            messages, tools, is_continued=bool(options.continue_final_message)
        )
        last_choice: TemplateForm | None = None
        least_lost: list[str] = []
        failure: PromptError | None = None
        for form in forms:
            try:
                written = self.render(*form.write(marked.messages, marked.tools), options)
                own_text = self.render(_USER) if form.tools == "own" else ""
            except TemplateStoppedError:
                raise
            except PromptError as problem:
                failure = failure or problem
                continue
            lost = marked.find_lost(written, own_text) or self._find_unread(
                marked, form, written, options
            )
            result_token = f"<|{form.result_role}|>"
            if (
                not lost
                and result_token in written
                and result_token not in self._special_tokens.ids
            ):
                last_choice = last_choice or form
            elif not lost:
                return _Found(form, [], failure)
            elif not least_lost or len(lost) < len(least_lost):
                least_lost = lost
        return _Found(last_choice, least_lost, failure)

    def _find_unread(
        self, marked: MarkedConversation, form: TemplateForm, written: str, options: ChatOptions
    ) -> list[str]:
        unread: list[str] = []
        for what, messages, tools in marked.change_silent():
            try:
                if self.render(*form.write(messages, tools), options) == written:
                    unread.append(what)
            except TemplateStoppedError:
                raise
            except PromptError:
                continue  # it was read
            if len(unread) > _MAX_NAMED:
                break
        return unread

    def _write(
        self, messages: list[dict[str, Any]], tools: list[Tool] | None, options: ChatOptions
    ) -> list[Segment]:
        marker = secrets.token_hex(16)
        end = f"{marker}end" if options.continue_final_message else ""
        if end:
            _append(messages[-1], end)
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

        rendered = self._renderer.render(
            _map_texts(messages, mark_text),
            _map_texts(tools, mark_text),
            add_generation_prompt=options.begins_answer,
            variables=_map_variables(options.chat_template_kwargs, mark_text),
        )
        if end:
            rendered, found_end, _ = rendered.rpartition(end)
            if not found_end:
                raise PromptError(
                    f"The chat template of {self._source} does not write the final message, so it "
                    "cannot be continued: give it a text."
                )
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


def _append(message: dict[str, Any], end: str) -> None:
    """Put a mark behind the text of the message that is to be continued."""
    content = message.get("content", "")
    if "tool_calls" in message or "metadata" in message or content == []:
        raise PromptError(NOTHING_TO_CONTINUE)
    if isinstance(content, str):
        message["content"] = content + end
    else:
        content[-1]["text"] += end


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


def _map_variables(values: Mapping[str, Any], change: Callable[[str, bool], str]) -> dict[str, Any]:
    """As `_map_texts`; the variables keep their names, and words that templates compare."""
    return {
        key: _map_texts(value, change, is_name=isinstance(value, str) and value.isidentifier())
        for key, value in values.items()
    }
