"""A user of a chat: types lines, and keeps what is written."""

from collections.abc import Callable, Sequence

from mindformers_glm.tokenizer.tool_call import ToolCall


class User:
    """Types the lines; `on_text` is called with each piece of an answer."""

    def __init__(
        self, lines: Sequence[str | type[BaseException]], *, is_terminal: bool = False
    ) -> None:
        self._lines = list(lines)
        self.is_terminal = is_terminal
        self.questions: list[str] = []
        self.answers: list[str] = []
        self.thoughts = ""
        self.calls: list[ToolCall] = []
        self.told: list[str] = []
        self.on_text: Callable[[str], None] = lambda text: None
        self._text = ""

    def read_line(self, question: str) -> str:
        self.questions.append(question)
        line = self._lines.pop(0) if self._lines else EOFError
        if isinstance(line, str):
            return line
        raise line

    def show_thought(self, text: str) -> None:
        self.thoughts += text

    def show_text(self, text: str) -> None:
        self._text += text
        if text:
            self.on_text(text)

    def show_call(self, call: ToolCall) -> None:
        self.calls.append(call)

    def end_answer(self) -> None:
        if self._text:
            self.answers.append(self._text)
        self._text = ""

    def tell(self, line: str) -> None:
        self.told.append(line)
