"""Feature maps of several networks, level by level, on the scale that makes them comparable.

Shapes: `C` channels, `H, W` cells, `L` levels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from mmkd.visualization.style import new_figure


def activity_map(feature: Tensor) -> np.ndarray:
    """How much each cell responds, against the average cell of the same map.

    a = mean_c |f_c|,  map = a / mean_hw(a).  Networks with other channel counts and magnitudes can be compared on it:
    1 is the average cell.

    Args:
        feature: (C, H, W).

    Returns:
        (H, W), float64, mean 1; all ones where the feature is zero everywhere.

    Raises:
        ValueError: For another number of axes.
    """
    if feature.dim() != 3:
        raise ValueError(f'feature must be (C, H, W), got shape {tuple(feature.shape)}')
    activity = feature.detach().double().abs().mean(dim=0).cpu().numpy()
    mean = activity.mean()
    return activity / mean if mean > 0 else np.ones_like(activity)


def feature_figure(
    image: np.ndarray, columns: Mapping[str, Sequence[Tensor]], *, levels: Sequence[str], title: str = ''
) -> Figure:
    """One row a level, one column a network; within a row all share one colour scale.

    Args:
        image: (H, W, 3), uint8, RGB; shown in front.
        columns: Name of the network -> its L maps, each (C, H, W).
        levels: Names of the L levels.
        title: Of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: Where a column has another number of levels.
    """
    for name, maps in columns.items():
        if len(maps) != len(levels):
            raise ValueError(f'column {name!r} must have {len(levels)} levels, got {len(maps)}')
    ratio = image.shape[0] / image.shape[1]
    figure = new_figure(2.3 * (len(columns) + 1) + 0.8, 2.3 * ratio * len(levels) + 0.9)
    grid = figure.subplots(len(levels), len(columns) + 1, squeeze=False)
    for row, level in enumerate(levels):
        grid[row][0].imshow(image)
        grid[row][0].set_ylabel(level)
        activities = [activity_map(maps[row]) for maps in columns.values()]
        top = max(activity.max() for activity in activities)
        for axes, name, activity in zip(grid[row][1:], columns, activities, strict=True):
            drawn = axes.imshow(activity, vmin=0, vmax=top, cmap='viridis', interpolation='nearest', aspect='auto')
            axes.set_box_aspect(ratio)
            if row == 0:
                axes.set_title(name, fontsize=10)
        figure.colorbar(drawn, ax=list(grid[row][1:]), label='activity / mean', fraction=0.02)
        for axes in grid[row]:
            axes.set(xticks=[], yticks=[])
    grid[0][0].set_title('image', fontsize=10)
    figure.suptitle(title)
    return figure
