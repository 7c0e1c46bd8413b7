"""Maps of several levels in one figure: a row a level, a column a quantity, one colour scale where they are compared.

Shapes: `H, W` cells of a map. A map covers the padded network input, whatever its grid; px are those of that input.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from mmkd.visualization.style import new_figure

PANEL = 2.1  # inches: width of a panel, or height of one that is taller than wide
LOWEST = 0.95  # inches: height of a panel of a very wide image, so that the label of its bar finds room


@dataclass(frozen=True)
class Frame:
    """The network's input as a picture.

    Args:
        image: (height, width, 3) of the padded input, uint8, RGB.
        size: (height, width) of the part that is no padding, px; nothing else is shown.
        boxes: (M, 4) objects, (x1, y1, x2, y2) px, drawn on the image.
    """

    image: np.ndarray
    size: tuple[int, int]
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))

    @property
    def panel(self) -> tuple[float, float]:
        """Width and height of one panel, in inches."""
        ratio = self.size[0] / self.size[1]
        if ratio > 1:
            return PANEL / ratio, PANEL
        width = max(PANEL, min(LOWEST / ratio, 2 * PANEL))
        return width, width * ratio

    def show(self, axes: Axes, *, grey: bool = False, boxes: bool = True) -> None:
        """Draw the picture, in colour or as a pale grey ground for a map."""
        if grey:
            shade = self.image @ np.array([0.299, 0.587, 0.114])
            axes.imshow(shade, cmap='gray', vmin=0, vmax=255)
        else:
            axes.imshow(self.image)
        for x1, y1, x2, y2 in self.boxes if boxes else ():
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor='white', linewidth=1.8))
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor='black', linewidth=0.8))
        self._crop(axes)

    def lay(self, axes: Axes, values: np.ndarray, **style: object) -> AxesImage:
        """Draw a map (H, W) where it belongs on the picture."""
        height, width = self.image.shape[:2]
        drawn = axes.imshow(values, extent=(0, width, height, 0), **style)
        self._crop(axes)
        return drawn

    def _crop(self, axes: Axes) -> None:
        axes.set(xticks=[], yticks=[], xlim=(0, self.size[1]), ylim=(self.size[0], 0), aspect='equal')


@dataclass(frozen=True, eq=False)
class Scale:
    """Colours of a quantity. Neighbouring columns with the very same `Scale` share limits and bar within a row.

    Args:
        label: of the colour bar: quantity and unit.
        cmap: matplotlib's name of the colours.
        limits: lowest and highest value; None for that of the row's maps.
        centred: limits are equal on both sides of 0, for differences.
        overlay: half transparent on the picture, and smooth, instead of bare cells.
    """

    label: str
    cmap: str = 'viridis'
    limits: tuple[float | None, float | None] = (0.0, None)
    centred: bool = False
    overlay: bool = False

    def fitted(self, maps: Sequence[np.ndarray]) -> tuple[float, float]:
        """Limits for the maps of one row."""
        values = np.concatenate([np.ravel(values) for values in maps])
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
        if self.centred:
            reach = max(abs(low), abs(high)) or 1.0
            return -reach, reach
        low = low if self.limits[0] is None else self.limits[0]
        high = high if self.limits[1] is None else self.limits[1]
        return low, high if high > low else low + 1.0


@dataclass(frozen=True)
class Column:
    """One quantity on every level.

    Args:
        title: above the column.
        maps: one (H, W) a row; None where a level has none.
        scale: colours.
    """

    title: str
    maps: Sequence[np.ndarray | None]
    scale: Scale


def grid_figure(frame: Frame, levels: Sequence[str], columns: Sequence[Column], *, title: str = '') -> Figure:
    """The picture, and beside it every quantity on every level.

    Args:
        frame: the picture.
        levels: name of each row.
        columns: what is shown; those that share a `Scale` stand side by side.
        title: of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: no level, or a column with another number of maps than there are levels.
    """
    if not levels:
        raise ValueError('levels must name at least one level, got none.')
    for column in columns:
        if len(column.maps) != len(levels):
            raise ValueError(f'column {column.title!r} must have {len(levels)} maps, got {len(column.maps)}.')
    groups = _groups(columns)
    width, height = frame.panel
    figure = new_figure((1 + len(columns)) * width + 0.75 * len(groups) + 0.4, len(levels) * (height + 0.12) + 0.85)
    grid = figure.subplots(len(levels), 1 + len(columns), squeeze=False)
    for row, level in enumerate(levels):
        frame.show(grid[row][0])
        grid[row][0].set_ylabel(level, fontsize=9)
        for group in groups:
            _draw_group(figure, frame, [grid[row][1 + index] for index in group], [columns[i] for i in group], row)
    for axes, name in zip(grid[0], ('image', *(column.title for column in columns)), strict=True):
        axes.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def _groups(columns: Sequence[Column]) -> list[list[int]]:
    groups: list[list[int]] = []
    for index, column in enumerate(columns):
        if groups and columns[groups[-1][-1]].scale is column.scale:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _draw_group(figure: Figure, frame: Frame, panels: list[Axes], columns: list[Column], row: int) -> None:
    """Maps of one level that share a scale, and their bar."""
    scale, maps = columns[0].scale, [column.maps[row] for column in columns]
    there = [values for values in maps if values is not None]
    drawn = None
    low, high = scale.fitted(there) if there else (0.0, 1.0)
    for axes, values in zip(panels, maps, strict=True):
        if values is None:
            axes.set_axis_off()
            continue
        style = dict(cmap=scale.cmap, vmin=low, vmax=high, interpolation='nearest')
        if scale.overlay:
            frame.show(axes, grey=True, boxes=False)
            style.update(alpha=0.6, interpolation='bilinear')
        drawn = frame.lay(axes, values, **style)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels, fraction=0.05, aspect=14, pad=0.02)
        bar.set_label(scale.label, fontsize=7)
        bar.ax.tick_params(labelsize=6)
        bar.locator = MaxNLocator(nbins=4)
        bar.update_ticks()
