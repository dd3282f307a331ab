"""Prompts and conversations to token ids, and token ids to text."""

import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from mindformers_glm.core.errors import CheckpointError, ConfigError, PromptError
from mindformers_glm.tokenizer.detokenizer import IncrementalDetokenizer, byte_level_alphabet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BYTE_OF_CHAR = byte_level_alphabet()


class GlmTokenizer:
    """A Hugging Face fast tokenizer with the safe side of chat templates.

    With a template the ids are those of Hugging Face's `apply_chat_template(tokenize=True)`, with
    one difference: special tokens that stand in the text of a message (or in a tool's description)
    stay text. Hugging Face makes control tokens of them, so that a user can end the turn or speak
    as the system.

    Args:
        fast_tokenizer: with a byte-level decoder.
        source: the folder, for messages.
    """

    def __init__(self, fast_tokenizer: "PreTrainedTokenizerFast", source: str) -> None:
        self._fast_tokenizer = fast_tokenizer
        self._backend = fast_tokenizer.backend_tokenizer
        self._source = source
        # encode_special_tokens below is a switch of the shared backend.
        self._lock = threading.Lock()
        self.special_token_ids = frozenset(
            token_id
            for token_id, token in fast_tokenizer.added_tokens_decoder.items()
            if token.special
        )
        specials = [
            token.content for token in fast_tokenizer.added_tokens_decoder.values() if token.special
        ]
        longest_first = sorted(specials, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._token_bytes = lru_cache(maxsize=None)(self._look_up_bytes)

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint says how a conversation is written."""
        return self._fast_tokenizer.chat_template is not None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's own end-of-text token, if it has one."""
        token_id = self._fast_tokenizer.eos_token_id
        return () if token_id is None else (token_id,)

    @property
    def num_token_ids(self) -> int:
        """One more than the highest token id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Tokenize text as it is, as Hugging Face's `tokenizer(text)` does.

        Special tokens written in the text become special tokens.
        """
        return self._encode(text, add_special_tokens=True).ids

    def encode_prompt(
        self, text: str, apply_chat_template: bool | Literal["auto"] = "auto"
    ) -> list[int]:
        """Tokenize one prompt.

        Args:
            apply_chat_template: True makes it the one user message of a conversation, False takes
                it as it is, "auto" is True where the checkpoint has a template.
        Raises:
            ConfigError: True, and the checkpoint has no chat template.
        """
        if apply_chat_template is False or (
            apply_chat_template == "auto" and not self.has_chat_template
        ):
            return self.encode(text)
        return self.encode_chat([{"role": "user", "content": text}])

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Write a conversation by the checkpoint's chat template, up to where the answer begins.

        Args:
            messages: each with a "role" (system, user, assistant, observation, ...) and what the
                template reads besides, mostly "content".
            tools: descriptions of functions the model may call, given to the template.
        Raises:
            ConfigError: the checkpoint has no chat template.
            CheckpointError: its chat template is broken.
            PromptError: the template cannot write these messages.
        """
        _check_messages(messages)
        marker = secrets.token_hex(16)
        found: list[str] = []

        def mark(match: re.Match[str]) -> str:
            found.append(match[0])
            return f"{marker}x{len(found) - 1}x"

        marked_messages = _map_texts(list(messages), lambda t: self._special_pattern.sub(mark, t))
        marked_tools = _map_texts(tools, lambda t: self._special_pattern.sub(mark, t))
        rendered = self._render(marked_messages, marked_tools)
        if not found:
            return self._encode(rendered, add_special_tokens=False).ids
        return self._encode_marked(
            rendered, re.compile(f"{marker}x(\\d+)x"), lambda match: found[int(match[1])]
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens without the special ones."""
        return self._backend.decode(list(token_ids), skip_special_tokens=True)

    def new_detokenizer(self) -> IncrementalDetokenizer:
        """Return a detokenizer for one answer; its pieces add up to `decode`."""
        return IncrementalDetokenizer(self._token_bytes)

    def _render(self, messages: Any, tools: Any) -> str:
        if not self.has_chat_template:
            raise ConfigError(
                f"{self._source} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json): use --apply_chat_template False, or add the file."
            )
        from jinja2 import TemplateSyntaxError

        try:
            return self._fast_tokenizer.apply_chat_template(
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

    def _encode_marked(
        self, rendered: str, marks: re.Pattern[str], unmark: Callable[[re.Match[str]], str]
    ) -> list[int]:
        """Tokenize a conversation in which special tokens of the users' texts are marked.

        The special tokens left are the template's. The text between two of them is tokenized in one
        piece, as Hugging Face does: a newline of the template may join one of the message.
        """
        encoding = self._encode(rendered, add_special_tokens=False)
        ids: list[int] = []
        piece_ids: list[int] = []
        piece_start = 0
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id not in self.special_token_ids:
                piece_ids.append(token_id)
                continue
            ids += self._encode_piece(rendered[piece_start:start], piece_ids, marks, unmark)
            ids.append(token_id)
            piece_ids, piece_start = [], end
        return ids + self._encode_piece(rendered[piece_start:], piece_ids, marks, unmark)

    def _encode_piece(
        self,
        piece: str,
        piece_ids: list[int],
        marks: re.Pattern[str],
        unmark: Callable[[re.Match[str]], str],
    ) -> list[int]:
        text, num_marks = marks.subn(unmark, piece)
        if not num_marks:
            return piece_ids
        return self._encode(text, add_special_tokens=False, is_plain=True).ids

    def _encode(self, text: str, *, add_special_tokens: bool, is_plain: bool = False) -> Any:
        """Run the backend; with `is_plain` special tokens in the text are text."""
        try:
            with self._lock:
                self._backend.encode_special_tokens = is_plain
                return self._backend.encode(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeError):
            raise PromptError(
                "The prompt is not valid Unicode text (it has half of a surrogate pair)."
            ) from None

    def _look_up_bytes(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id)
        if token is None or token_id in self.special_token_ids:
            return b""
        try:
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        except KeyError:
            return token.encode()  # an added token that is not special: its text is its own


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if not messages:
        raise PromptError("The conversation is empty: give at least one message.")
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        # Templates write <|role|>: anything but a word could make up other special tokens.
        if not isinstance(role, str) or not re.fullmatch(r"\w+", role):
            raise PromptError(
                f'Each message must be an object with a "role" such as "user", got {message!r:.80}.'
            )


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a copy of nested dicts and lists with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_texts(key, change): _map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(item, change) for item in value]
    return value
