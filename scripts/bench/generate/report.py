"""The arithmetic of bench_generate.py: medians, ratios, fractions of the limit, the table."""

from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

# In one round; a fault reads some dozens of KiB, a step several GB.
_MANY_DISK_READS = 100


@dataclass(frozen=True)
class Round:
    """One measurement of one contestant.

    Args:
        seconds: of each step, or of one prefill.
        limit_per_s: what the machine did just before and after it: bytes or operations.
        token: that follows the prompt of a prefill; None for decode steps.
        disk_reads: page faults meanwhile that read the model's file again.
    """

    seconds: list[float]
    limit_per_s: float
    token: int | None = None
    disk_reads: int = 0


@dataclass
class Series:
    """All rounds of one contestant at one shape.

    Args:
        label: the contestant's name and format.
        num_tokens: made by one step, or read by one prefill.
        work: bytes that a decode step reads, or operations of a prefill.
        unit: of a thousand million of `work`.
    """

    label: str
    num_tokens: int
    work: int
    unit: str
    rounds: list[Round] = field(default_factory=list)

    @property
    def round_seconds(self) -> list[float]:
        """The median of each round."""
        return [median(one.seconds) for one in self.rounds]

    @property
    def seconds(self) -> float:
        """The median of the rounds' medians."""
        return median(self.round_seconds)

    @property
    def seconds_per_token(self) -> float:
        return self.seconds / self.num_tokens

    @property
    def p90_seconds(self) -> float:
        """The 90th percentile of all steps."""
        return float(np.percentile([s for one in self.rounds for s in one.seconds], 90))

    @property
    def limit_per_s(self) -> float:
        """The median of the limits beside the rounds."""
        return median(one.limit_per_s for one in self.rounds)

    @property
    def fraction_of_limit(self) -> float:
        """Work over time against the limit of the same round; the median of all rounds.

        The speed of a shared machine changes between rounds, so each has its own limit.
        """
        return median(
            self.work / seconds / one.limit_per_s
            for seconds, one in zip(self.round_seconds, self.rounds, strict=True)
        )

    def speed_against(self, other: "Series") -> tuple[float, float]:
        """How many times as fast as `other`: by the medians, and the median of paired rounds."""
        pairs = zip(self.round_seconds, other.round_seconds, strict=True)
        return other.seconds / self.seconds, median(theirs / ours for ours, theirs in pairs)

    def as_json(self) -> dict[str, Any]:
        """All that was measured, and what follows from it."""
        return {
            "label": self.label,
            "num_tokens": self.num_tokens,
            "work": self.work,
            "unit": self.unit,
            "seconds": self.seconds,
            "p90_seconds": self.p90_seconds,
            "tokens_per_s": 1 / self.seconds_per_token,
            "fraction_of_limit": self.fraction_of_limit,
            "rounds": [vars(one) for one in self.rounds],
        }


def format_series(series: list[Series], num_ours: int) -> str:
    """A markdown table of one shape; the first `num_ours` are ours, all are compared with each."""
    return format_rows(
        [
            {
                "": one.label,
                "ms": one.seconds * 1e3,
                "p90 ms": one.p90_seconds * 1e3,
                "tokens/s": 1 / one.seconds_per_token,
                one.unit: one.work / 1e9,
                f"limit {one.unit}/s": one.limit_per_s / 1e9,
                "of limit": f"{one.fraction_of_limit:.0%}",
                **{
                    f"{mine.label} is faster by": "" if one is mine else _compare(mine, one)
                    for mine in series[:num_ours]
                },
            }
            for one in series
        ]
    )


def describe_disk_reads(series: Series) -> str | None:
    """A warning where mapped weights did not stay in memory; None: they did."""
    count = sum(one.disk_reads for one in series.rounds)
    if count < _MANY_DISK_READS * len(series.rounds):
        return None
    return (
        f"{series.label}: {count} page faults read from disk, so its times are not those of "
        "weights in memory: measure fewer engines at once (--pairs)."
    )


def describe_scaling(one: Series, many: Series) -> str:
    """What decoding several sequences together wins, as measured and for memory of one speed.

    Both decode steps are bound by memory, whose speed may have changed between them.
    """
    wins = one.seconds_per_token / many.seconds_per_token
    corrected = wins * one.limit_per_s / many.limit_per_s
    return (
        f"{many.label}: {many.num_tokens} sequences make {wins:.1f} times the tokens/s of "
        f"{one.num_tokens}; {corrected:.1f} times at one read speed"
    )


def format_rows(rows: list[dict[str, Any]]) -> str:
    """A markdown table; all rows have the same keys."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_format(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _format(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _compare(ours: Series, other: Series) -> str:
    """Speed by medians and by pairs, and how often both choose the same token after a prompt."""
    of_medians, of_pairs = ours.speed_against(other)
    text = f"{of_medians:.2f} (pairs {of_pairs:.2f})"
    pairs = [(a.token, b.token) for a, b in zip(ours.rounds, other.rounds, strict=True)]
    if pairs[0][0] is None:
        return text
    return f"{text}, same token {sum(a == b for a, b in pairs)} of {len(pairs)}"
