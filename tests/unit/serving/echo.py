"""A generator that needs no model, with settings of a run beside it."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from mindformers_glm.config.run_config import RunConfig, load_run_config
from mindformers_glm.engine.answer import Answer, ListView
from mindformers_glm.engine.request_output import FinishReason, RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.engine.step_times import StepTimes
from tests.unit.config.predict_arguments import predict_arguments


class Echo:
    """Answers with the prompt in capitals, one a step; fails on "bad", is cut short on "long".

    Args:
        order: in which prompts are finished, by their places; None: as they came.
        before_step: called before each answer with how many there are.
    """

    compile_s = 0.5
    weights_bytes, kv_cache_bytes = 3 * 2**20, 2 * 2**30

    def __init__(
        self,
        order: Sequence[int] | None = None,
        before_step: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.params = SamplingParams()
        self.times = StepTimes()
        self.is_text_shown = False
        self._order = order
        self._before_step = before_step

    def warm_up(self) -> None:
        pass

    def generate_steps(
        self, prompts: Sequence[Any], params: SamplingParams, /, *, is_text_shown: bool
    ) -> Generator[list[tuple[int, RequestOutput]], None, None]:
        self.params, self.is_text_shown = params, is_text_shown
        for count, place in enumerate(self._order or range(len(prompts))):
            self._before_step(count)
            yield [(place, answer_to(str(prompts[place]), place))]


def answer_to(prompt: str, place: int = 0) -> RequestOutput:
    """The only output of a prompt."""
    if prompt == "bad":
        return RequestOutput.refused(str(place), [], "too long")
    reason: FinishReason = "length" if prompt == "long" else "stop"
    text = prompt.upper()
    answer = Answer(ListView([2, 3]), ListView([text]), ListView([]))
    return RequestOutput(str(place), [1], answer, [2, 3], text, reason)


def config_for(folder: Path, *prompts: str, options: Sequence[str] = ()) -> RunConfig:
    """Settings of a run whose result is written to result.txt in `folder`."""
    argv = ["--pretrained_model_dir", str(folder), "--save_file", str(folder / "result.txt")]
    return load_run_config(
        predict_arguments(*argv, *options, "--predict_data", *prompts), environ={}
    )
