"""The picture of a calibration."""

import math
from typing import TYPE_CHECKING

import torch

from pyrovae.diagnostics import Calibration
from pyrovae.plots.style import COLOURS, INK, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4
PANELS = 24  # of more quantities, those with the smallest p-values are shown
BAND = 0.99


def calibration(result: Calibration) -> "Figure":
    """Return the rank histograms, a panel for each quantity, on the band of a uniform.

    All bars of a panel lie within the band with probability 0.99 if the guide is exact (normal
    approximation to the counts, Bonferroni over the bins). Quantities that fail are drawn in red.
    Each panel has a scale of its own.

    Args:
        result: what `diagnostics.calibration` returned.
    """
    q, counts = len(result.names), result.counts
    shown = sorted(result.p_values.argsort()[:PANELS].tolist())
    n, bins = len(result.ranks), counts.shape[1]
    expected = n / bins
    z = float(torch.special.ndtri(torch.tensor(1 - (1 - BAND) / (2 * bins))))
    half = z * math.sqrt(expected * (1 - 1 / bins))

    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(max(2.3 * columns, 6.0), 1.9 * rows + 1.15)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    width = (result.num_draws + 1) / bins
    left_edges = [width * b for b in range(bins)]
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_axis_off()
            continue
        i = shown[place]
        p = float(result.p_values[i])
        colour = COLOURS[0] if p * q > result.level else COLOURS[1]
        axes.bar(left_edges, counts[i].tolist(), width=0.9 * width, align="edge", color=colour)
        band = max(0.0, expected - half), expected + half
        axes.axhspan(*band, facecolor="#bbbbbb", edgecolor=INK, alpha=0.45, linewidth=0.6, zorder=3)
        axes.axhline(expected, color=INK, linewidth=0.8, linestyle=":", zorder=4)
        axes.set_xlim(0, result.num_draws + 1)
        axes.set_title(f"{result.names[i]}   p = {p:.2g}", fontsize=9, color=INK)
        plain(axes)
        axes.set_axisbelow(True)
        if place + columns >= len(shown):  # the lowest of its column
            axes.set_xlabel("rank of the truth", fontsize=8)
            axes.tick_params(labelbottom=True)
        if place % columns == 0:
            axes.set_ylabel("simulations", fontsize=8)
        axes.tick_params(labelsize=8)
    verdict = "uniform ranks" if result.ok else "ranks not uniform"
    some = "" if q == len(shown) else f", {len(shown)} of {q} shown"
    figure.suptitle(
        f"Calibration: {verdict}, p = {result.p_value:.2g} jointly{some}\n"
        f"{n:,} simulations, {result.num_draws} draws of the guide each; 99 % band of a uniform",
        fontsize=10,
        color=INK,
    )
    figure.supxlabel(
        "z: high ends, guide too narrow; hump, too wide; slope, off to one side\n"
        "log p(x, z): high at the left, too narrow; at the right, too wide",
        fontsize=8,
        color=INK,
    )
    return figure
