"""`mindformers-glm predict --ray`: many prompts, answered by several engines through Ray Data."""

import argparse
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from mindformers_glm.config.run_config import RunConfig, prepare_environment
from mindformers_glm.core.errors import ConfigError, GlmError, first_words
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.serving.answer_file import AnswerFile
from mindformers_glm.serving.finished_answers import FinishedAnswers
from mindformers_glm.serving.json_prompts import Prompt
from mindformers_glm.serving.ray.cluster import check_packages, connect, machine_cpus
from mindformers_glm.serving.ray.journal import Journal, keep
from mindformers_glm.serving.ray.options import RaySettings, read_ray_option, share_machines
from mindformers_glm.serving.ray.words import given_words, read_words
from mindformers_glm.system.interrupts import exit_at_once, on_interrupt
from mindformers_glm.system.log import note

_BATCHES_AT_ONCE = 4  # of predict_batch_size in one task: an engine is refilled, not emptied
# Ray imports protobuf 7 first; the files of MindSpore 2.7.1 need its implementation in Python then.
_WORKER = {"env_vars": {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}}


def predict_on_ray(
    arguments: argparse.Namespace, config: RunConfig, prompts: Sequence[Prompt]
) -> int:
    """Answer prompts; those that a run before this one has answered stay.

    Args:
        arguments: the command line that `config` is of, which has been checked.

    Returns:
        The exit code: 1 if a prompt failed, else 0.
    Raises:
        GlmError: an option is wrong, or the engines cannot start.
    """
    settings = read_ray_option(arguments.ray)
    if settings.is_scaled or settings != replace(
        RaySettings(settings.replicas), cpus=settings.cpus, address=settings.address
    ):
        raise ConfigError("predict --ray takes replicas=, cpus= and address= only.")
    if config.llm["model_parallel"] > 1:
        raise ConfigError("predict --ray runs whole engines: leave model_parallel out.")
    check_packages("ray", "pandas", "pyarrow")
    journal = Journal(config.save_file, _what_is_asked(prompts, config))
    answers = FinishedAnswers(prompts, AnswerFile(config.save_file))
    for index, output in journal.outputs.items():
        answers.add(index, output)
    rest = [index for index in range(len(prompts)) if index not in journal.outputs]
    if journal.outputs:
        note(f"{len(journal.outputs)} of {len(prompts)} answers are there from a run before")
    on_interrupt(exit_at_once)  # all that is finished is in the journal
    try:
        if rest:
            connect(settings.address, is_verbose=config.verbose)
            words = given_words(arguments, config)
            for index, kept in _answer(rest, prompts, words, settings, config):
                journal.add(index, kept)
                answers.add(index, journal.outputs[index])
    finally:
        answers.tell()
    journal.end()
    return int(answers.has_errors)


def _what_is_asked(prompts: Sequence[Prompt], config: RunConfig) -> dict[str, Any]:
    folder = config.pretrained_model_dir.resolve()
    return {
        "prompts": list(prompts),
        "folder": str(folder),
        "files": sorted((f.name, f.stat().st_size) for f in folder.iterdir() if f.is_file()),
        "llm": dict(config.llm),
        "sampling": dict(config.sampling),
    }


def _answer(
    rest: Sequence[int],
    prompts: Sequence[Prompt],
    words: Sequence[str],
    settings: RaySettings,
    config: RunConfig,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Give the answers as they come, in any order."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = config.verbose
    if not config.verbose:
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # set anew by the import
    shares = share_machines(settings, machine_cpus())
    rows = [{"index": index, "prompt": json.dumps(prompts[index])} for index in rest]
    size = config.llm["max_num_seqs"] * _BATCHES_AT_ONCE
    size = max(1, min(size, math.ceil(len(rows) / settings.replicas)))
    data = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / size)).map_batches(
        Answerer,
        fn_constructor_args=(list(words), shares.num_threads),
        batch_size=size,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=settings.replicas),
        num_cpus=shares.cpus,
        runtime_env=_WORKER,
    )
    try:
        for row in data.iter_rows():
            yield int(row["index"]), json.loads(row["output"])
    except ray.exceptions.RayError as problem:
        raise GlmError(f"The engines of Ray failed: {first_words(problem)}") from None


class Answerer:
    """An engine in a worker of Ray Data; loaded once, asked for many batches.

    Args:
        words: the settings of `predict`.
        num_threads: of the engine, where they do not say.
    """

    def __init__(self, words: Sequence[str], num_threads: int) -> None:
        config = read_words([f"--num_threads={num_threads}", *words], "predict")
        prepare_environment(config)
        from mindformers_glm import LLM

        self._llm = LLM(config.pretrained_model_dir, **config.llm)
        self._llm.warm_up()
        self._sampling = config.sampling

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Answer a batch of prompts."""
        prompts = [json.loads(text) for text in batch["prompt"]]
        outputs = [""] * len(prompts)
        params = SamplingParams(**self._sampling)
        for step in self._llm.generate_steps(prompts, params, is_text_shown=False):
            for place, output in step:
                if output.finished:
                    outputs[place] = json.dumps(keep(output))
        return {"index": list(batch["index"]), "output": outputs}
