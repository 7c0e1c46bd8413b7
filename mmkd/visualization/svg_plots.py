"""Plots as SVG text for a page: coloured by the page's style sheet, so that they follow its light and dark themes.

Lines and marks carry the classes `s0` to `s11` (one an arm), axes `axis`, grid lines `grid`, text `label`.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

from mmkd.visualization.curves import Curve, mean_curve

SERIES = 12
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 52, 12, 10, 40


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span an interval.

    Args:
        low: Its lower end.
        high: Its upper end.
        count: About how many.

    Returns:
        Ascending numbers; the first is not above `low`, the last not below `high`.
    """
    span = max(high - low, 1e-9)
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def line_plot(curves: Mapping[str, Sequence[Curve]], *, y_label: str, x_label: str = 'epoch') -> str:
    """Scores over epochs: a bold line an arm (mean over seeds), its seeds as thin lines.

    Args:
        curves: Arm -> one curve a seed, each a list of (epoch, score); the arm's place is its colour.
        y_label: What the score is.
        x_label: What the other axis is.

    Returns:
        An `<svg>` element.

    Raises:
        ValueError: Where there is no point.
    """
    points = [point for seeds in curves.values() for curve in seeds for point in curve]
    if not points:
        raise ValueError('curves must hold at least one point, got none')
    height = 320
    xs, ys = (
        nice_ticks(0, max(x for x, _ in points)),
        nice_ticks(min(0, *(y for _, y in points)), max(y for _, y in points)),
    )
    frame = _Frame((xs[0], xs[-1]), (ys[0], ys[-1]), height)
    parts = [frame.axes(xs, ys, x_label, y_label)]
    for index, (arm, seeds) in enumerate(curves.items()):
        kind = f's{index % SERIES}'
        whole = [curve for curve in seeds if len(curve)]
        if len(whole) > 1:
            parts += [f'<polyline class="{kind} thin" points="{frame.points(curve)}"/>' for curve in whole]
        if whole:
            mean = list(zip(*(axis.tolist() for axis in mean_curve(whole)), strict=True))
            title = f'<title>{escape(arm)}</title>'
            parts.append(f'<polyline class="{kind} bold" points="{frame.points(mean)}">{title}</polyline>')
            x, y = frame.place(*mean[-1]) if mean else (0, 0)
            parts.append(f'<circle class="{kind} mark" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{title}</circle>')
    return _svg(height, parts, f'{y_label} over {x_label}')


def interval_plot(rows: Mapping[str, Mapping], *, x_label: str) -> str:
    """Differences with their intervals, one line an arm, around a line at 0.

    Args:
        rows: Arm -> `mean`, `low` and `high` (None where there is no interval), `seeds` (one difference each), `colour`
            (place among all arms).
        x_label: What the difference is.

    Returns:
        An `<svg>` element.

    Raises:
        ValueError: Where there is no arm.
    """
    if not rows:
        raise ValueError('rows must hold at least one arm, got none')
    values = [0.0]
    for row in rows.values():
        values += [row['mean'], *row['seeds'], *(end for end in (row['low'], row['high']) if end is not None)]
    ticks = nice_ticks(min(values), max(values))
    height, left = 34 * len(rows) + _TOP + _BOTTOM, 150
    frame = _Frame((ticks[0], ticks[-1]), (0, len(rows)), height, left=left)
    parts = [frame.axes(ticks, [], x_label, '')]
    zero = frame.place(0, 0)[0]
    parts.append(f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
    for index, (arm, row) in enumerate(rows.items()):
        kind, y = f's{row["colour"] % SERIES}', _TOP + 34 * index + 17
        x = frame.place(row['mean'], 0)[0]
        parts.append(f'<text class="label" x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(_short(arm))}</text>')
        parts += [
            f'<circle class="{kind} seed" cx="{frame.place(one, 0)[0]:.1f}" cy="{y + 9}" r="2.5"/>'
            for one in row['seeds']
        ]
        if row['low'] is not None:
            ends = [frame.place(row[key], 0)[0] for key in ('low', 'high')]
            parts.append(f'<line class="{kind} bold" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<circle class="{kind} mark" cx="{x:.1f}" cy="{y}" r="5"><title>{row["mean"]:+.2f}</title></circle>'
        )
    return _svg(height, parts, x_label)


class _Frame:
    """Where numbers lie on the drawing.

    Args:
        xs: Least and greatest x.
        ys: Least and greatest y.
        height: Of the drawing.
        left: Margin.
    """

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float], height: int, left: int = _LEFT) -> None:
        self.xs, self.ys, self.height, self.left = xs, ys, height, left

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Position of a point."""
        across = (x - self.xs[0]) / ((self.xs[1] - self.xs[0]) or 1.0)
        up = (y - self.ys[0]) / ((self.ys[1] - self.ys[0]) or 1.0)
        width, height = _WIDTH - self.left - _RIGHT, self.height - _TOP - _BOTTOM
        return self.left + across * width, _TOP + (1 - up) * height

    def points(self, curve: Curve) -> str:
        """A curve as the value of `points`."""
        return ' '.join(f'{x:.1f},{y:.1f}' for x, y in (self.place(*point) for point in curve))

    def axes(self, xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str) -> str:
        """Grid, numbers and names."""
        low, parts = self.height - _BOTTOM, []
        for tick in xs:
            x = self.place(tick, 0)[0]
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{low}"/>')
            parts.append(f'<text class="label" x="{x:.1f}" y="{low + 16}" text-anchor="middle">{tick:g}</text>')
        for tick in ys:
            y = self.place(0, tick)[1]
            parts.append(f'<line class="grid" x1="{self.left}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="label" x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        middle = (self.left + _WIDTH - _RIGHT) / 2
        parts.append(
            f'<text class="label" x="{middle}" y="{self.height - 6}" text-anchor="middle">{escape(x_label)}</text>'
        )
        if y_label:
            y = (_TOP + low) / 2
            turned = f'transform="rotate(-90 14 {y})"'
            parts.append(f'<text class="label" x="14" y="{y}" {turned} text-anchor="middle">{escape(y_label)}</text>')
        return ''.join(parts)


def _svg(height: int, parts: Sequence[str], title: str) -> str:
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _short(name: str, longest: int = 20) -> str:
    return name if len(name) <= longest else name[: longest - 1] + '…'
