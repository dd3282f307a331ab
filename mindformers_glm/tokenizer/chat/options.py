"""How a conversation is to be written, beside what it says."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mindformers_glm.core.errors import ConfigError

# What a template is given anyway, and arguments of Hugging Face's apply_chat_template.
_RESERVED = frozenset(
    ("messages", "conversation", "tools", "chat_template", "tokenize", "padding", "truncation")
) | {"add_generation_prompt", "continue_final_message", "max_length", "return_tensors"}
_RESERVED |= {"return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"}

NOTHING_TO_CONTINUE = (
    "continue_final_message goes on with the text of an answer, and the last message of the "
    "conversation is none."
)


@dataclass(frozen=True)
class ChatOptions:
    """What vLLM's `LLM.chat` takes under the same names; None: not said.

    Attributes:
        chat_template: the name of one of the checkpoint's templates, a template's text, or a file.
        chat_template_kwargs: further variables of the template, such as enable_thinking.
        add_generation_prompt: whether the prompt ends where an answer begins; not said: yes, unless
            the final message is continued.
        continue_final_message: whether the answer goes on where the final message ends.
    Raises:
        ConfigError: a value is of another type, or two contradict each other.
    """

    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def __post_init__(self) -> None:
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            raise ConfigError(
                "chat_template must be a template's name, its text or a file, got "
                f"{self.chat_template!r:.80}."
            )
        kwargs = self.chat_template_kwargs
        if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
            raise ConfigError(
                'chat_template_kwargs must be an object such as {"enable_thinking": false}, got '
                f"{kwargs!r:.80}."
            )
        if reserved := _RESERVED.intersection(kwargs):
            raise ConfigError(
                f"chat_template_kwargs cannot set {', '.join(sorted(reserved))}: give it as an "
                "argument of its own."
            )
        for name in ("add_generation_prompt", "continue_final_message"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise ConfigError(f"{name} must be True or False, got {value!r:.80}.")
        if self.add_generation_prompt and self.continue_final_message:
            raise ConfigError(
                "add_generation_prompt begins a new message and continue_final_message goes on "
                "with the last one: give one of them."
            )

    @classmethod
    def given(
        cls,
        chat_template: str | None,
        chat_template_kwargs: Mapping[str, Any] | None,
        add_generation_prompt: bool | None,
        continue_final_message: bool | None,
    ) -> "ChatOptions":
        """Take them as arguments are given."""
        kwargs = {} if chat_template_kwargs is None else chat_template_kwargs
        return cls(chat_template, kwargs, add_generation_prompt, continue_final_message)

    @property
    def begins_answer(self) -> bool:
        """Whether the prompt ends where an answer begins."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt

    def over(self, defaults: "ChatOptions") -> "ChatOptions":
        """Return these options, and the defaults where nothing is said.

        Raises:
            ConfigError: a value contradicts a default.
        """
        values: dict[str, Any] = {}
        for option in fields(self):
            own = getattr(self, option.name)
            values[option.name] = getattr(defaults, option.name) if own is None else own
        values["chat_template_kwargs"] = {
            **defaults.chat_template_kwargs,
            **self.chat_template_kwargs,
        }
        return ChatOptions(**values)


NO_OPTIONS = ChatOptions()
