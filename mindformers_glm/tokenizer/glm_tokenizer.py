"""Prompts and conversations to token ids, and token ids to text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from mindformers_glm.core.errors import ConfigError, PromptError
from mindformers_glm.tokenizer.chat import read_role
from mindformers_glm.tokenizer.segments import Segment
from mindformers_glm.tokenizer.vocabulary import Detokenizer, Vocabulary

# Messages and tools (None: no tools) to segments, up to where the answer begins.
WriteChat: TypeAlias = Callable[
    [Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None], list[Segment]
]


class GlmTokenizer:
    """The tokenizer of one checkpoint: its vocabulary, and how it writes a conversation.

    Special tokens in the text of a conversation stay text, whoever wrote it.

    Args:
        write_chat: by the checkpoint's template or in the model's own format, if there is one.
        chat_format: what `write_chat` follows, for people.
        source: the folder, for messages.
        reply_parsers: names of the tool-call parser and the reasoning parser that read its answers
            (`replies.TOOL_CALL_PARSERS`, `replies.REASONING_PARSERS`).
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        write_chat: WriteChat | None,
        chat_format: str,
        source: str,
        reply_parsers: tuple[str, str] = ("none", "none"),
    ) -> None:
        self.vocabulary = vocabulary
        self.chat_format = chat_format
        self.reply_parsers = reply_parsers
        self._write_chat = write_chat
        self._source = source

    @property
    def has_chat_template(self) -> bool:
        """Whether it is known how the checkpoint writes a conversation."""
        return self._write_chat is not None

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids that have no text."""
        return self.vocabulary.special_token_ids

    @property
    def special_token_names(self) -> Mapping[int, str]:
        """The same ids with their names."""
        return self.vocabulary.special_token_names

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's own end-of-text token, if it has one."""
        return self.vocabulary.eos_token_ids

    @property
    def num_token_ids(self) -> int:
        """One more than the highest token id."""
        return self.vocabulary.num_token_ids

    def encode(self, text: str) -> list[int]:
        """Tokenize text as it is, as the checkpoint's own tokenizer does.

        That of a tokenizer.json and of glm-4-9b-chat make special tokens of those written in the
        text, those of ChatGLM2 and ChatGLM3 do not. The latter three put [gMASK] and sop before it.
        """
        return self.vocabulary.encode(text)

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Tokenize each text on its own, between the ids of the special tokens.

        Raises:
            PromptError: a text is not valid Unicode.
            CheckpointError: the vocabulary does not have one of the special tokens.
        """
        return self.vocabulary.encode_segments(segments)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Write a conversation as the checkpoint does, up to where the answer begins.

        Args:
            messages: each with a "role" (system, user, assistant, observation, or OpenAI's names of
                them) and what the chat format reads besides, mostly "content".
            tools: descriptions of functions the model may call, given to the chat format.
        Raises:
            ConfigError: the checkpoint has no chat template.
            CheckpointError: its chat template is broken.
            PromptError: the chat format cannot write these messages.
        """
        _check_messages(messages)
        if self._write_chat is None:
            raise ConfigError(
                f"{self._source} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json): add it, or give a text with apply_chat_template False."
            )
        return self.encode_segments(self._write_chat(messages, tools))

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of tokens without the special ones."""
        detokenizer = self.new_detokenizer()
        return "".join(map(detokenizer.feed, token_ids)) + detokenizer.flush()

    def decode_token(self, token_id: int) -> str:
        """Return the text of a token by itself; of a special one its name."""
        return self.vocabulary.decode_token(token_id)

    def spell_word(self, word: str) -> list[list[int]]:
        """Return the ways in which an answer may write a word: see `SamplingParams.bad_words`.

        Raises:
            PromptError: it is not valid Unicode.
        """
        return self.vocabulary.spell_word(word)

    def new_detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """Return a detokenizer for one answer; its pieces add up to `decode`.

        Args:
            skip_special_tokens: False: they have text, their names.
        """
        return self.vocabulary.new_detokenizer(skip_special_tokens=skip_special_tokens)


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if not messages:
        raise PromptError("The conversation is empty: give at least one message.")
    for message in messages:
        read_role(message)
