"""Tiny random checkpoints of every dialect, with what Hugging Face's linears are given in them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.quantizer.smoothing.input_statistics import (
    InputStatistics,
    StatisticsCollector,
)
from mindformers_glm.weights.tensor_names import FC1, FC2, PROJ, QKV, TENSOR_NAMES
from tests.model import hf_oracle
from tests.model.chatglm_layout import to_chatglm, to_glm

DIALECTS = ("glm4", "glm", "chatglm")
SAMPLES = ([3, 44, 5, 201, 77, 8, 9, 300], [500, 41, 2, 2, 19])
_INPUTS = {
    QKV: "self_attn.q_proj",
    PROJ: "self_attn.o_proj",
    FC1: "mlp.gate_up_proj",
    FC2: "mlp.down_proj",
}


@dataclass
class DialectCheckpoint:
    """A checkpoint in its own names.

    logits: of Hugging Face in float64, of all samples behind one another.
    inputs: of each layer, by QKV, PROJ, FC1 and FC2: the statistics.
    """

    dialect: str
    folder: Path
    config: GlmConfig
    tensors: dict[str, np.ndarray]
    logits: np.ndarray
    inputs: list[dict[str, InputStatistics]]

    @property
    def prefix(self) -> str:
        return TENSOR_NAMES[self.dialect].layers

    def layer(self, number: int) -> dict[str, np.ndarray]:
        """The tensors of a layer by their names within it."""
        prefix = f"{self.prefix}{number}."
        names = [name for name in self.tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.tensors[name] for name in names}

    def error_with(self, changed: dict[str, np.ndarray], folder: Path) -> float:
        """Relative error of Hugging Face's logits once some tensors are others."""
        known = {name: array for name, array in changed.items() if name in self.tensors}
        # Hugging Face's norms have no biases.
        assert not any(changed[name].any() for name in changed.keys() - known.keys())
        folder.mkdir()
        save_file(self.tensors | known, folder / "model.safetensors", {"format": "pt"})
        config = (self.folder / "config.json").read_text()
        (folder / "config.json").write_text(config)
        found = _logits(_load(self.dialect, folder))
        return float(np.linalg.norm(found - self.logits) / np.linalg.norm(self.logits))


def make(dialect: str, folder: Path, **changes: Any) -> DialectCheckpoint:
    """Write it and run it; inputs of linears behind norms have outliers."""
    folder.mkdir(parents=True)
    layout = "glm" if dialect == "chatglm" else dialect
    path = hf_oracle.save_random_checkpoint(folder / "hf", model_type=layout, **changes)
    tensors = load_file(path / "model.safetensors")
    for name in tensors:
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            tensors[name][[3, 40]] *= np.float32(20)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    if dialect == "chatglm":
        path = to_chatglm(path, folder / "chatglm")
        tensors = load_file(path / "model.safetensors")
    model = _load(dialect, path)
    collectors = [
        {parameter: StatisticsCollector(has_hessian=True) for parameter in _INPUTS}
        for _ in model.model.layers
    ]
    for layer, seen in zip(model.model.layers, collectors, strict=True):
        for parameter, name in _INPUTS.items():
            layer.get_submodule(name).register_forward_pre_hook(_watch(seen[parameter]))
    logits = _logits(model)
    statistics = [{name: one.finish() for name, one in seen.items()} for seen in collectors]
    raw = json.loads((path / "config.json").read_text())
    config = GlmConfig.from_dict(raw, "config.json")
    return DialectCheckpoint(dialect, path, config, tensors, logits, statistics)


def _watch(collector: StatisticsCollector) -> Any:
    def look(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        collector.add(arguments[0][0].float().numpy())

    return look


def _load(dialect: str, folder: Path) -> Any:
    if dialect == "chatglm":
        folder = to_glm(folder, folder.parent / f"{folder.name}_as_glm")
    return hf_oracle.load(folder, "float64")


def _logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        rows = [model(torch.tensor([sample])).logits[0].numpy() for sample in SAMPLES]
    return np.concatenate(rows)
