"""MindSpore Transformers' own Trainer, pipeline and AutoModel on our registered classes.

    upstream_callers.py CALLER FOLDER [CALLER FOLDER...]

Prints a line of JSON for each: what the CALLER of `CALLERS` has got for PROMPTS, and how often
Ascend's operator for prompts was called. Below them stands what a card would make needless:
MindSpore's own context, which knows no Ascend here, and two functions without a kernel on a CPU.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from mindformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
from mindformers.core.context import build_context
from mindformers.generation import text_generator
from mindformers.parallel_core.inference.base_models.gpt import gpt_model
from mindformers.tools.register import MindFormerConfig
from mindformers.trainer import Trainer
from mindspore import Tensor, mint

from mindformers_glm.backends.ascend.backend import AscendBackend
from tests.ascend_contract.install import contract_references, replaced

PROMPTS = ["hello", "wörld"]
NUM_TOKENS = 4
# Of the process: eager, and the cores left to whom they belong.
ENVIRONMENT = {"ENFORCE_EAGER": "True", "CPU_AFFINITY": "False"}
FLOAT32 = {"params_dtype": "float32", "compute_dtype": "float32"}
_GREEDY = {"do_sample": False, "max_new_tokens": NUM_TOKENS}


def main(asked: list[str], calls: Counter[str]) -> None:
    build_context(_run_config(asked[1]))
    for caller, folder in zip(asked[::2], asked[1::2], strict=True):
        calls.clear()
        texts = CALLERS[caller](folder)
        print(json.dumps([caller, texts, calls["FlashAttentionScore"]]), flush=True)


def _ask_trainer(folder: str) -> list[str]:
    """As upstream's run_mindformer.py does."""
    config = _run_config(folder)
    found = Trainer(config).predict(
        predict_checkpoint=config.load_checkpoint, input_data=PROMPTS, batch_size=None, **_GREEDY
    )
    return [answer["text_generation_text"][0] for answer in found]


def _ask_pipeline(folder: str) -> list[str]:
    network = AutoModel.from_pretrained(folder, **FLOAT32)
    answer = pipeline("text_generation", network, AutoTokenizer.from_pretrained(folder))
    return [answer(prompt, **_GREEDY)[0]["text_generation_text"][0] for prompt in PROMPTS]


def _ask_network(folder: str) -> list[str]:
    """A network from a configuration, filled by its `load_weights`, answers a padded batch."""
    config = AutoConfig.from_pretrained(folder)
    for key, value in FLOAT32.items():
        setattr(config, key, value)
    network = AutoModelForCausalLM.from_config(config)
    network.load_weights(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPTS, padding=True, padding_side="right")["input_ids"]
    return tokenizer.batch_decode(network.generate(ids, **_GREEDY), skip_special_tokens=True)


CALLERS = {"trainer": _ask_trainer, "pipeline": _ask_pipeline, "network": _ask_network}


def _run_config(folder: str) -> MindFormerConfig:
    """From a file as upstream has it for GLM-4-0414; JSON is YAML."""
    settings: dict[str, Any] = {
        "use_legacy": False,
        "run_mode": "predict",
        "load_ckpt_format": "safetensors",
        "pretrained_model_dir": folder,
        "trainer": {"type": "CausalLanguageModelingTrainer", "model_name": "glm4"},
        "model": {"model_config": FLOAT32 | {"layernorm_compute_dtype": "float32"}},
        "context": {"mode": 1, "device_target": "Ascend", "max_call_depth": 10000},
        "parallel": {"parallel_mode": "MANUAL_PARALLEL"},
        "parallel_config": {"data_parallel": 1, "model_parallel": 1},
    }
    Path("predict.yaml").write_text(json.dumps(settings))
    return MindFormerConfig("predict.yaml", run_mode="predict")


@contextmanager
def kernels_of_generate() -> Iterator[None]:
    """What upstream's `generate` calls besides the network, and has no kernel on a CPU."""

    def argmax(x: Tensor, axis: int) -> Tensor:
        return Tensor(x.asnumpy().argmax(axis))

    def cumsum(x: Tensor, axis: int) -> Tensor:
        return Tensor(x.asnumpy().cumsum(axis, dtype=np.int32))

    with (
        mock.patch.object(text_generator, "mint", replaced(mint, argmax=argmax)),
        mock.patch.object(gpt_model, "mint", replaced(mint, cumsum=cumsum)),
    ):
        yield


@contextmanager
def on_a_card() -> Iterator[Counter[str]]:
    """This machine as one that has a card; yields how often each operator was called."""
    context = sys.modules["mindformers.core.context.build_context"]
    set_context = context.MSContextOperator.set_context

    def without_device(**settings: Any) -> None:
        set_context(mode=settings["mode"], max_call_depth=settings["max_call_depth"])

    with (
        contract_references() as calls,
        kernels_of_generate(),
        mock.patch.object(AscendBackend, "find_obstacle", return_value=""),
        mock.patch.object(AscendBackend, "dtypes", ("float32",)),
        mock.patch.object(context.MSContextOperator, "set_context", staticmethod(without_device)),
        mock.patch.object(context, "set_ms_affinity"),
    ):
        yield calls


if __name__ == "__main__":
    with on_a_card() as counted:
        main(sys.argv[1:], counted)
