"""What stands in for the tokenizer of a folder that has none: token ids run, text is refused."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mindformers_glm.core.errors import PromptError
from mindformers_glm.tokenizer.chat import NO_OPTIONS, ChatOptions
from mindformers_glm.tokenizer.chat_writer import ChatWriter
from mindformers_glm.tokenizer.glm_tokenizer import GlmTokenizer
from mindformers_glm.tokenizer.vocabulary import SpecialTokens, Vocabulary


class TokenIdsOnly(GlmTokenizer):
    """A tokenizer that refuses every text and writes none.

    Args:
        source: the folder, or what else has no tokenizer, for messages.
    """

    def __init__(self, source: str) -> None:
        self.refusal = (
            f"{source} has no tokenizer.json and no tokenizer.model, so it takes token ids only: "
            "download the complete model folder to use text."
        )
        vocabulary = _NoVocabulary(self.refusal)
        writer = ChatWriter({}, None, {}, vocabulary.special_tokens, source)
        super().__init__(vocabulary, writer, "none")

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: ChatOptions = NO_OPTIONS,
        max_tokens: int | None = None,
    ) -> NoReturn:
        """Refuse a conversation.

        Raises:
            PromptError: always.
        """
        raise PromptError(self.refusal)


class _NoVocabulary(Vocabulary):
    source = "none"

    def __init__(self, refusal: str) -> None:
        super().__init__(SpecialTokens.as_written({}), {}, (), num_token_ids=0)
        self._refusal = refusal

    def encode(self, text: str) -> NoReturn:
        raise PromptError(self._refusal)

    def encode_text(self, text: str) -> NoReturn:
        raise PromptError(self._refusal)

    def _look_up_bytes(self, token_id: int) -> bytes:
        return b""
