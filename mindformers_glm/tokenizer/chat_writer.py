"""Which template or format writes a conversation of a checkpoint."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from mindformers_glm.core.errors import ConfigError, PromptError
from mindformers_glm.tokenizer.chat import NO_OPTIONS, ChatOptions, offered_tools, write_chat
from mindformers_glm.tokenizer.chat_template import ChatTemplate
from mindformers_glm.tokenizer.segments import Segment
from mindformers_glm.tokenizer.template_files import (
    DEFAULT_TEMPLATE,
    TOOL_TEMPLATE,
    read_given_template,
)
from mindformers_glm.tokenizer.vocabulary import SpecialTokens


class ChatWriter:
    """Writes conversations by the checkpoint's templates, in a built-in format, or as asked.

    Args:
        templates: the checkpoint's own, by name.
        built_in: a name in `CHAT_FORMATS`, for where there are none.
        named_tokens, special_tokens: see `ChatTemplate`.
        source: the folder, for messages.
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        built_in: str | None,
        named_tokens: Mapping[str, Any],
        special_tokens: SpecialTokens,
        source: str,
    ) -> None:
        self._templates = templates
        self._built_in = built_in
        self._source = source

        def new_template(text: str, name: str) -> ChatTemplate:
            return ChatTemplate(text, named_tokens, special_tokens, name)

        self._new_template = lru_cache(maxsize=16)(new_template)

    @property
    def has_templates(self) -> bool:
        """Whether the checkpoint brings templates of its own."""
        return bool(self._templates)

    @property
    def knows_format(self) -> bool:
        """Whether it is known how the checkpoint writes a conversation."""
        return self.has_templates or self._built_in is not None

    def template_text(self, chat_template: str | None) -> str:
        """Return the text of the template that is asked for, or of all that the checkpoint has.

        Raises:
            ConfigError: there is none of that name.
        """
        if chat_template is None:
            return "\n".join(self._templates.values())
        return read_given_template(chat_template, self._templates)[0]

    def write(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: ChatOptions = NO_OPTIONS,
    ) -> list[Segment]:
        """Write a conversation up to where the answer begins, or as the options say.

        Raises:
            ConfigError: there is no template, or not the one that is asked for.
            CheckpointError, PromptError: see `ChatTemplate`.
        """
        try:
            return self._write(messages, tools, options)
        except RecursionError:
            raise PromptError("These messages are nested too deeply: give simpler ones.") from None

    def _write(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        options: ChatOptions,
    ) -> list[Segment]:
        if options.chat_template is not None:
            text, name = read_given_template(options.chat_template, self._templates)
            source = f"{self._source} ({name})" if name in self._templates else name
            return self._new_template(text, source)(messages, tools, options)
        if self._templates:
            has_tools = bool(offered_tools(messages, tools))
            return self._default(has_tools=has_tools)(messages, tools, options)
        if self._built_in is not None:
            return write_chat(self._built_in, messages, tools, options)
        raise ConfigError(
            f"{self._source} has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json): add it, or give a text with "
            "apply_chat_template False."
        )

    def _default(self, *, has_tools: bool) -> ChatTemplate:
        name = TOOL_TEMPLATE if has_tools and TOOL_TEMPLATE in self._templates else DEFAULT_TEMPLATE
        if name not in self._templates:
            raise ConfigError(
                f"{self._source} has chat templates by name and no default: choose one with "
                f"chat_template ({', '.join(sorted(self._templates))})."
            )
        return self._new_template(self._templates[name], self._source)
