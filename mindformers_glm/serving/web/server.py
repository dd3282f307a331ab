"""A server of a program's own: `mindformers-glm serve` as a process."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from mindformers_glm.core.errors import GlmError
from mindformers_glm.system.log import write_line
from mindformers_glm.system.parents import die_with_parent

_READY = re.compile(r"^mindformers_glm: serving .* at (https?://\S+)/v1, ")
_ERROR = "error: "
_END_S = 30.0  # after SIGTERM


class OwnServer:
    """A server on a free port of this machine, which ends when this process does.

    Args:
        words: the options of `serve` beside address and log.
        host: the address.
    """

    def __init__(
        self, words: Sequence[str], *, host: str = "127.0.0.1", has_access_log: bool = False
    ) -> None:
        options = ["--host", host, "--port", "0", "--access_log", str(has_access_log)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mindformers_glm", "serve", *words, *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C ends the page, and this by the page
            preexec_fn=die_with_parent(),  # threads of others do not matter to a call of prctl
        )
        self._is_ending = False

    def wait_until_ready(self) -> str:
        """Tell what the server tells while it loads, and return its URL.

        Raises:
            GlmError: it has ended, with what it said last.
        """
        assert self._process.stderr is not None
        problem = ""
        for line in self._process.stderr:
            if match := _READY.match(line):
                threading.Thread(target=self._pass_on, daemon=True).start()
                return match[1]
            if line.startswith(_ERROR):
                problem = line.removeprefix(_ERROR).strip()
            else:
                write_line(line.rstrip("\n"))
        exit_code = self._process.wait()
        raise GlmError(problem or f"The server has ended with exit code {exit_code}.")

    def watch(self, on_death: Callable[[int], None]) -> None:
        """Have `on_death` called with the exit code when it ends before `end` is called."""

        def wait() -> None:
            exit_code = self._process.wait()
            if not self._is_ending:
                on_death(exit_code)

        threading.Thread(target=wait, daemon=True).start()

    def end(self, drain_s: float = 0.0) -> None:
        """End it, at once where it does not do so in time.

        Args:
            drain_s: that its answers may take besides.
        """
        self._is_ending = True
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(drain_s + _END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _pass_on(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:  # or the pipe would be full, and the server wait
            write_line(line.rstrip("\n"))
