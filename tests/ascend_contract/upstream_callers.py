"""MindSpore Transformers' own Trainer, pipeline and AutoModel on our registered classes.

    upstream_callers.py FOLDER [FOLDER...]

Prints a line of JSON for each folder and caller: what it answered to PROMPTS. Below `main` stands
what a card would make needless: three functions that have no kernel on a CPU, and MindSpore's own
context, which knows no Ascend here.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ |= {"ENFORCE_EAGER": "True", "CPU_AFFINITY": "False"}

import mindformers_glm  # noqa: F401, I001  (all that a user of upstream's adds)
import numpy as np
from mindformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
from mindformers.core.context import build_context
from mindformers.generation import text_generator
from mindformers.parallel_core.inference.base_models.gpt import gpt_model
from mindformers.tools.register import MindFormerConfig
from mindformers.trainer import Trainer
from mindspore import Tensor, mint

from mindformers_glm import backends
from mindformers_glm.backends.ascend.backend import AscendBackend
from tests.ascend_contract.install import contract_references, replaced

PROMPTS = ["hello", "wörld"]
GREEDY = {"do_sample": False, "max_new_tokens": 8}
FLOAT32 = dict.fromkeys(("params_dtype", "compute_dtype", "rotary_dtype"), "float32")


def main(folders: list[str]) -> None:
    build_context(_run_config(folders[0]))
    for folder in folders:
        for caller in (_ask_trainer, _ask_pipeline, _ask_generate):
            print(json.dumps([folder, caller.__name__, *caller(folder)]), flush=True)


def _ask_trainer(folder: str) -> list[Any]:
    """As upstream's run_mindformer.py does."""
    config = _run_config(folder)
    trainer = Trainer(config)
    found = trainer.predict(
        predict_checkpoint=config.load_checkpoint, input_data=PROMPTS, batch_size=None, **GREEDY
    )
    return [answer["text_generation_text"][0] for answer in found]


def _ask_pipeline(folder: str) -> list[Any]:
    network = AutoModel.from_pretrained(folder, **FLOAT32)
    answer = pipeline("text_generation", network, AutoTokenizer.from_pretrained(folder))
    return [answer(prompt, **GREEDY)[0]["text_generation_text"][0] for prompt in PROMPTS]


def _ask_generate(folder: str) -> list[Any]:
    """A network that `from_config` has built, filled by its `load_weights`, as servers do."""
    config = AutoConfig.from_pretrained(folder)
    for key, value in FLOAT32.items():
        setattr(config, key, value)
    network = AutoModelForCausalLM.from_config(config)
    network.load_weights(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPTS, padding=True, padding_side="right")["input_ids"]
    return [tokenizer.decode(answer) for answer in network.generate(ids, **GREEDY)]


def _run_config(folder: str) -> MindFormerConfig:
    """From a file as upstream has it for GLM-4-0414; JSON is YAML."""
    types = {**FLOAT32, "seq_length": 128, "num_blocks": 64, "block_size": 16}
    settings = {
        "use_legacy": False,
        "run_mode": "predict",
        "load_ckpt_format": "safetensors",
        "pretrained_model_dir": folder,
        "trainer": {"type": "CausalLanguageModelingTrainer", "model_name": "glm4"},
        "model": {"model_config": types},
        "context": {"mode": 1, "device_target": "Ascend", "max_call_depth": 10000},
        "parallel": {"parallel_mode": "MANUAL_PARALLEL"},
        "parallel_config": {"data_parallel": 1, "model_parallel": 1},
    }
    Path("predict.yaml").write_text(json.dumps(settings))
    return MindFormerConfig("predict.yaml", run_mode="predict")


@contextmanager
def on_a_card() -> Iterator[None]:
    """This machine as one that has a card, and upstream's code as far as it needs one."""
    context = sys.modules["mindformers.core.context.build_context"]
    set_context = context.MSContextOperator.set_context

    def without_device(**settings: Any) -> None:
        for name in ("device_target", "device_id", "max_device_memory", "jit_config"):
            settings.pop(name, None)
        set_context(**settings)

    def argmax(x: Tensor, axis: int) -> Tensor:
        return Tensor(x.asnumpy().argmax(axis))

    def cumsum(x: Tensor, dim: int) -> Tensor:
        return Tensor(x.asnumpy().cumsum(dim, dtype=np.int32))

    with (
        contract_references(),
        mock.patch.object(AscendBackend, "find_obstacle", lambda backend: ""),
        mock.patch.dict(backends.BACKENDS, Ascend=AscendBackend()),
        mock.patch.object(backends, "_MISSING", {}),
        mock.patch.object(context.MSContextOperator, "set_context", staticmethod(without_device)),
        mock.patch.object(context, "set_ms_affinity"),
        mock.patch.object(text_generator, "mint", replaced(mint, argmax=argmax)),
        mock.patch.object(gpt_model, "mint", replaced(mint, cumsum=cumsum)),
    ):
        yield


if __name__ == "__main__":
    with on_a_card():
        main(sys.argv[1:])
