"""One look for all pictures: made without a display, readable in grey, same colour for the same thing everywhere."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#999933')


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, apart from any global state of matplotlib.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 110) -> Path:
    """Write a figure; an SVG's content depends on nothing but the figure.

    Args:
        figure: What to write.
        path: File; its folder is made, its suffix chooses the format.
        dpi: Dots an inch.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dated = dict(metadata=dict(Date=None)) if path.suffix == '.svg' else {}
    with rc_context({'svg.hashsalt': 'mmkd'}):
        figure.savefig(path, dpi=dpi, **dated)
    return path


def colour(index: int) -> str:
    """The colour of the index-th arm or class; they repeat after eight."""
    return COLOURS[index % len(COLOURS)]
