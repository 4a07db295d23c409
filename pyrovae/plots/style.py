"""What every picture shares: size, colours, axes, and how it gets to disk."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from pyrovae.training import rundir

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
WIDTH = 5.2  # inches, of a picture that is to be read on a phone: 10 pt come out as 10 px
INK = "#222222"
GREY = "#8c8c8c"
MISSING = "#f3d9c4"  # a pixel that is NaN
BLUE, VERMILLION, GREEN = "#0072b2", "#d55e00", "#009e73"
ORANGE, SKY, PURPLE, BLACK = "#e69f00", "#56b4e9", "#cc79a7", "#000000"
COLOURS = (BLUE, VERMILLION, GREEN)  # of curves: ELBO, reconstruction, KL
# Okabe & Ito (2008), told apart by the colour-blind too; without their yellow, faint on white
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)


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
    """Leave the left and lower axis, and a light grid behind what is drawn."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: "Figure", path: Path) -> Path:
    """Write a figure to a file, whole or not at all, and return the path."""
    rundir.write(path, lambda p: figure.savefig(p))
    return path


def encoded(figure: "Figure", kind: str) -> bytes:
    """Return a figure as the bytes of a file, the same for the same figure.

    Args:
        figure: the figure.
        kind: png or svg.
    """
    from matplotlib import rc_context

    file = io.BytesIO()
    undated = {"Date": None} if kind == "svg" else None
    with rc_context({"svg.hashsalt": "pyrovae", "image.composite_image": False}):
        figure.savefig(file, format=kind, metadata=undated)
    return file.getvalue()
