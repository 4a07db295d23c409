"""Data beside one another, many to a picture: images as images, anything else as a line."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrovae.plots.style import BLUE, GREY, INK, MISSING, WIDTH, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP, LETTER, LABEL = 0.05, 0.062, 0.17  # inches: between cells, a letter's width, a label's height
LETTERS = 16  # a line of a name
FEW = 12  # numbers of a datum that are marked one by one
TALLEST = 1.6  # of a cell's sides, height over width


def is_image(data_shape: Sequence[int]) -> bool:
    """Is a datum of this shape an image, (H, W), (1, H, W) or in colour (3, H, W)?"""
    return len(data_shape) == 2 or (len(data_shape) == 3 and data_shape[0] in (1, 3))


def mosaic(
    rows: Sequence[Tensor],
    names: Sequence[str] = (),
    labels: Sequence[Sequence[str]] = (),
    *,
    least: int = 1,
) -> "Figure":
    """Return rows of data, all on one scale: grey is ink on white, lines are values by entry.

    Args:
        rows: of data (M, *data_shape) each.
        names: of the rows, written at their left.
        labels: of the data of each row, written underneath; none for a row without.
        least: columns to leave room for, so that a short row is not blown up.
    """
    rows = [row.detach().cpu().float() for row in rows]
    low, high = _range(rows)
    columns = max(least, *(len(row) for row in rows))
    left = LETTER * min(max(map(len, names), default=-1) + 1, LETTERS)
    width = (WIDTH - left - GAP) / columns
    shape = rows[0].shape[1:]
    tall = min(max(shape[-2] / shape[-1], 1 / TALLEST), TALLEST) if is_image(shape) else 0.8
    height = tall * (width - GAP)
    tops = [GAP]
    for i in range(len(rows)):
        tops.append(tops[i] + height + GAP + (LABEL if labels and any(labels[i]) else 0.0))
    figure = new_figure(WIDTH, tops[-1])
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))  # whose coordinates are inches, downwards
    for i, row in enumerate(rows):
        top = tops[i]
        for j, x in enumerate(row):
            start = left + GAP + j * width
            _draw(axes, x, (start, start + width - GAP, top, top + height), low, high)
            if labels and labels[i]:
                axes.text(
                    start + (width - GAP) / 2, top + height + LABEL / 2, labels[i][j],
                    ha="center", va="center", fontsize=8, color=INK,
                )  # fmt: skip
        if names:
            axes.text(
                left, top + height / 2, textwrap.fill(names[i], LETTERS), ha="right", va="center",
                fontsize=8, color=INK,
            )  # fmt: skip
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(tops[-1], 0)
    axes.set_aspect("auto")
    axes.set_axis_off()
    return figure


def sprite(x: Tensor, columns: int) -> Tensor:
    """Return images side by side in one, row by row, for a page to cut them out of.

    Args:
        x: images (N, *data_shape), see `is_image`.
        columns: how many a row.

    Returns:
        RGB from 0 to 255, whole numbers, (rows H, columns W, 3); grey as ink on white.
    """
    low, high = _range([x])
    x = ((x.detach().cpu().float() - low) / max(high - low, 1e-12)).clamp(0, 1)
    if x.shape[1:].numel() != x.shape[-2:].numel():  # of several channels
        x = x.movedim(1, -1)
    else:
        x = (1 - x).reshape(len(x), *x.shape[-2:], 1).expand(-1, -1, -1, 3)
    absent = x.isnan().any(-1, keepdim=True)
    empty = torch.tensor([int(MISSING[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    x = torch.where(absent, empty, x)
    rows = -(-len(x) // columns)
    x = torch.cat([x, x.new_ones(rows * columns - len(x), *x.shape[1:])])
    height, width = x.shape[1:3]
    x = x.reshape(rows, columns, height, width, 3).transpose(1, 2)
    return (x.reshape(rows * height, columns * width, 3) * 255).round().to(torch.uint8)


def _range(rows: Sequence[Tensor]) -> tuple[float, float]:
    values = torch.cat([row.detach().cpu().float().flatten() for row in rows])
    values = values[values.isfinite()]
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)


def _draw(
    axes: "Axes", x: Tensor, box: tuple[float, float, float, float], low: float, high: float
) -> None:
    """Draw one datum into a box (left, right, top, bottom), with a thin frame."""
    from matplotlib.patches import Rectangle

    left, right, top, bottom = box
    for zorder, look in (
        (-1, {"facecolor": MISSING if is_image(x.shape) else "none"}),  # seen through pixels of NaN
        (3, {"facecolor": "none", "edgecolor": "#bbbbbb", "linewidth": 0.5}),
    ):
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, zorder=zorder, **look))
    if not is_image(x.shape):
        y = x.flatten()
        share = (y - low) / max(high - low, 1e-12)
        at = left + (right - left) * (torch.arange(len(y)) + 0.5) / len(y)
        heights = bottom - (bottom - top) * (0.06 + 0.88 * share)
        dot = "o" if len(y) <= FEW else None
        axes.plot(
            at.numpy(), heights.numpy(), color=BLUE, linewidth=0.9, marker=dot, markersize=1.8
        )
        if low < 0 < high:
            zero = bottom - (bottom - top) * (0.06 + 0.88 * -low / (high - low))
            axes.plot([left, right], [zero, zero], color=GREY, linewidth=0.4, zorder=1)
        return
    extent = (left, right, bottom, top)
    if x.dim() == 3 and x.shape[0] == 3:
        picture = ((x - low) / max(high - low, 1e-12)).clamp(0, 1).movedim(0, -1)
        axes.imshow(picture.numpy(), extent=extent, interpolation="none")
    else:
        picture = x.reshape(x.shape[-2:])
        axes.imshow(
            picture.numpy(), extent=extent, cmap="gray_r", vmin=low, vmax=high,
            interpolation="none",
        )  # fmt: skip
