"""Answers on the terminal while they are generated."""

import sys
from collections import defaultdict

from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.system.log import note

# What would move the cursor or change the terminal is shown as its number.
SHOWN_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}


class LiveText:
    """Writes text to stderr as it comes; of several answers one after the other.

    Not to stdout: what stands there is complete answers, for programs to read. Behind an answer
    that is not yet finished, those of later prompts wait.
    """

    def __init__(self, num_prompts: int) -> None:
        self._num_prompts = num_prompts
        self._texts: defaultdict[int, str] = defaultdict(str)  # not written yet
        self._finished: set[int] = set()
        self._current = 0
        self._is_line_open = False
        self._is_headed = num_prompts == 1
        self._is_terminal = sys.stderr.isatty()

    def show(self, index: int, output: RequestOutput) -> None:
        """Take what is new of the answer to the prompt at `index`."""
        self._texts[index] += output.delta_text
        if output.finished:
            self._finished.add(index)
        while self._current in self._texts:
            if not self._is_headed:
                note(f"prompt {self._current + 1} of {self._num_prompts}")
                self._is_headed = True
            self._write(self._texts.pop(self._current))
            if self._current not in self._finished:
                break
            self.end_line()
            self._current += 1
            self._is_headed = False

    def end_line(self) -> None:
        """Go to the start of a line, if text stands in this one."""
        if self._is_line_open:
            self._write("\n")

    def _write(self, text: str) -> None:
        if not text:
            return
        self._is_line_open = not text.endswith("\n")
        sys.stderr.write(text.translate(SHOWN_CONTROLS) if self._is_terminal else text)
        sys.stderr.flush()
