"""`mindformers-glm predict`: prompts in, answers on stdout and in a file."""

import argparse
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mindformers_glm.config.command_line import add_options
from mindformers_glm.config.run_config import RunConfig, load_run_config, prepare_environment
from mindformers_glm.core.errors import CheckpointError, ConfigError
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.serving.prompts import read_prompts
from mindformers_glm.serving.result_file import check_place, write_atomically
from mindformers_glm.system.interrupts import exit_at_once, on_interrupt, raise_once
from mindformers_glm.system.log import note
from mindformers_glm.tokenizer import TokenIdsOnly, find_tokenizer_file
from mindformers_glm.weights.shares import is_share_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: every setting is one."""
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer the prompts that are asked for and return the exit code."""
    on_interrupt(raise_once)
    config = load_run_config(arguments, script_folder=arguments.script_folder)
    if not config.verbose:
        # Upstream's deprecation warnings concern its developers.
        warnings.filterwarnings("ignore")
    return predict(config, _load)


class TextGenerator(Protocol):
    """What predict needs of `LLM`."""

    def generate(self, prompts: Sequence[str], params: SamplingParams) -> list[RequestOutput]:
        """Answer every prompt; the answers are in the order of the prompts."""
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

    folder = config.pretrained_model_dir
    if (folder / "config.json").exists() and find_tokenizer_file(folder) is None:
        # Prompts are texts here, and each would be refused, after the weights are loaded.
        raise CheckpointError(TokenIdsOnly(str(folder)).refusal)
    llm: TextGenerator = LLM(config.pretrained_model_dir, **config.llm)
    return llm


def predict(config: RunConfig, create: Callable[[RunConfig], TextGenerator] = create_llm) -> int:
    """Answer the prompts of `config`; what can be wrong is looked for before the model is loaded.

    Returns:
        The exit code: 1 if a prompt failed, else 0.
    """
    prompts = read_prompts(config.predict_data)
    params = SamplingParams(**config.sampling)
    is_writer = config.rank == 0  # every rank has the same answers
    if is_writer:
        check_place(config.save_file)
    _check_prompts_are_kept(config)
    if config.is_shipped_checkpoint:
        if not config.pretrained_model_dir.is_dir():
            raise CheckpointError(
                f"The checkpoint that ships with this project is missing from "
                f"{config.pretrained_model_dir}: give your own with --pretrained_model_dir DIR."
            )
        note(
            "--pretrained_model_dir is not given: using the small checkpoint that ships with this "
            f"project ({config.pretrained_model_dir})"
        )
    _check_folder_is_cut(config)
    if len(prompts) > 1 and not config.is_batch_size_given:
        note(f"{len(prompts)} prompts run one by one; --predict_batch_size N runs N together")
    prepare_environment(config)
    outputs = create(config).generate(prompts, params)
    if not is_writer:
        return _exit_code(outputs)
    results = [as_result(output) for output in outputs]
    # The file first: whoever closes stdout early (`| head -1`) still gets it. And if it cannot be
    # written after all, the answers are not lost.
    try:
        write_atomically(config.save_file, str(results))
    finally:
        for result in results:
            print(result)
    _tell_what_ended_early(outputs)
    return _exit_code(outputs)


def _exit_code(outputs: Sequence[RequestOutput]) -> int:
    return int(any(output.finish_reason == "error" for output in outputs))


def _check_folder_is_cut(config: RunConfig) -> None:
    """Without auto_trans_ckpt, ranks do not cut a checkpoint."""
    folder = config.pretrained_model_dir
    ranks = config.llm["model_parallel"]
    if ranks > 1 and not config.auto_trans_ckpt and not is_share_folder(folder):
        raise ConfigError(
            f"auto_trans_ckpt False needs a folder that scripts/process_weights.py --tp_size "
            f"{ranks} has written, and {folder} is none: give --auto_trans_ckpt "
            "True, and each rank reads its share of the checkpoint as it is."
        )


def _check_prompts_are_kept(config: RunConfig) -> None:
    for value in config.predict_data:
        if os.path.isfile(value) and os.path.realpath(value) == str(config.save_file.resolve()):
            raise ConfigError(
                f"save_file {config.save_file} is the file that holds the prompts: choose another "
                "place with --save_file."
            )


def as_result(output: RequestOutput) -> dict[str, Any]:
    """One prompt's entry in upstream's format; `error` only where it failed."""
    result: dict[str, Any] = {"text_generation_text": [output.text]}
    if output.finish_reason == "error":
        result["error"] = output.error
    return result


def _tell_what_ended_early(outputs: Sequence[RequestOutput]) -> None:
    for number, output in enumerate(outputs, start=1):
        if output.finish_reason == "error":
            note(f"prompt {number} of {len(outputs)} failed: {output.error}")
    cut = [
        number for number, output in enumerate(outputs, start=1) if output.finish_reason == "length"
    ]
    if cut:
        numbers = ", ".join(map(str, cut[:10])) + (", ..." if len(cut) > 10 else "")
        note(
            f"{len(cut)} of {len(outputs)} answers were cut at the length limit (prompt "
            f"{numbers}): see --max_new_tokens, --max_length, --max_model_len"
        )
