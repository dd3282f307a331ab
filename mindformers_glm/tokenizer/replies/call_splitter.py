"""Telling tool calls from what is said, while an answer is being written."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from mindformers_glm.tokenizer.replies.call_candidates import CallCandidate
from mindformers_glm.tokenizer.replies.parsed_reply import ParsedReply
from mindformers_glm.tokenizer.tool_call import ToolCall


class CallPlace(NamedTuple):
    """Where a call may begin.

    Attributes:
        begins_message: nothing of the message was said before.
        is_named: only the name of a call can stand here: on the role's line, or behind a tag.
        is_object: an object begins here, behind a tag.
    """

    begins_message: bool
    is_named: bool
    is_object: bool


class CallSplitter:
    """Splits an answer into what is said and the calls in it.

    An answer is one assistant message after another: <|assistant|> stands between them. A message
    begins with the rest of the role's line (empty, or the name of a tool), then comes its content.
    A call may begin at any line, or directly behind another call. Nothing but the blank role line
    and blanks behind a call is dropped.

    Args:
        new_candidate: makes what reads a possible call; None where the model calls no tools.
        has_role_line: messages begin with the rest of the role's line.
        drops_blanks: the tokenizer writes blanks before each message (sentencepiece's dummy
            prefix); they are dropped as well.
        is_continued: the first message has begun before this answer.
    """

    def __init__(
        self,
        new_candidate: Callable[[CallPlace], CallCandidate] | None,
        *,
        has_role_line: bool,
        drops_blanks: bool,
        is_continued: bool = False,
    ) -> None:
        self._new_candidate = new_candidate
        self._has_role_line = has_role_line
        self._drops_blanks = drops_blanks
        self._held_blanks = ""
        self._candidate: CallCandidate | None = None
        self._content = ""  # of the piece under way
        self._calls: list[ToolCall] = []
        self._has_content = False
        self._num_told = 0  # characters of arguments of a call that has begun
        self._begin_message(separator="")
        if is_continued:
            self._skips_role_line = self._is_line_start = self._is_message_start = False

    def feed(self, text: str) -> ParsedReply:
        """Take the next piece of text and return what is certain of it."""
        self._read(text)
        return self._take_piece()

    def start_turn(self) -> ParsedReply:
        """End this message; another one of the same answer begins."""
        piece = self.flush(is_complete=True)
        self._begin_message(separator="\n" if self._has_content else "")
        return piece

    def mark_call(self, *, begins: bool) -> ParsedReply:
        """A special token says that a call begins here, or that it has ended.

        What stands between the two is a call by the same rules as at the beginning of a line; an
        object with name and arguments is one, too. Blanks behind both are dropped.
        """
        piece = self.flush(is_complete=True)
        if self._new_candidate is not None:
            self._is_behind_tag, self._skips_role_line = begins, False
            self._is_line_start = self._skips_blanks = True
        return piece

    def flush(self, *, is_complete: bool = False) -> ParsedReply:
        """Return what is held back: no more text belongs to this message.

        Args:
            is_complete: the model has ended it; else it may have been cut off.
        """
        held, self._held_blanks = self._held_blanks, ""
        self._say(held)
        while self._candidate is not None:
            self._read(self._settle(self._candidate.finish(is_complete=is_complete) == "call"))
        return self._take_piece()

    def _begin_message(self, separator: str) -> None:
        self._separator = separator
        self._is_line_start = self._is_message_start = True
        self._skips_role_line = self._has_role_line
        self._skips_blanks = self._is_behind_tag = False
        self._is_role_line = self._has_role_line

    def _read(self, text: str) -> None:
        while text:
            if self._skips_role_line:
                text = self._skip_role_line(text)
            elif self._skips_blanks:
                text = text.lstrip()
                self._skips_blanks = not text
            elif self._candidate is not None:
                verdict = self._candidate.feed(text)
                if verdict == "open":
                    self._tell_begun(self._candidate)
                text = "" if verdict == "open" else self._settle(verdict == "call")
            elif self._is_line_start and self._new_candidate is not None:
                place = CallPlace(
                    self._is_message_start,
                    self._is_behind_tag or (self._is_message_start and self._is_role_line),
                    self._is_behind_tag and text.startswith("{"),
                )
                self._candidate = self._new_candidate(place)
                self._is_behind_tag = False
            else:
                text = self._say_line(text)

    def _skip_role_line(self, text: str) -> str:
        text = self._held_blanks + text
        line = text.lstrip(" ")
        if line in ("", "\r"):
            self._held_blanks = text
            return ""
        line = line[1:] if line.startswith("\r\n") else line
        self._held_blanks = ""
        self._skips_role_line = False
        self._skips_blanks = self._drops_blanks
        if not line.startswith("\n"):
            return text
        self._is_role_line = False
        return line[1:]

    def _settle(self, is_call: bool) -> str:
        """Take what the candidate proved to be, and return what is still to be read."""
        candidate, self._candidate = self._candidate, None
        assert candidate is not None
        if not is_call:
            # Its first line is text; another call may begin on the next one.
            return self._say_line(candidate.text)
        assert candidate.call is not None
        self._tell_call(candidate.call)
        self._is_line_start = self._skips_blanks = True
        self._is_message_start = False
        return candidate.rest

    def _tell_begun(self, candidate: CallCandidate) -> None:
        if candidate.begun is not None:
            name, arguments = candidate.begun
            if len(arguments) > self._num_told:
                self._tell_call(ToolCall(name, arguments, is_open=True))
                self._num_told = len(arguments)

    def _tell_call(self, call: ToolCall) -> None:
        """Tell a call, or what is new of one that was told to have begun."""
        if self._num_told:
            call = replace(call, name="", arguments=call.arguments[self._num_told :])
        self._calls.append(call)
        self._num_told = 0

    def _say_line(self, text: str) -> str:
        line, newline, rest = text.partition("\n")
        self._say(line + newline)
        self._is_line_start = bool(newline)
        return rest

    def _say(self, text: str) -> None:
        if text:
            self._content += self._separator + text
            self._separator = ""
            self._has_content = True
            self._is_message_start = False

    def _take_piece(self) -> ParsedReply:
        piece = ParsedReply(content=self._content, tool_calls=tuple(self._calls))
        self._content, self._calls = "", []
        return piece
