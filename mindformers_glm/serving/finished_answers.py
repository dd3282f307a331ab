"""What of a batch is finished: saved as it comes, printed at the end, however that comes."""

import threading
from collections.abc import Sequence

from mindformers_glm.serving.answer_file import AnswerFile, FinishedOutput, as_result
from mindformers_glm.serving.json_prompts import Prompt
from mindformers_glm.system.log import note


class FinishedAnswers:
    """The finished answers to `prompts`; `file` None: another rank writes and prints them."""

    def __init__(self, prompts: Sequence[Prompt], file: AnswerFile | None) -> None:
        self._prompts = prompts
        self._file = file
        self._outputs: dict[int, FinishedOutput] = {}
        self._is_told = False
        self._telling = threading.Lock()

    @property
    def has_errors(self) -> bool:
        """Whether a prompt failed."""
        return any(output.finish_reason == "error" for output in self._outputs.values())

    def add(self, index: int, output: FinishedOutput) -> None:
        """Take and save the answer to the prompt at `index`."""
        self._outputs[index] = output
        if self._file is not None:
            self._file.add(index, self._prompts[index], output)

    def tell(self) -> None:
        """Save and print them in the order of the prompts, once; say what failed and is missing.

        Two threads may call it: the second one waits for the first.

        Raises:
            GlmError: the file cannot be written; they are printed all the same.
        """
        with self._telling:
            if self._file is not None and not self._is_told:
                self._is_told = True
                self._tell(self._file)

    def _tell(self, file: AnswerFile) -> None:
        # The file first: whoever closes stdout early (`| head -1`) still gets it. And if it cannot
        # be written after all, the answers are not lost.
        try:
            file.close()
        finally:
            for index in sorted(self._outputs):
                print(as_result(self._outputs[index]))
        self._tell_what_ended_early()

    def _tell_what_ended_early(self) -> None:
        count = len(self._prompts)
        missing = [number for number in range(1, count + 1) if number - 1 not in self._outputs]
        if missing:
            saved = f"{count - len(missing)} of {count} answers are finished and saved"
            note(f"{saved}; missing: {_prompts(missing)}")
        for index, output in sorted(self._outputs.items()):
            if output.finish_reason == "error":
                note(f"prompt {index + 1} of {count} failed: {output.error}")
        cut = [i + 1 for i, o in sorted(self._outputs.items()) if o.finish_reason == "length"]
        if cut:
            note(
                f"{len(cut)} of {count} answers were cut at the length limit ({_prompts(cut)}): "
                "see --max_new_tokens, --max_length, --max_model_len"
            )


def _prompts(numbers: Sequence[int]) -> str:
    """Name prompts by their ascending numbers: "prompt 2, 5-9, 11"; at most ten parts."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in parts]
    return "prompt " + ", ".join(texts[:10]) + (", ..." if len(texts) > 10 else "")
