"""What quantizing has cost, linear by linear: a table for people, JSON for programs, a picture.

The errors have been measured while layers were rounded (output_error.py); what the whole model has
lost is measured afterwards, on the finished folder, and added to the same file.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mindformers_glm.quantizer.error_picture import Mark, draw_errors
from mindformers_glm.quantizer.output_error import OUTPUTS, OutputError
from mindformers_glm.quantizer.result import LayerResult
from mindformers_glm.system.new_file import new_file

REPORT_FILE, PICTURE_FILE = "report.json", "report.svg"
_VERSION = 1  # of the file's form
_OUTPUT_LAYER = "output"


@dataclass(frozen=True)
class ModuleReport:
    """One rounded linear.

    layer: its number; None: the output layer.
    kind: what it is called in every layer: "self_attn.q_proj".
    """

    name: str
    layer: int | None
    kind: str
    scheme: str
    weight_bits: int
    group_size: int | None
    error: OutputError


class ErrorReport:
    """Collects the errors of layers on their way to the export.

    Args:
        job: what was quantized and how, for the file.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        self._job = dict(job)
        self.modules: list[ModuleReport] = []

    def watch(self, results: Iterable[LayerResult]) -> Iterator[LayerResult]:
        """Pass layers on and keep what they say of themselves."""
        for result in results:
            for module in result.modules:
                if module.error is not None:
                    self.modules.append(
                        ModuleReport(
                            name=module.name,
                            layer=result.number,
                            kind=_kind_of(module.name, result.number),
                            scheme=module.label,
                            weight_bits=module.weight_bits,
                            group_size=module.group_size,
                            error=module.error,
                        )
                    )
            yield result

    def write(self, folder: Path, whole: Mapping[str, Any] | None = None) -> None:
        """Write the file and the picture into a folder, over earlier ones.

        Args:
            whole: what was measured of the whole model; None: nothing.
        Raises:
            OSError: a file cannot be written.
        """
        modules = [asdict(module) for module in self.modules]
        content = {"version": _VERSION, **self._job, "modules": modules, "whole": whole}
        text = json.dumps(content, indent=1, ensure_ascii=False, default=str, allow_nan=False)
        _write(folder / REPORT_FILE, text + "\n")
        marks = [Mark(module.layer, module.kind, module.error.snr_db) for module in self.modules]
        _write(folder / PICTURE_FILE, draw_errors(marks, self._measured))

    def table(self) -> str:
        """One line a layer: its worst linear."""
        if not self.modules:
            return "no linear is rounded: nothing to measure"
        lines = [
            f"error of {self._measured} by layer, worst linear of each ({PICTURE_FILE}, "
            f"{REPORT_FILE} have all)",
            "  layer  SNR dB    cosine  largest error             worst linear",
        ]
        for layer, modules in self._by_layer().items():
            worst = min(modules, key=lambda module: module.error.snr_db)
            largest = max(modules, key=lambda module: module.error.largest).error
            cosine = min(module.error.cosine for module in modules)
            of = f"{largest.largest:.3g} of {largest.largest_value:.3g}"
            name = _OUTPUT_LAYER if layer is None else str(layer)
            lines.append(
                f"{name:>7} {worst.error.snr_db:7.1f} {cosine:9.6f}  {of:24}  {worst.kind}"
            )
        return "\n".join(lines)

    @property
    def _measured(self) -> str:
        is_run = any(module.error.measured_on == OUTPUTS for module in self.modules)
        return "outputs on the calibration texts" if is_run else "weights"

    def _by_layer(self) -> dict[int | None, list[ModuleReport]]:
        layers: dict[int | None, list[ModuleReport]] = {}
        for module in self.modules:
            layers.setdefault(module.layer, []).append(module)
        return layers


def _kind_of(name: str, layer: int | None) -> str:
    return name if layer is None else name.partition(f".{layer}.")[2]


def _write(path: Path, text: str) -> None:
    with new_file(path) as file, os.fdopen(os.dup(file), "w", encoding="utf-8") as stream:
        stream.write(text)
