"""The rows of bench_quantizing.py's table, and what their figures say of the project's claims."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mindformers_glm.quantizer.options import AS_THE_TOOL, BEST, QuantizeOptions
from mindformers_glm.quantizer.recipe import AWQ, GPTQ

ANTI_METHODS = ("m1", "m2", "m3", "m4", "m5")
NEAREST = "nearest"
TOOL = "as msModelSlim"
_GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class Row:
    """One way of quantizing.

    anti_method: of the table of anti-outlier methods; "": the row is of the main table.
    """

    scheme: str
    way: str
    options: Mapping[str, Any] = field(default_factory=dict)
    anti_method: str = ""

    @property
    def name(self) -> str:
        """For --rows, and of the cell's file."""
        return ", ".join(filter(None, (self.scheme, self.way, self.anti_method)))

    def to_options(self, **places: Any) -> QuantizeOptions:
        """As the command has them."""
        anti = {"anti_method": self.anti_method} if self.anti_method else {}
        return QuantizeOptions(**{**self.options, **anti, **places})


# A row's name -> what was measured.
Figures = Mapping[str, Mapping[str, Any]]


def list_rows() -> list[Row]:
    """All ways, in the order of the table."""
    dynamic = {"is_dynamic": True}
    rows = [
        *_ways("W8A16", {"a_bit": 16}, NEAREST, "GPTQ", "best"),
        *_ways("W8A8", {}, NEAREST, "GPTQ", "best", TOOL),
        Row("W8A8", f"{TOOL}, histogram", {"recipe": AS_THE_TOOL, "act_method": 2}),
        Row("W8A8", f"{TOOL}, automatic", {"recipe": AS_THE_TOOL, "act_method": 3}),
        *_ways("W8A8, down too", {"disable_names": []}, NEAREST, "best"),
        *_ways("W8A8 + C8", {"use_kvcache_quant": True}, NEAREST, "best", TOOL),
        *_ways("W8A8_DYNAMIC", dynamic, NEAREST, "GPTQ", "best", TOOL),
    ]
    for size in _GROUP_SIZES:
        w4a16 = {"w_bit": 4, "a_bit": 16, "group_size": size}
        rows += _ways(f"W4A16 g{size}", w4a16, NEAREST, "GPTQ", "AWQ", "best", TOOL)
    rows += _ways("W4A8_DYNAMIC", {"w_bit": 4} | dynamic, NEAREST, "GPTQ", "best")
    return [*rows, *_with_anti_methods(rows)]


def _ways(scheme: str, options: dict[str, Any], *ways: str) -> list[Row]:
    means: dict[str, dict[str, Any]] = {
        NEAREST: {},
        "GPTQ": {"rounding": GPTQ},
        "AWQ": {"rounding": AWQ},
        "best": {"recipe": BEST},
        TOOL: {"recipe": AS_THE_TOOL},
    }
    if "group_size" in options:  # as the tool says it
        means[TOOL] |= {"is_lowbit": True, "open_outlier": False}
    return [Row(scheme, way, options | means[way]) for way in ways]


def _with_anti_methods(rows: list[Row]) -> Iterator[Row]:
    """Those that are measured behind each method: where activations are integers, and int4."""
    wanted = {
        ("W8A8", NEAREST),
        ("W8A8", TOOL),
        ("W8A8", f"{TOOL}, histogram"),
        ("W8A8_DYNAMIC", NEAREST),
        ("W4A16 g64", "GPTQ"),
        ("W4A16 g64", TOOL),
        ("W4A8_DYNAMIC", NEAREST),
        ("W4A8_DYNAMIC", "GPTQ"),
    }
    for row in rows:
        if (row.scheme, row.way) in wanted:
            for method in ANTI_METHODS:
                yield Row(row.scheme, row.way, row.options, method)


def check_claims(name: str, found: Figures) -> Iterator[str]:
    """What the figures of a model say of the claims; a line each, of rows that were run."""

    def kl(row: str) -> float | None:
        return float(found[row]["logits"]["kl"]) if row in found else None

    limits = {
        f"W8A16, {NEAREST}": 0.0,
        f"W8A8, {NEAREST}": 1.0,
        "W8A8, best": 1.0,
        "W4A16 g64, best": 1.0,
    }
    for row, limit in limits.items():
        lost = _points_lost(found.get(row))
        if lost is not None:
            yield (
                f"{name}: {row} loses {lost:+.2f} points, at most {limit:g}: "
                f"{_verdict(lost <= limit)}"
            )
    for size in _GROUP_SIZES:
        nearest, gptq = kl(f"W4A16 g{size}, {NEAREST}"), kl(f"W4A16 g{size}, GPTQ")
        if nearest is not None and gptq is not None:
            yield (
                f"{name}: W4A16 g{size}, KL of nearest is {nearest / gptq:.2f} times GPTQ's, at "
                f"least 1.5: {_verdict(gptq * 1.5 <= nearest)}"
            )
    for scheme in ("W8A8", "W8A8_DYNAMIC", "W4A16 g64"):
        tools = {
            row: float(value["logits"]["kl"])
            for row, value in found.items()
            # To nearest the tool rounds, too. m4 counts, though its own corrupts every GLM.
            if row.startswith((f"{scheme}, {TOOL}", f"{scheme}, {NEAREST}"))
        }
        best = kl(f"{scheme}, best")
        if tools and best is not None:
            least = min(tools, key=lambda row: tools[row])
            yield (
                f"{name}: {scheme} best has KL {best:.5f}, msModelSlim's least is "
                f"{tools[least]:.5f} ({least}): {_verdict(best < tools[least])}"
            )


def _points_lost(row: Mapping[str, Any] | None) -> float | None:
    if row is None or row["answers"] is None:
        return None
    answers = row["answers"]
    return float(100 * (answers["reference_right"] - answers["right"]) / answers["num_questions"])


def _verdict(is_so: bool) -> str:
    return "holds" if is_so else "FAILS"
