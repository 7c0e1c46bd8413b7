"""Detections of several detectors beside the ground truth, on the same images.

Shapes: `M` boxes of one image. Boxes are (x1, y1, x2, y2) in px of the original image, not of the network input.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from mmkd.visualization.style import colour, new_figure


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image.

    Args:
        corners: (M, 4), px.
        labels: (M,), index of the class.
        scores: (M,), or None for ground truth.
    """

    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None

    def above(self, threshold: float) -> 'Boxes':
        """Those whose score is at least the threshold; all of them where there are no scores."""
        if self.scores is None:
            return self
        kept = self.scores >= threshold
        return Boxes(self.corners[kept], self.labels[kept], self.scores[kept])


def detection_figure(
    images: Sequence[np.ndarray],
    columns: Mapping[str, Sequence[Boxes]],
    *,
    classes: Sequence[str],
    threshold: float = 0.3,
    title: str = '',
) -> Figure:
    """One row an image, one column a detector.

    Args:
        images: (H, W, 3), uint8, RGB.
        columns: Name of the column -> boxes of each image.
        classes: Names, for the legend.
        threshold: Scores below it are not drawn.
        title: Of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: Where a column does not have one entry an image.
    """
    for name, boxes in columns.items():
        if len(boxes) != len(images):
            raise ValueError(f'column {name!r} must have one entry an image ({len(images)}), got {len(boxes)}')
    ratio = images[0].shape[0] / images[0].shape[1]
    width = 3.0
    figure = new_figure(width * len(columns), width * ratio * len(images) + 0.9)
    grid = figure.subplots(len(images), len(columns), squeeze=False)
    for row, image in enumerate(images):
        for column, (name, boxes) in enumerate(columns.items()):
            axes = grid[row][column]
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
            _draw(axes, boxes[row].above(threshold))
            if row == 0:
                axes.set_title(name)
    legend = [Patch(edgecolor=colour(index), facecolor='none', label=name) for index, name in enumerate(classes)]
    figure.legend(handles=legend, loc='outside lower center', ncols=min(len(classes), 8), frameon=False)
    figure.suptitle(title or f'Detections with a score of at least {threshold:g}')
    return figure


def _draw(axes: Axes, boxes: Boxes) -> None:
    for index, (x1, y1, x2, y2) in enumerate(boxes.corners):
        edge = colour(int(boxes.labels[index]))
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=1.4))
        if boxes.scores is not None:
            style = dict(facecolor='white', alpha=0.6, pad=0.4, linewidth=0)
            axes.text(x1, y1, f'{boxes.scores[index]:.2f}', fontsize=5, color=edge, bbox=style, va='bottom')
