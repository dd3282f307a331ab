"""The one door through which a chat template of a checkpoint or a user is run."""

from collections.abc import Mapping
from typing import Any

from mindformers_glm.core.errors import CheckpointError, PromptError
from mindformers_glm.tokenizer.fast_tokenizer import new_fast_tokenizer


class TemplateRenderer:
    """Renders one template as Hugging Face's `apply_chat_template` does.

    Args:
        template: its text.
        named_tokens: eos_token and the like, which a template may write.
        source: where it comes from, for messages.
    """

    def __init__(self, template: str, named_tokens: Mapping[str, Any], source: str) -> None:
        from tokenizers import Tokenizer, models

        self._template = template
        self._source = source
        # Without a vocabulary: it only renders, with what Hugging Face gives to templates.
        self._renderer = new_fast_tokenizer(
            tokenizer_object=Tokenizer(models.BPE()), chat_template=template, **named_tokens
        )

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
            PromptError: it cannot write these messages.
        """
        from jinja2 import TemplateSyntaxError

        try:
            return self._renderer.apply_chat_template(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **(variables or {}),
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
