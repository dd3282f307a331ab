"""bench_quantizing.py's figures as Markdown: the main table, and that of anti-outlier methods."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quantizing_rows import ANTI_METHODS, Figures, Row

NOT_RUN = "not run"
FLOAT = Row("float", "")


def main_table(models: Mapping[str, Figures], rows: Sequence[Row]) -> Iterator[str]:
    """KL of each model, and the questions and bytes of those that have questions."""
    asked = [name for name, found in models.items() if _has_answers(found)]
    header = ["scheme", "way", *(f"KL: {name}" for name in models)]
    for name in asked:
        header += [f"{name}: right", "as float's", "bytes of float's"]
    yield _line(header)
    yield _line(["---"] * len(header), blank="")
    for row in (FLOAT, *(row for row in rows if not row.anti_method)):
        cells = [row.scheme, row.way, *(_kl(found.get(row.name)) for found in models.values())]
        for name in asked:
            cells += _answers(models[name], row)
        yield _line(cells)


def anti_table(models: Mapping[str, Figures], rows: Sequence[Row]) -> Iterator[str]:
    """KL behind each anti-outlier method; a line for each way and model."""
    header = ["scheme", "way", "model", "none", *ANTI_METHODS]
    yield _line(header)
    yield _line(["---"] * len(header), blank="")
    ways = dict.fromkeys((row.scheme, row.way) for row in rows if row.anti_method)
    for scheme, way in ways:
        names = [Row(scheme, way, anti_method=method).name for method in ("", *ANTI_METHODS)]
        for model, found in models.items():
            yield _line([scheme, way, model, *(_kl(found.get(name)) for name in names)])


def _line(cells: Sequence[str], blank: str = " ") -> str:
    return f"|{blank}" + f"{blank}|{blank}".join(cells) + f"{blank}|"


def _kl(cell: Mapping[str, Any] | None) -> str:
    return NOT_RUN if cell is None else f"{float(cell['logits']['kl']):.3g}"


def _has_answers(found: Figures) -> bool:
    return any(cell["answers"] is not None for cell in found.values())


def _answers(found: Figures, row: Row) -> list[str]:
    cell, as_float = found.get(row.name), found.get(FLOAT.name)
    if cell is None or cell["answers"] is None:
        return [NOT_RUN] * 3
    answers = cell["answers"]
    size = NOT_RUN if as_float is None else f"{cell['bytes'] / as_float['bytes']:.2f}"
    return [f"{answers['right']} of {answers['num_questions']}", str(answers["same"]), size]
