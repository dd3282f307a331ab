"""Writes quantized layers, and all else of their checkpoint, as a folder that loads elsewhere.

Layers are written as they come, one in memory at a time. The folder has a temporary name until it
is complete; what stays float is copied from the checkpoint.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.errors import CheckpointError, ConfigError
from mindformers_glm.quantizer.export.compressed import CompressedLayout
from mindformers_glm.quantizer.export.layout import (
    AWQ,
    COMPRESSED_TENSORS,
    GPTQ,
    MSMODELSLIM,
    NUMPY_SET,
    ExportSettings,
    Layout,
    list_longest_names,
)
from mindformers_glm.quantizer.export.msmodelslim import ModelSlimLayout
from mindformers_glm.quantizer.export.new_tensor import copy_floats, round_floats
from mindformers_glm.quantizer.export.numpy_set import NumpySetLayout
from mindformers_glm.quantizer.export.safetensors_writer import SafetensorsWriter, header_room
from mindformers_glm.quantizer.export.words import AwqLayout, GptqLayout
from mindformers_glm.quantizer.module_names import list_linears, list_row_parallel
from mindformers_glm.quantizer.result import LayerResult
from mindformers_glm.system.files import read_json_object
from mindformers_glm.system.new_folder import new_folder
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules, find_surplus
from mindformers_glm.weights.rules import build_rules, resolve_attention_bias
from mindformers_glm.weights.share_writer import copy_other_files

FOLDER_MODE = 0o750  # as the tool makes folders
_CODE = (".py",)  # the model's own classes, which other programs may want to import
_CONFIG = "config.json"
FLOAT = "FLOAT"
_FINAL_NORM = "final_layernorm.weight"


@dataclass(frozen=True)
class Written:
    """What a folder holds.

    Attributes:
        labels: how many modules have which scheme; FLOAT is one.
        num_bytes: of all files.
    """

    labels: dict[str, int]
    num_bytes: int


def check_place(source: Path, output: Path) -> Path:
    """See that a result can get a name, before the long work.

    Returns:
        The place, behind any link.
    Raises:
        ConfigError: it is the source, lies in it, holds something already, or no folder can be so
            called.
    """
    source, output = real_place(source), real_place(output)
    if output == source or source in output.parents:
        raise ConfigError(
            f"{output} is {'' if output == source else 'inside '}the model's own folder: give "
            "another place for what is quantized."
        )
    try:
        is_taken = output.exists() and not (output.is_dir() and not any(output.iterdir()))
    except OSError as problem:
        raise ConfigError(f"Cannot use {str(output)!r:.200}: {problem.strerror}.") from None
    if is_taken:
        what = "not empty" if output.is_dir() else "a file"
        raise ConfigError(f"{output} is {what}: remove it, or give another place.")
    return output


def real_place(path: Path) -> Path:
    """The same place, whole and without links; also of what is not there."""
    return Path(os.path.realpath(path))


def write_folder(
    checkpoint: Checkpoint,
    results: Iterable[LayerResult],
    output: Path,
    settings: ExportSettings,
    add_files: Callable[[Path], None] | None = None,
) -> Written:
    """Write `output`; what is there when it fails is what was there before.

    Args:
        checkpoint: the float one that the results were made of.
        add_files: writes further files, when all layers are written.
    Raises:
        ConfigError: see `check_place`.
        CheckpointError: the disk is full, say; or the checkpoint is not usable.
        UnsupportedError: the format cannot say what a layer has become.
    """
    output = check_place(checkpoint.folder, output)
    writer = _FolderWriter(checkpoint, settings)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(output) as temporary:
            temporary.chmod(FOLDER_MODE)
            writer.write(results, temporary)
            if add_files is not None:
                add_files(temporary)
            num_bytes = sum(file.stat().st_size for file in temporary.rglob("*"))
    except OSError as problem:
        raise CheckpointError(f"Cannot write {output}: {problem.strerror}.") from None
    return Written(dict(writer.labels.most_common()), num_bytes)


class _FolderWriter:
    """What is known of the source while layers are written."""

    def __init__(self, checkpoint: Checkpoint, settings: ExportSettings) -> None:
        self.labels: Counter[str] = Counter()
        self._checkpoint, self._settings = checkpoint, settings
        config = resolve_attention_bias(GlmConfig.from_hf(checkpoint.folder), checkpoint)
        self._rules = build_rules(config)
        check_rules(self._rules, checkpoint)
        self._linears = list_linears(self._rules)
        self._source = checkpoint.entries
        self._written: set[str] = set()
        self._has_shifted_norms = False

    def write(self, results: Iterable[LayerResult], folder: Path) -> None:
        raw = read_json_object(self._checkpoint.folder / _CONFIG, CheckpointError)
        layout = self._make_layout(folder, raw)
        try:
            for result in results:
                self._write_layer(layout, result)
            self._write_rest(layout)
            changed = layout.finish(folder, raw)
        except BaseException:
            layout.abandon()
            raise
        if self._settings.layout == NUMPY_SET:
            return
        copy_other_files(self._checkpoint.folder, folder, _CODE)
        if changed != raw:
            text = json.dumps(changed, indent=2, ensure_ascii=False)
            (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")

    def _make_layout(self, folder: Path, raw: dict[str, Any]) -> Layout:
        dtype = str(raw.get("torch_dtype") or self._checkpoint.dtype)
        has_int64 = dtype.removeprefix("torch.") != "bfloat16"
        if self._settings.layout == NUMPY_SET:
            return NumpySetLayout(folder, has_int64)
        entries = self._checkpoint.entries.values()
        axes, num_ranks = (
            {entry.name: len(entry.shape) for entry in entries},
            self._settings.num_ranks,
        )
        names = list_longest_names(axes, num_ranks)
        writer = SafetensorsWriter(folder, header_room(names), self._settings.part_bytes)
        makers: dict[str, Callable[[], Layout]] = {
            MSMODELSLIM: lambda: ModelSlimLayout(
                writer,
                self._settings.label,
                self._settings.mindie_keys,
                has_int64,
                num_ranks,
                list_row_parallel(self._rules),
            ),
            COMPRESSED_TENSORS: lambda: CompressedLayout(writer, self._linears),
            GPTQ: lambda: GptqLayout(writer, self._linears),
            AWQ: lambda: AwqLayout(writer, self._linears),
        }
        return makers[self._settings.layout]()

    def _write_layer(self, layout: Layout, result: LayerResult) -> None:
        for module in result.modules:
            weight, bias = f"{module.name}.weight", f"{module.name}.bias"
            assert module.name in self._linears, module.name
            layout.add_module(module, self._float_dtype(weight))
            self.labels[module.label] += 1
            self._written |= {weight, bias}
        made = set(result.float_tensors) - set(self._source)  # biases of norms
        for name, values in result.float_tensors.items():
            if name in made:
                continue
            dtype, stem = self._float_dtype(name), name.removesuffix(".weight")
            if (bias := f"{stem}.bias") in made:
                layout.add_shifted_norm(stem, values, result.float_tensors[bias], dtype)
            else:
                layout.add_float(round_floats(name, values, dtype))
        self._written |= set(result.float_tensors)
        self._has_shifted_norms |= bool(made)
        if result.kv_scales is not None:
            layout.add_kv_scales(result.kv_prefix, result.kv_scales)
        for name, scales in result.exchange_scales.items():
            assert isinstance(layout, ModelSlimLayout)  # no other has parts for ranks
            layout.add_exchange_scales(name, scales)

    def _write_rest(self, layout: Layout) -> None:
        """What no layer has: embeddings, the last norm, the output layer."""
        surplus = find_surplus(self._rules, self._checkpoint)
        for name in self._checkpoint.entries:
            if name in self._written or name in surplus:
                continue
            dtype = self._float_dtype(name)
            if self._has_shifted_norms and self._settings.has_float32 and name == self._final_norm:
                # No method changes it, and the tool gives it a bias of zeros like the others.
                values = self._checkpoint.array(name).astype(np.float32)
                stem = name.removesuffix(".weight")
                layout.add_shifted_norm(stem, values, np.zeros_like(values), dtype)
            else:
                layout.add_float(copy_floats(self._checkpoint.view(name), dtype))
            self._checkpoint.release(name)
        self.labels[FLOAT] += len(self._linears) - sum(self.labels.values())

    @property
    def _final_norm(self) -> str:
        rules = (rule for rule in self._rules if rule.parameter.endswith(_FINAL_NORM))
        return next(rules).sources[0].name  # every network has one

    def _float_dtype(self, name: str) -> str:
        entry = self._checkpoint.entries[name]
        if self._settings.has_float32 or entry.dtype not in DTYPE_BYTES:
            return "float32"
        return entry.dtype
