"""What each way of quantizing costs in quality: one table for docs/quantization.md.

    python scripts/bench/bench_quantizing.py
    python scripts/bench/bench_quantizing.py --models mini --rows 'W8A8, *' --no_questions

For glm4-mini and two random models with outliers (outlier_models.py): the folder is made as
`mindformers-glm quantize` makes it and run as it is served, with products in float32. KL is the
mean over the tokens of held-out texts, in nats. Bytes are those of the weight files. The table
comes line by line as Markdown; below it stands what it says of the project's own claims.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from machine import REPO, describe_machine, run_main

sys.path.insert(0, str(REPO / "scripts"))

from outlier_models import MeasuredModel, prepare_mini, prepare_random

from mindformers_glm.evaluation.quantized_quality import (
    QuantizedQuality,
    read_held_out,
    run_float,
)
from mindformers_glm.quantizer.options import (
    AS_THE_TOOL,
    BEST,
    NO_REPORT,
    QuantizeOptions,
)
from mindformers_glm.quantizer.quantize_folder import quantize_folder
from mindformers_glm.quantizer.recipe import AWQ, GPTQ

_ASSET = REPO / "mindformers_glm" / "assets" / "glm4-mini"
_ANTI_METHODS = ("m1", "m2", "m3", "m4", "m5")
_TOOL = "as msModelSlim"
_NOT_THE_TOOLS = "m4"  # ours computes the same; the tool's own corrupts every GLM


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    scheme: str
    way: str
    options: dict[str, Any] = field(default_factory=dict)


def list_rows() -> list[Row]:
    """All ways, in the order of the table."""
    w8a16: dict[str, Any] = {"a_bit": 16}
    best: dict[str, Any] = {"recipe": BEST}
    tool: dict[str, Any] = {"recipe": AS_THE_TOOL}
    everything: dict[str, Any] = {"disable_names": []}
    rows = [
        Row("W8A16", "nearest", w8a16),
        Row("W8A16", "best", w8a16 | best),
        Row("W8A8", "nearest"),
        *(Row("W8A8", f"nearest, {m}", {"anti_method": m}) for m in _ANTI_METHODS),
        Row("W8A8", "best", best),
        Row("W8A8", _TOOL, tool),
        *(Row("W8A8", f"{_TOOL}, {m}", tool | {"anti_method": m}) for m in _ANTI_METHODS),
        *(
            Row(
                "W8A8",
                f"{_TOOL}, {m or 'none'}, histogram",
                tool | {"anti_method": m, "act_method": 2},
            )
            for m in ("", "m1", "m2")
        ),
        Row("W8A8, down too", "nearest", everything),
        Row("W8A8, down too", "best", everything | best),
        Row("W8A8 + C8", "nearest", {"use_kvcache_quant": True}),
        Row("W8A8 + C8", "best", best | {"use_kvcache_quant": True}),
        Row("W8A8_DYNAMIC", "nearest", {"is_dynamic": True}),
        Row("W8A8_DYNAMIC", "best", best | {"is_dynamic": True}),
    ]
    for size in (128, 64, 32):
        w4a16 = {"w_bit": 4, "a_bit": 16, "group_size": size}
        scheme = f"W4A16 g{size}"
        rows += [
            Row(scheme, "nearest", w4a16),
            Row(scheme, "GPTQ", w4a16 | {"rounding": GPTQ}),
            Row(scheme, "AWQ", w4a16 | {"rounding": AWQ}),
            Row(scheme, "GPTQ, m3", w4a16 | {"rounding": GPTQ, "anti_method": "m3"}),
            Row(scheme, "best", w4a16 | best),
        ]
        in_groups = tool | w4a16 | {"is_lowbit": True, "open_outlier": False}
        if size == 64:
            rows += [
                Row(scheme, _TOOL, in_groups),
                *(
                    Row(scheme, f"{_TOOL}, {m}", in_groups | {"anti_method": m})
                    for m in _ANTI_METHODS
                ),
            ]
    w4a8 = {"w_bit": 4, "is_dynamic": True}
    return [*rows, Row("W4A8_DYNAMIC", "nearest", w4a8), Row("W4A8_DYNAMIC", "best", w4a8 | best)]


def make_folder(model: MeasuredModel, row: Row, output: Path) -> int:
    """Quantize a model by a row; the bytes of its weight files."""
    options = QuantizeOptions(
        model_path=model.folder,
        save_directory=output,
        calib_file=model.calibration,
        report=NO_REPORT,
        **row.options,
    )
    quantize_folder(options)
    return _weight_bytes(output)


def measure(
    model: MeasuredModel, rows: list[Row], has_questions: bool, work: Path
) -> Iterator[tuple[Row, QuantizedQuality, int]]:
    """Each row's folder beside the float one."""
    held_out = read_held_out(model.folder, model.texts, model.questions)
    if not has_questions:
        held_out = replace(held_out, questions=[])
    with run_float(model.folder, held_out, work) as reference:
        yield Row("float", ""), reference.compare(model.folder), _weight_bytes(model.folder)
        for number, row in enumerate(rows):
            output = work / f"{model.folder.name}_{number}"
            num_bytes = make_folder(model, row, output)
            yield row, reference.compare(output), num_bytes


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def print_table(
    model: MeasuredModel, rows: list[Row], has_questions: bool, work: Path
) -> dict[tuple[str, str], dict[str, Any]]:
    """Print the table of a model as it is made, and give its figures."""
    print(f"\n### {model.name}\n\n| scheme | way | KL | perplexity | right | as float's | MB |")
    print("|---|---|---|---|---|---|---|")
    found = {}
    for row, quality, num_bytes in measure(model, rows, has_questions, work):
        logits, answers = quality.logits, quality.answers
        right = "" if answers is None else f"{answers.right} of {answers.num_questions}"
        same = "" if answers is None else f"{answers.same}"
        print(
            f"| {row.scheme} | {row.way} | {logits.kl:.5f} | {logits.perplexity:.3f} | {right} "
            f"| {same} | {num_bytes / 2**20:.2f} |",
            flush=True,
        )
        found[row.scheme, row.way] = {**quality.to_dict(), "bytes": num_bytes}
    return found


def check_claims(name: str, found: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    """What the figures say of the claims; a line each, of rows that were run."""

    def kl(scheme: str, way: str) -> float | None:
        row = found.get((scheme, way))
        return None if row is None else float(row["logits"]["kl"])

    def points_lost(scheme: str, way: str) -> float | None:
        row = found.get((scheme, way))
        if row is None or row["answers"] is None:
            return None
        answers = row["answers"]
        return float(
            100 * (answers["reference_right"] - answers["right"]) / answers["num_questions"]
        )

    limits = {
        ("W8A16", "nearest"): 0.0,
        ("W8A8", "nearest"): 1.0,
        ("W8A8", "best"): 1.0,
        ("W4A16 g64", "best"): 1.0,
    }
    for (scheme, way), limit in limits.items():
        lost = points_lost(scheme, way)
        if lost is not None:
            verdict = "holds" if lost <= limit else "FAILS"
            yield f"{name}: {scheme} {way} loses {lost:+.2f} points, at most {limit:g}: {verdict}"
    for size in (128, 64, 32):
        nearest, gptq = kl(f"W4A16 g{size}", "nearest"), kl(f"W4A16 g{size}", "GPTQ")
        if nearest is not None and gptq is not None:
            verdict = "holds" if gptq * 1.5 <= nearest else "FAILS"
            yield (
                f"{name}: W4A16 g{size}, KL of nearest is {nearest / gptq:.2f} times GPTQ's, at "
                f"least 1.5: {verdict}"
            )
    for scheme in ("W8A8", "W4A16 g64"):
        tools = [
            value["logits"]["kl"]
            for (other, way), value in found.items()
            if other == scheme and way.startswith(_TOOL) and not way.endswith(_NOT_THE_TOOLS)
        ]
        best = kl(scheme, "best")
        if tools and best is not None:
            verdict = "holds" if best < min(tools) else "FAILS"
            yield (
                f"{name}: {scheme} best has KL {best:.5f}, msModelSlim's best way "
                f"{min(tools):.5f}: {verdict}"
            )


def main() -> int:
    """Print the tables; what was measured also goes to --output as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = ("mini", "glm4", "glm")
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--rows", nargs="+", default=["*"], help="'SCHEME, WAY', * for any text")
    parser.add_argument("--no_questions", action="store_true", help="KL and perplexity only")
    parser.add_argument("--output", type=Path, help="JSON of all figures")
    arguments = parser.parse_args()
    rows = [
        row
        for row in list_rows()
        if any(fnmatchcase(f"{row.scheme}, {row.way}", wanted) for wanted in arguments.rows)
    ]
    print(describe_machine())
    claims: list[str] = []
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for place, name in enumerate(arguments.models):
            begun_s = time.perf_counter()
            model = (
                prepare_mini(_ASSET, work) if name == "mini" else prepare_random(name, work, place)
            )
            found = print_table(model, rows, not arguments.no_questions, work)
            claims += check_claims(model.name, found)
            figures[model.name] = {f"{a}, {b}": value for (a, b), value in found.items()}
            print(f"\n{time.perf_counter() - begun_s:.0f} s", flush=True)
    print("\n" + "\n".join(claims))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    run_main(main)
