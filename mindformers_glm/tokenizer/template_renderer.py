"""The one door through which a chat template of a checkpoint or a user is run."""

from collections.abc import Mapping
from typing import Any

from mindformers_glm.core.errors import CheckpointError, PromptError

# For all forms in which one conversation is tried; a form that fits takes a fifth of one at most.
_SHARED_ALLOWANCES = 2


class TemplateStoppedError(PromptError):
    """The template does or writes too much; another form of the messages will not help."""


class TemplateRenderer:
    """Renders one template as Hugging Face's `apply_chat_template` does, within limits.

    Args:
        template: its text.
        named_tokens: eos_token and the like, which a template may write.
        source: where it comes from, for messages.
    """

    def __init__(self, template: str, named_tokens: Mapping[str, Any], source: str) -> None:
        self._template = template
        self._source = source
        self._num_used = 0
        self._named_tokens = {name: token for name, token in named_tokens.items() if token}

    def begin_conversation(self) -> None:
        """Call before a conversation is rendered, be it in many forms: they share an allowance."""
        self._num_used = 0

    def render(
        self,
        messages: Any,
        tools: Any = None,
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Write a conversation as one text, special tokens by their names.

        Raises:
            CheckpointError: the template is broken.
            TemplateStoppedError: it does or writes too much.
            PromptError: it cannot write these messages.
        """
        from jinja2 import TemplateSyntaxError

        from mindformers_glm.tokenizer.template_allowance import Allowance
        from mindformers_glm.tokenizer.template_sandbox import TemplateLimitError, render_template

        given = {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        values = {**self._named_tokens, **given, **(variables or {})}
        allowance = Allowance(values)
        try:
            if self._num_used > _SHARED_ALLOWANCES * allowance.units:
                raise TemplateLimitError("it takes more steps than any conversation needs")
            return render_template(self._template, values, allowance)
        except TemplateLimitError as problem:
            raise TemplateStoppedError(
                f"The chat template of {self._source} is stopped, {problem}: take the template of "
                "the original model."
            ) from None
        except TemplateSyntaxError as problem:
            raise CheckpointError(
                f"The chat template of {self._source} is broken at line {problem.lineno} "
                f"({problem.message}): correct it or download the file again."
            ) from None
        except Exception as problem:  # the template is a program of its own and may raise anything
            raise PromptError(
                f"The chat template of {self._source} cannot write these messages: {problem}."
            ) from problem
        finally:
            self._num_used += allowance.num_used
