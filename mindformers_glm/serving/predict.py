"""`mindformers-glm predict`: prompts in, answers on stdout and in a file."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from itertools import chain
from typing import Protocol

from mindformers_glm.backends import default_target
from mindformers_glm.config.command_line import add_options
from mindformers_glm.config.model_levels import describe_level
from mindformers_glm.config.run_config import RunConfig, load_run_config, prepare_environment
from mindformers_glm.core.errors import CheckpointError, ConfigError
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.serving.answer_file import AnswerFile
from mindformers_glm.serving.figures import Measured, RunFigures
from mindformers_glm.serving.finished_answers import FinishedAnswers
from mindformers_glm.serving.json_prompts import Prompt
from mindformers_glm.serving.live_text import LiveText
from mindformers_glm.serving.prompts import read_prompts
from mindformers_glm.serving.result_file import check_place
from mindformers_glm.system.interrupts import (
    exit_at_once,
    leave_if_stuck,
    on_interrupt,
    raise_once,
)
from mindformers_glm.system.log import note
from mindformers_glm.tokenizer import TokenIdsOnly, find_tokenizer_file
from mindformers_glm.weights.shares import is_share_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: every setting is one."""
    parser.add_argument(
        "--ray",
        nargs="+",
        metavar="NAME=VALUE",
        help="answer by several engines: replicas=N[,cpus=X,address=...] (docs/ray.md)",
    )
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer the prompts that are asked for and return the exit code."""
    on_interrupt(raise_once)
    config = load_run_config(
        arguments, script_folder=arguments.script_folder, default_target=default_target()
    )
    if not config.verbose:
        # Upstream's deprecation warnings concern its developers.
        warnings.filterwarnings("ignore")
    if arguments.ray is not None:
        from mindformers_glm.serving.ray.predict import predict_on_ray

        prompts = _read_and_check(config)
        _check_tokenizer(config)
        return predict_on_ray(arguments, config, prompts)
    return predict(config, _load)


class TextGenerator(Measured, Protocol):
    """What predict needs of `LLM`."""

    def warm_up(self) -> None:
        """Compile what the first step would compile."""
        ...

    def generate_steps(
        self, prompts: Sequence[Prompt], params: SamplingParams, /, *, is_text_shown: bool
    ) -> Generator[list[tuple[int, RequestOutput]], None, None]:
        """Answer the prompts; gives after each step what is new, by the places of the prompts."""
        ...


def _load(config: RunConfig) -> TextGenerator:
    """Load the model; nothing is written meanwhile."""
    on_interrupt(exit_at_once)
    try:
        return create_llm(config)
    finally:
        on_interrupt(raise_once)


def create_llm(config: RunConfig) -> TextGenerator:
    """Load the model; this is where MindSpore is imported."""
    from mindformers_glm import LLM

    _check_tokenizer(config)
    llm: TextGenerator = LLM(config.pretrained_model_dir, **config.llm)
    return llm


def _check_tokenizer(config: RunConfig) -> None:
    """Prompts are texts here, and each would be refused, after the weights are loaded."""
    folder = config.pretrained_model_dir
    if (folder / "config.json").exists() and find_tokenizer_file(folder) is None:
        raise CheckpointError(TokenIdsOnly(str(folder)).refusal)


def tell_level(config: RunConfig) -> None:
    """Say how far the model of the settings was tested on the device that will be chosen."""
    device_target = config.llm["device_target"] or default_target()
    level = config.model_levels.get(device_target)
    # The shipped checkpoint is no model of configs/, it is what the tests run.
    if level is not None and not config.is_shipped_checkpoint:
        note(describe_level(level, device_target))


def predict(config: RunConfig, create: Callable[[RunConfig], TextGenerator] = create_llm) -> int:
    """Answer the prompts of `config`; what can be wrong is looked for before the model is loaded.

    Returns:
        The exit code: 1 if a prompt failed, else 0.
    """
    figures = RunFigures()
    ranks = config.llm["model_parallel"]
    prompts = _read_and_check(config)
    params = SamplingParams(**config.sampling)
    is_writer = config.rank == 0  # every rank has the same answers
    if len(prompts) > 1 and not config.is_batch_size_given:
        note(f"{len(prompts)} prompts run one by one; --predict_batch_size N runs N together")
    prepare_environment(config)
    llm = create(config)
    llm.warm_up()
    figures.end_loading(llm)
    answers = FinishedAnswers(prompts, AnswerFile(config.save_file) if is_writer else None)
    with leave_if_stuck(answers.tell) if ranks > 1 else nullcontext():
        try:
            _answer(llm, prompts, params, config, answers, figures)
        finally:
            answers.tell()
    figures.tell(llm, ranks)
    return int(answers.has_errors)


def _read_and_check(config: RunConfig) -> list[Prompt]:
    """Read the prompts, and look for what can be wrong before the long work."""
    prompts = read_prompts(config.predict_data, has_stdin=config.llm["model_parallel"] == 1)
    SamplingParams(**config.sampling)
    if config.rank == 0:
        check_place(config.save_file)
    _check_prompts_are_kept(config)
    check_folder(config)
    tell_level(config)
    return prompts


def _answer(
    llm: TextGenerator,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    config: RunConfig,
    answers: FinishedAnswers,
    figures: RunFigures,
) -> None:
    """Run all prompts; what is finished is in `answers` whatever ends this."""
    is_text_shown = config.rank == 0 and (
        len(prompts) == 1 and sys.stderr.isatty() if config.stream == "auto" else config.stream
    )
    text = LiveText(len(prompts))
    try:
        with closing(llm.generate_steps(prompts, params, is_text_shown=is_text_shown)) as steps:
            for index, output in chain.from_iterable(steps):
                figures.take(index, output)
                if is_text_shown:
                    text.show(index, output)
                if output.finished:
                    answers.add(index, output)
    finally:
        text.end_line()


def check_folder(config: RunConfig) -> None:
    """Look for the checkpoint; without auto_trans_ckpt, ranks do not cut one."""
    folder = config.pretrained_model_dir
    if config.is_shipped_checkpoint:
        if not folder.is_dir():
            raise CheckpointError(
                f"The checkpoint that ships with this project is missing from "
                f"{folder}: give your own with --pretrained_model_dir DIR."
            )
        note(
            "--pretrained_model_dir is not given: using the small checkpoint that ships with this "
            f"project ({folder})"
        )
    ranks = config.llm["model_parallel"]
    if ranks > 1 and not config.auto_trans_ckpt and not is_share_folder(folder):
        raise ConfigError(
            f"auto_trans_ckpt False needs a folder that scripts/process_weights.py --tp_size "
            f"{ranks} has written, and {folder} is none: give --auto_trans_ckpt "
            "True, and each rank reads its share of the checkpoint as it is."
        )


def _check_prompts_are_kept(config: RunConfig) -> None:
    for value in map(os.path.expanduser, config.predict_data):
        if os.path.isfile(value) and os.path.realpath(value) == str(config.save_file.resolve()):
            raise ConfigError(
                f"save_file {config.save_file} is the file that holds the prompts: choose another "
                "place with --save_file."
            )
