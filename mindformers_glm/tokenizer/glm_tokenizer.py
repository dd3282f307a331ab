"""Prompts and conversations to token ids, and token ids to text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mindformers_glm.core.errors import PromptError
from mindformers_glm.tokenizer.chat import NO_OPTIONS, ChatOptions
from mindformers_glm.tokenizer.chat_writer import ChatWriter
from mindformers_glm.tokenizer.replies import detect_parsers
from mindformers_glm.tokenizer.segments import Segment
from mindformers_glm.tokenizer.vocabulary import Detokenizer, Vocabulary


class GlmTokenizer:
    """The tokenizer of one checkpoint: its vocabulary, and how it writes a conversation.

    Special tokens in the text of a conversation stay text, whoever wrote it.

    Args:
        writer: by the checkpoint's templates or in the model's own format, if there is one.
        chat_format: what `writer` follows, for people.
        reply_parsers: names of the tool-call parser and the reasoning parser that read its answers
            (`replies.TOOL_CALL_PARSERS`, `replies.REASONING_PARSERS`).
        is_base_model: the model goes on with texts, and was not trained on conversations.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        writer: ChatWriter,
        chat_format: str,
        reply_parsers: tuple[str, str] = ("none", "none"),
        *,
        is_base_model: bool = False,
    ) -> None:
        self.vocabulary = vocabulary
        self.chat_format = chat_format
        self.reply_parsers = reply_parsers
        self.is_base_model = is_base_model
        self._writer = writer

    @property
    def has_chat_template(self) -> bool:
        """Whether it is known how the checkpoint writes a conversation."""
        return self._writer.knows_format

    @property
    def chat_template_text(self) -> str:
        """The text of the checkpoint's own templates; empty: it has none."""
        return self._writer.template_text(None)

    def parsers_for(self, chat_template: str | None) -> tuple[str, str]:
        """Return the names of the parsers where conversations are written by that template.

        Raises:
            ConfigError: there is no such template.
        """
        if chat_template is None:
            return self.reply_parsers
        found = detect_parsers(self._writer.template_text(chat_template))
        return self.reply_parsers if found == ("none", "none") else found

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

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Tokenize text as it is, as the checkpoint's own tokenizer does.

        That of a tokenizer.json and of glm-4-9b-chat make special tokens of those written in the
        text, those of ChatGLM2 and ChatGLM3 do not. The latter three put [gMASK] and sop before it.

        Args:
            max_tokens: the prompt may have; a text whose length tells that it has more is not read.
        Raises:
            PromptError: it is such a text, or not valid Unicode.
        """
        self._check_length([text], max_tokens)
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
        options: ChatOptions = NO_OPTIONS,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Write a conversation as the checkpoint does, up to where the answer begins.

        Args:
            messages: each with a "role" (system, user, assistant, observation, or OpenAI's names of
                them) and what the chat format reads besides, mostly "content".
            tools: descriptions of functions the model may call, given to the chat format.
            options: another template, and where the prompt ends.
            max_tokens: as for `encode`.
        Raises:
            ConfigError: the checkpoint has no chat template, or not the one that is asked for.
            CheckpointError: its chat template is broken.
            PromptError: the chat format cannot write these messages, or they are too long.
        """
        segments = list(self._writer.write(messages, tools, options))
        self._check_length([each for each in segments if isinstance(each, str)], max_tokens)
        return self.encode_segments(segments)

    def _check_length(self, texts: Sequence[str], max_tokens: int | None) -> None:
        if max_tokens is None or sum(map(len, texts)) <= max_tokens:
            return
        least = sum(map(self.vocabulary.least_tokens, texts))
        if least > max_tokens:
            raise PromptError(
                f"The prompt has {sum(map(len, texts))} characters, which are {least} tokens or "
                f"more, and the limit is max_model_len={max_tokens} for prompt and answer "
                "together: shorten it."
            )

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
