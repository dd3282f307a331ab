"""A chat: turns, commands, and what Ctrl-C does to an answer."""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any, NoReturn

from mindformers_glm.core.errors import GlmError
from mindformers_glm.serving.answer_clock import AnswerClock
from mindformers_glm.serving.chat.files import SavedFiles, read_tools, tool_names
from mindformers_glm.serving.chat.model import ChatModel, Message, assistant_message
from mindformers_glm.serving.chat.screen import Screen
from mindformers_glm.system.interrupts import exit_at_once, on_interrupt
from mindformers_glm.tokenizer.replies import ParsedReply

HELP = """\
/clear          forget the conversation; the system prompt and the tools stay
/system TEXT    set the system prompt; without TEXT there is none
/tools FILE     offer the functions of a JSON file to the model; without FILE none
/save FILE      write the conversation to a JSON file
/stop, /exit    end the chat, as Ctrl-D does
/help           this list
Ctrl-C stops an answer; what there is of it stays in the conversation."""
_ENDS = ("/stop", "/exit")


class ChatSession:
    """The conversation so far, and who answers and who reads.

    Args:
        system: the system prompt; "": none.
        tools: descriptions of functions that the model may call.
    """

    def __init__(
        self, model: ChatModel, screen: Screen, *, system: str = "", tools: Any = ()
    ) -> None:
        self.messages: list[Message] = []
        self._model, self._screen = model, screen
        self._system, self._tools = system, list(tools)
        self._files = SavedFiles()
        self._is_stopped = False
        self._open_calls: list[Any] = []  # calls of the last answer whose results are to come

    def run(self) -> int:
        """Take turns until the end of the input and return the exit code.

        1 where no user sits at a terminal and a turn has failed, else 0.
        """
        has_errors = False
        while True:
            try:
                line = self._screen.read_line(self._question())
                if line.strip() in _ENDS:
                    break
                self._take(line)
            except EOFError:
                break
            except KeyboardInterrupt:
                if not self._screen.is_terminal:
                    raise
                self._screen.end_answer()  # the line was given up, or an answer just over
            except GlmError as problem:
                has_errors = True
                self._screen.end_answer()
                self._screen.tell(f"error: {problem}")
        return int(has_errors and not self._screen.is_terminal)

    def _question(self) -> str:
        return f"result of {self._open_calls[0]['function']['name']}:" if self._open_calls else ">"

    def _take(self, line: str) -> None:
        if line.startswith("/"):
            self._obey(*line.partition(" ")[::2])
        elif self._open_calls:
            call = self._open_calls.pop(0)
            self.messages.append({"role": "tool", "content": line, "tool_call_id": call["id"]})
            if not self._open_calls:
                self._answer()
        elif line.strip():
            self.messages.append({"role": "user", "content": line})
            self._answer()

    def _obey(self, command: str, rest: str) -> None:
        rest = rest.strip()
        if command == "/clear":
            self._forget_from(0)
            self._screen.tell("the conversation begins anew")
        elif command == "/system":
            self._system = rest
            self._screen.tell("system prompt set" if rest else "no system prompt")
        elif command == "/tools":
            self._tools = read_tools(rest) if rest else []
            self._screen.tell(f"tools: {', '.join(tool_names(self._tools)) or 'none'}")
        elif command == "/save":
            self._screen.tell(f"saved to {self._files.write(rest, self._whole())}")
        elif command == "/help":
            self._screen.tell(HELP)
        else:
            raise GlmError(
                f"Unknown command {command}: /help lists them; a message may begin with a blank "
                "and then /."
            )

    def _whole(self) -> list[Message]:
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, *self.messages]

    def _forget_from(self, place: int) -> None:
        del self.messages[place:]
        self._open_calls = []

    def _answer(self) -> None:
        """Have the conversation answered, write it, and make it a part of the conversation."""
        asked = max(i for i, message in enumerate(self.messages) if message["role"] == "user")
        written: list[ParsedReply] = []
        is_kept = False
        try:
            speed = self._follow(written)
            reply = ParsedReply.join(written)
            is_kept = bool(reply.content) or not self._is_stopped
            if is_kept:
                self._keep(reply)
        finally:
            if not is_kept:  # so that nothing stands there without an answer
                self._forget_from(asked)
        self._screen.tell(speed)

    def _follow(self, written: list[ParsedReply]) -> str:
        """Write an answer as it comes; returns what to tell of it."""
        clock, has_text = AnswerClock(), False
        self._is_stopped = False
        try:
            with (
                self._stoppable(),
                closing(self._model.answer(self._whole(), self._tools)) as pieces,
            ):
                for piece in pieces:
                    clock.take(piece)
                    written.append(piece.reply)
                    self._screen.show_thought(piece.reply.reasoning)
                    text = piece.reply.content
                    if not has_text:  # GLM-4 begins with a newline
                        text = text.lstrip("\n")
                    has_text = has_text or bool(text)
                    self._screen.show_text(text)
                    if self._is_stopped:
                        break
        except KeyboardInterrupt:
            if not self._is_stopped:
                raise
        if not self._is_stopped:
            for call in ParsedReply.join(written).tool_calls:
                self._screen.show_call(call)
        self._screen.end_answer()
        return clock.tell(is_stopped=self._is_stopped)

    def _keep(self, reply: ParsedReply) -> None:
        message = assistant_message(reply, len(self.messages), has_calls=not self._is_stopped)
        self._open_calls = list(message.get("tool_calls", ()))
        self.messages.append(message)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Let Ctrl-C stop the answer; a second one ends the program, should a step take long."""
        if not self._screen.is_terminal:
            yield
            return

        def stop(signal_number: int, frame: FrameType | None) -> None:
            on_interrupt(exit_at_once)
            self._is_stopped = True
            if self._model.raises_when_stopped:
                raise KeyboardInterrupt

        on_interrupt(stop)
        try:
            yield
        finally:
            interrupt_lines()


def interrupt_lines() -> None:
    """Let Ctrl-C give a line up while it is typed, and a SIGTERM end the program in order."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _end)


def _end(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal_number)
