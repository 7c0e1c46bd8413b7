"""Scores over epochs: one bold line an arm (mean over seeds), its seeds as thin lines behind it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mmkd.visualization.style import colour, new_figure

Curve = Sequence[tuple[float, float]]


def curve_figure(curves: Mapping[str, Sequence[Curve]], *, title: str, y_label: str, x_label: str = 'epoch') -> Figure:
    """Draw scores over epochs.

    Args:
        curves: Arm -> one curve a seed, each a list of (epoch, score).
        title: Of the figure.
        y_label: What the score is.
        x_label: What the other axis is.

    Returns:
        The figure.

    Raises:
        ValueError: Where there is nothing to draw.
    """
    if not any(len(curve) for seeds in curves.values() for curve in seeds):
        raise ValueError('curves must hold at least one point, got none')
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    for index, (arm, seeds) in enumerate(curves.items()):
        for curve in seeds if len(seeds) > 1 else ():
            axes.plot(*np.asarray(curve).T, color=colour(index), linewidth=0.8, alpha=0.35)
        epochs, mean = mean_curve(seeds)
        count = f' ({len(seeds)} seeds)' if len(seeds) > 1 else ''
        axes.plot(epochs, mean, color=colour(index), linewidth=2, marker='o', markersize=3, label=arm + count)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def mean_curve(seeds: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds at the epochs that all of them have.

    Args:
        seeds: One curve a seed, each a list of (epoch, score).

    Returns:
        Epochs and means, both (E,).
    """
    tables = [dict(curve) for curve in seeds]
    epochs = sorted(set.intersection(*(set(table) for table in tables)))
    return np.asarray(epochs), np.asarray([np.mean([table[epoch] for table in tables]) for epoch in epochs])
