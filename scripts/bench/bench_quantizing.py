"""What each way of quantizing costs in quality: the tables of docs/quantization.md.

    python scripts/bench/bench_quantizing.py --folder TABLE
    python scripts/bench/bench_quantizing.py --folder TABLE --models mini --rows 'W8A8, *'
    python scripts/bench/bench_quantizing.py --folder OTHER --models glm --seed 1000

For glm4-mini and two random models with outliers (outlier_models.py): each folder is made as
`mindformers-glm quantize` makes it and run as it is served, with products in float32. KL is the
mean over the tokens of held-out texts, in nats. Bytes are those of the weight files. TABLE keeps
the models and a file for each figure that is measured: the same command measures what is missing,
also after a kill, and prints the whole. A figure whose file is removed, or whose recipe is another
one by now, is measured again. Several processes may share a TABLE once its models are there.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from machine import describe_machine, run_main
from outlier_models import MODELS, MeasuredModel, prepare_model
from quantizing_rows import Row, check_claims, list_rows
from quantizing_tables import FLOAT, anti_table, main_table

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.evaluation.quantized_quality import FloatReference, read_held_out, run_float
from mindformers_glm.quantizer.chosen_recipe import choose_recipe
from mindformers_glm.quantizer.module_names import list_linears
from mindformers_glm.quantizer.options import NO_REPORT
from mindformers_glm.quantizer.quantize_folder import quantize_folder
from mindformers_glm.system.new_file import new_file
from mindformers_glm.weights.rules import build_rules


class MeasuredCells:
    """The figures of one model: a JSON file each, which appears whole or not at all.

    Args:
        folder: is made.
    """

    def __init__(self, folder: Path, model: MeasuredModel) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._linears = folder, _list_linears(model)

    def load(self, row: Row) -> dict[str, Any] | None:
        """What was measured of a row by the recipe that it has now; None: nothing."""
        try:
            cell = json.loads(self._file(row).read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            raise ConfigError(f"{self._file(row)} is no JSON: remove it.") from None
        is_same = isinstance(cell, dict) and cell.get("recipe") == self._recipe(row)
        return cell if is_same else None

    def save(self, row: Row, cell: dict[str, Any]) -> None:
        """Keep what was measured."""
        text = json.dumps({"row": row.name, "recipe": self._recipe(row), **cell}, indent=1)
        with new_file(self._file(row)) as file, os.fdopen(os.dup(file), "w") as stream:
            stream.write(text + "\n")

    def _file(self, row: Row) -> Path:
        return self._folder / f"{row.name.replace(', ', '__').replace(' ', '_')}.json"

    def _recipe(self, row: Row) -> dict[str, Any]:
        """Of JSON's types."""
        if row == FLOAT:
            return {}
        recipe = asdict(choose_recipe(row.to_options(), self._linears).recipe)
        recipe["disable_names"] = sorted(recipe["disable_names"])
        return dict(json.loads(json.dumps(recipe)))


def measure_rows(model: MeasuredModel, rows: Sequence[Row], cells: MeasuredCells) -> None:
    """Measure what is missing, beside the float model, which is run once for all."""
    missing = [row for row in (FLOAT, *rows) if cells.load(row) is None]
    if not missing:
        return
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        held_out = read_held_out(model.folder, model.texts, model.questions)
        reference = stack.enter_context(run_float(model.folder, held_out, work))
        for row in missing:
            if cells.load(row) is not None:  # by another process meanwhile
                continue
            begun_s = time.perf_counter()
            measured = reference.without_questions() if row.anti_method else reference
            cell = _measure(model, row, measured, work / "quantized")
            cells.save(row, cell)
            print(
                f"{model.name}: {row.name}: KL {cell['logits']['kl']:.5f}, "
                f"{time.perf_counter() - begun_s:.0f} s",
                flush=True,
            )


def _measure(
    model: MeasuredModel, row: Row, reference: FloatReference, output: Path
) -> dict[str, Any]:
    folder = model.folder
    if row != FLOAT:
        places = {"model_path": folder, "save_directory": output, "calib_file": model.calibration}
        quantize_folder(row.to_options(**places, report=NO_REPORT))
        folder = output
    quality = reference.compare(folder)
    num_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    shutil.rmtree(output, ignore_errors=True)
    return {**quality.to_dict(), "bytes": num_bytes, "measured_by": describe_machine()}


def _list_linears(model: MeasuredModel) -> list[str]:
    return list_linears(build_rules(GlmConfig.from_hf(model.folder)))


def _print_tables(
    models: Sequence[MeasuredModel], all_cells: Sequence[MeasuredCells], rows: Sequence[Row]
) -> None:
    found = {}
    for model, cells in zip(models, all_cells, strict=True):
        loaded = {row.name: cells.load(row) for row in (FLOAT, *rows)}
        found[model.name] = {name: cell for name, cell in loaded.items() if cell is not None}
    print("\n" + "\n".join(main_table(found, rows)))
    print("\n" + "\n".join(anti_table(found, rows)) + "\n")
    for name, figures in found.items():
        print("\n".join(check_claims(name, figures)))


def main() -> int:
    """Measure what is missing, then print the tables and what they say of the claims."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rows", nargs="+", default=["*"], help="'SCHEME, WAY', * for any text")
    parser.add_argument(
        "--folder", type=Path, help="keeps models and figures for the next run; none: nothing is"
    )
    parser.add_argument(
        "--seed", type=int, help="of other models and texts than the table's, in another folder"
    )
    arguments = parser.parse_args()
    rows = [
        row
        for row in list_rows()
        if any(fnmatchcase(row.name, wanted) for wanted in arguments.rows)
    ]
    if not rows:
        raise ConfigError(f"No row is called {' or '.join(arguments.rows)}: '*' takes all.")
    print(describe_machine(), flush=True)
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = [prepare_model(name, folder / name, arguments.seed) for name in arguments.models]
        all_cells = [
            MeasuredCells(folder / name / "cells", model)
            for name, model in zip(arguments.models, models, strict=True)
        ]
        for model, cells in zip(models, all_cells, strict=True):
            measure_rows(model, rows, cells)
        _print_tables(models, all_cells, rows)
    return 0


if __name__ == "__main__":
    run_main(main)
