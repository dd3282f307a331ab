"""A picture of errors by layer, written as SVG: one line for each kind of linear."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 900, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 210, 40, 50
_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#edae49", "#7b4ea3", "#3a3a3a", "#00a6a6", "#a65e2e")
_NUM_LINES = 5  # of the grid, about


@dataclass(frozen=True)
class Mark:
    """One linear; layer None is the output layer, drawn behind the last one."""

    layer: int | None
    kind: str
    snr_db: float


def draw_errors(marks: Sequence[Mark], measured: str) -> str:
    """The picture's text.

    Args:
        measured: what the errors are of, for the title.
    """
    layers = [mark.layer for mark in marks if mark.layer is not None]
    last = max(layers, default=-1) + any(mark.layer is None for mark in marks)
    lows = [mark.snr_db for mark in marks] or [0.0]
    plot = _Plot(max(last, 1), *_round_range(min(lows), max(lows)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 24, f"Signal to error of {measured}, dB (more is better)", size=15),
        *plot.grid(),
    ]
    kinds = list(dict.fromkeys(mark.kind for mark in marks))
    for place, kind in enumerate(kinds):
        points = [
            (last if mark.layer is None else mark.layer, mark.snr_db)
            for mark in marks
            if mark.kind == kind
        ]
        parts += plot.line(points, _COLOURS[place % len(_COLOURS)], kind, place)
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True)
class _Plot:
    """Where values lie on the picture."""

    last_layer: int
    low: float
    high: float
    step: float

    def grid(self) -> list[str]:
        """Lines with their values, and numbers of layers."""
        parts, value = [], self.low
        while value <= self.high:
            y = self._y(value)
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
            parts.append(_text(_LEFT - 8, y + 4, f"{value:g}", anchor="end"))
            value += self.step
        every = max(1, -(-self.last_layer // 10))
        for layer in range(0, self.last_layer + 1, every):
            x = self._x(layer)
            parts.append(_text(x, _HEIGHT - _BOTTOM + 20, str(layer), anchor="middle"))
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        return [*parts, _text(middle, _HEIGHT - 12, "layer", anchor="middle")]

    def line(
        self, points: Sequence[tuple[int, float]], colour: str, kind: str, place: int
    ) -> list[str]:
        """A kind's line, its marks and its place in the legend."""
        places = [(self._x(layer), self._y(value)) for layer, value in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        x, y = _WIDTH - _RIGHT + 20, _TOP + 10 + 20 * place
        return [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
            *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places),
            f'<path d="M{x} {y}h18" stroke="{colour}" stroke-width="3"/>',
            _text(x + 24, y + 4, kind),
        ]

    def _x(self, layer: int) -> float:
        return _LEFT + 10 + (_WIDTH - _LEFT - _RIGHT - 20) * layer / self.last_layer

    def _y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share


def _round_range(low: float, high: float) -> tuple[float, float, float]:
    """Whole steps around all values, and the step."""
    wanted = (high - low) / _NUM_LINES
    step = next(step for step in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0) if step >= wanted)
    begin = low // step * step
    end = -(-high // step) * step
    return begin, max(end, begin + step), step


def _text(x: float, y: float, text: str, size: int = 0, anchor: str = "start") -> str:
    style = f' font-size="{size}"' if size else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'
