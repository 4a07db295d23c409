"""What every picture shares: size, colours, axes, and how it gets to disk."""

from pathlib import Path
from typing import TYPE_CHECKING

from pyrovae.training import rundir

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
INK = "#222222"
MISSING = "#f3d9c4"  # a pixel that is NaN
COLOURS = ("#0b5fa5", "#c8553d", "#3a7d44")  # of curves: ELBO, reconstruction, KL


def new_figure(width: float, height: float, pad: float = 0.04) -> "Figure":
    """Return an empty Figure of that size in inches, on a canvas of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def plain(axes: "Axes") -> None:
    """Leave the left and lower axis, and a light grid."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def save(figure: "Figure", path: Path) -> Path:
    """Write a figure to a file, whole or not at all, and return the path."""
    rundir.write(path, lambda p: figure.savefig(p))
    return path
