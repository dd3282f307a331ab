"""Finished answers of a large file, kept until all are there: a run that was killed goes on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mindformers_glm.core.errors import ConfigError, GlmError
from mindformers_glm.engine.request_output import FinishReason
from mindformers_glm.serving.answer_file import FinishedOutput
from mindformers_glm.serving.result_file import FileState, append_text, write_atomically

_SUFFIX = ".unfinished"


@dataclass(frozen=True)
class KeptOutput:
    """What of an answer is written to a result file."""

    text: str
    finish_reason: FinishReason | None
    error: str | None
    prompt_token_ids: list[int]
    token_ids: list[int]


def keep(output: FinishedOutput) -> dict[str, Any]:
    """An answer as JSON can hold it."""
    return asdict(
        KeptOutput(
            output.text,
            output.finish_reason,
            output.error,
            list(output.prompt_token_ids),
            list(output.token_ids),
        )
    )


class Journal:
    """A file beside the result file: what is asked, and a line for each answer.

    Args:
        save_file: of the results.
        asked: all that answers follow from; another run's journal is not gone on with.
    Raises:
        ConfigError: there is a journal of something else.
    """

    def __init__(self, save_file: Path, asked: Mapping[str, Any]) -> None:
        self.path = save_file.with_name(save_file.name + _SUFFIX)
        text = json.dumps(asked, sort_keys=True, default=str)
        self._head = json.dumps({"asked": hashlib.sha256(text.encode()).hexdigest()})
        self._state: FileState | None = None
        self.outputs: dict[int, KeptOutput] = {}
        if self.path.exists():
            self._read()

    def add(self, index: int, output: dict[str, Any]) -> None:
        """Keep an answer.

        Raises:
            GlmError: it cannot be written.
        """
        line = json.dumps({"index": index} | output) + "\n"
        self.outputs[index] = KeptOutput(**output)
        if self._state is None:  # anew, without a line that was cut when the run was killed
            lines = [self._head + "\n"]
            lines += [json.dumps({"index": i} | keep(o)) + "\n" for i, o in self.outputs.items()]
            self._state = write_atomically(self.path, "".join(lines))
        else:
            self._state = append_text(self.path, line, self._state)

    def end(self) -> None:
        """All answers are in the result file."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as problem:
            raise GlmError(f"Cannot read {self.path}: {problem}.") from None
        if lines[0] != self._head:
            raise ConfigError(
                f"{self.path} holds answers of a run with other prompts or settings: delete it, or "
                "choose another --save_file."
            )
        for line in lines[1:-1]:  # the last one has no end: it is empty, or was cut
            try:
                entry = json.loads(line)
                index = entry.pop("index")
                self.outputs[index] = KeptOutput(**entry)
            except (ValueError, AttributeError, KeyError, TypeError):
                raise ConfigError(
                    f"{self.path} is damaged at {line!r:.40}: take that line out, and its answer "
                    "is asked for again, or delete the file."
                ) from None
