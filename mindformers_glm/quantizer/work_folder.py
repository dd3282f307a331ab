"""What is done of a checkpoint, kept on disk layer by layer, so that a killed run goes on.

    job.json              what the folder is for: refused for anything else
    float_modules.json    which modules stay float, where that took a calibration
    widths.json           which modules have how many bits, where these are mixed
    layer_00007.safetensors    a finished layer
    output.safetensors         the output layer
    activations.safetensors    the input of the layer that comes next, on all calibration samples

A layer counts as finished when the next one's input is there, and is made again otherwise: the same
input gives the same bytes.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import QuantizedRows
from mindformers_glm.quantizer.output_error import OutputError
from mindformers_glm.quantizer.rank_parts import join_parts
from mindformers_glm.quantizer.result import (
    ExchangeScales,
    KvScales,
    LayerResult,
    QuantizedModule,
    StaticRange,
)
from mindformers_glm.system.new_file import new_file

_JOB, _FLOAT_MODULES, _WIDTHS = "job.json", "float_modules.json", "widths.json"
_ACTIVATIONS = "activations.safetensors"
_KV_FIELDS = ("key_scale", "key_offset", "value_scale", "value_offset")
# What the one entry of a file's metadata is called: several would have no order of their own.
_METADATA = "mindformers_glm"


class OtherWorkError(CheckpointError):
    """A folder is no place for the work of this job; nothing of it is there."""


class WorkFolder:
    """A folder that one run at a time works in (`open_work_folder`)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def num_finished(self) -> int:
        """Layers whose results can be loaded, from the first on."""
        if not (self._path / _ACTIVATIONS).exists():
            return 0
        _, next_layer = _read(self._path / _ACTIVATIONS)
        return int(next_layer)

    def load_activations(self) -> dict[str, np.ndarray]:
        """The input of layer `num_finished`, by the name of the stream; none is no stream."""
        arrays, _ = _read(self._path / _ACTIVATIONS)
        return arrays

    def finish(self, next_layer: int, activations: Mapping[str, np.ndarray]) -> None:
        """Say that all layers before `next_layer` are saved, and keep its input."""
        self._write(_ACTIVATIONS, save(dict(activations), {_METADATA: str(next_layer)}))

    def load_float_modules(self) -> tuple[str, ...] | None:
        """What `save_float_modules` was given; None: nothing yet."""
        file = self._path / _FLOAT_MODULES
        return tuple(json.loads(file.read_text("utf-8"))) if file.exists() else None

    def save_float_modules(self, names: tuple[str, ...]) -> None:
        """Keep which modules stay float."""
        self._write(_FLOAT_MODULES, json.dumps(names).encode())

    def load_widths(self) -> dict[str, int] | None:
        """What `save_widths` was given; None: nothing yet."""
        file = self._path / _WIDTHS
        return dict(json.loads(file.read_text("utf-8"))) if file.exists() else None

    def save_widths(self, bits_of: Mapping[str, int]) -> None:
        """Keep how many bits modules have."""
        self._write(_WIDTHS, json.dumps(dict(bits_of)).encode())

    def save_result(self, result: LayerResult) -> None:
        """Keep a layer; of its float tensors it has those that are not the checkpoint's."""
        arrays = {f"float.{name}": values for name, values in result.float_tensors.items()}
        modules = []
        for place, module in enumerate(result.modules):
            modules.append(_describe(module))
            arrays |= {f"{place}.{name}": values for name, values in _arrays_of(module).items()}
        if result.kv_scales is not None:
            arrays |= {f"kv.{name}": getattr(result.kv_scales, name) for name in _KV_FIELDS}
        for name, scales in result.exchange_scales.items():
            arrays |= {f"of_parts.{name}": scales.of_parts, f"of_sum.{name}": scales.of_sum}
        metadata = {"modules": modules, "kv_prefix": result.kv_prefix, "number": result.number}
        arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        self._write(_file_name(result.number), save(arrays, {_METADATA: json.dumps(metadata)}))

    def load_result(self, number: int | None) -> LayerResult:
        """A layer that was saved."""
        arrays, text = _read(self._path / _file_name(number))
        metadata = json.loads(text)
        parts: dict[str, dict[str, np.ndarray]] = {}
        for name, values in arrays.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = values
        return LayerResult(
            modules=tuple(
                _module_of(described, parts[str(place)])
                for place, described in enumerate(metadata["modules"])
            ),
            float_tensors=parts.get("float", {}),
            kv_prefix=metadata["kv_prefix"],
            kv_scales=KvScales(**parts["kv"]) if "kv" in parts else None,
            number=metadata["number"],
            exchange_scales={
                name: ExchangeScales(of_parts, parts["of_sum"][name])
                for name, of_parts in parts.get("of_parts", {}).items()
            },
        )

    def has_result(self, number: int | None) -> bool:
        """Whether a layer was saved."""
        return (self._path / _file_name(number)).exists()

    def _write(self, name: str, content: bytes) -> None:
        try:
            with new_file(self._path / name) as file, os.fdopen(os.dup(file), "wb") as stream:
                stream.write(content)
        except OSError as problem:
            raise CheckpointError(f"Cannot write {self._path}: {problem.strerror}.") from None


@contextmanager
def open_work_folder(path: Path, job: str) -> Iterator[WorkFolder]:
    """Make a folder, or go on in one that was made for the same job.

    Args:
        job: a digest of what is quantized, how, and what it is calibrated with.
    Raises:
        OtherWorkError: it was made for another job, another process works in it, or it holds
            something else; or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        raise OtherWorkError(f"Cannot work in {path}: {problem.strerror}.") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OtherWorkError(
                f"Another process quantizes in {path}: wait for it, or give another work folder."
            ) from None
        _claim(path, job)
        yield WorkFolder(path)
    finally:
        os.close(lock)


def has_work(path: Path) -> bool:
    """Whether a folder has anything that a later run would go on with."""
    names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    return _JOB in names and len(names) > 1


def _claim(path: Path, job: str) -> None:
    file = path / _JOB
    if not has_work(path):
        if not file.exists() and any(path.iterdir()):
            raise OtherWorkError(
                f"{path} is not empty and no work folder of a quantization: give another one."
            )
        try:
            with new_file(file) as descriptor:
                os.write(descriptor, json.dumps({"job": job}).encode())
        except OSError as problem:
            raise OtherWorkError(f"Cannot work in {path}: {problem.strerror}.") from None
        return
    try:
        found = json.loads(file.read_text("utf-8"))["job"]
    except (ValueError, KeyError, TypeError):
        found = None
    if found != job:
        raise OtherWorkError(
            f"{path} has the work of another quantization (another checkpoint, recipe or "
            "calibration set, or another version): remove it, or give another work folder."
        )


def _file_name(number: int | None) -> str:
    return "output.safetensors" if number is None else f"layer_{number:05}.safetensors"


def _read(file: Path) -> tuple[dict[str, np.ndarray], str]:
    """Its tensors, and the entry of its metadata."""
    try:
        with safe_open(file, framework="np") as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return arrays, opened.metadata()[_METADATA]
    except (OSError, SafetensorError) as problem:
        raise CheckpointError(
            f"Cannot read {file} ({problem}): remove the work folder to begin anew."
        ) from None


def _describe(module: QuantizedModule) -> dict[str, Any]:
    return {
        "name": module.name,
        "label": module.label,
        "weight_bits": module.weight_bits,
        "group_size": module.group_size,
        "error": None if module.error is None else asdict(module.error),
        "parts": [_describe(part) for part in module.parts],
    }


def _arrays_of(module: QuantizedModule) -> dict[str, np.ndarray]:
    if module.parts:
        return {
            f"{place}.{name}": values
            for place, part in enumerate(module.parts)
            for name, values in _arrays_of(part).items()
        }
    rows, static = module.rows, module.static
    found: dict[str, np.ndarray | None] = {
        "codes": rows.codes,
        "scales": rows.scales,
        "zeros": rows.zeros,
        "groups": rows.groups,
        "bias": module.bias,
        "static": None if static is None else np.array([static.scale, static.offset], np.float32),
        "first_scales": module.first_scales,
        "second_scales": module.second_scales,
    }
    return {name: values for name, values in found.items() if values is not None}


def _module_of(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> QuantizedModule:
    known = described["error"]
    error = None if known is None else OutputError(**known)
    if described["parts"]:
        parts = [
            _module_of(part, _below(f"{place}.", arrays))
            for place, part in enumerate(described["parts"])
        ]
        return replace(join_parts(described["name"], parts), error=error)
    static = arrays.get("static")
    return QuantizedModule(
        **dict(described) | {"error": error, "parts": ()},
        rows=QuantizedRows(
            arrays["codes"], arrays["scales"], arrays.get("zeros"), arrays["groups"]
        ),
        bias=arrays.get("bias"),
        static=None if static is None else StaticRange(*static),
        first_scales=arrays.get("first_scales"),
        second_scales=arrays.get("second_scales"),
    )


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): values
        for name, values in arrays.items()
        if name.startswith(prefix)
    }
