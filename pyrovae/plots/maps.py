"""The latent map, and where on the picture each datum lies, for a page to point at."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrovae.plots.style import BLUE, PALETTE, WIDTH, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY = 600  # points, from which on marks are smaller


def plane(z: Tensor) -> tuple[Tensor, tuple[str, str]]:
    """Return latents in a plane, (N, 2), and what its axes are.

    Of two numbers these, of more their first two principal components, of one it and 0.

    Args:
        z: (N, d).
    """
    z = z.detach().cpu().double()
    if z.shape[1] == 1:
        return torch.cat([z, torch.zeros_like(z)], 1), ("z[0]", "")
    if z.shape[1] == 2:
        return z, ("z[0]", "z[1]")
    centred = z - z.mean(0)
    _, s, v = torch.linalg.svd(centred, full_matrices=False)
    share = s.square() / s.square().sum().clamp(min=1e-300)
    names = [f"principal component {i + 1} ({share[i]:.0%} of variance)" for i in (0, 1)]
    return centred @ v[:2].T, (names[0], names[1])


def latent_map(
    points: Tensor, axis_names: Sequence[str], labels: Tensor | None = None
) -> tuple["Figure", Tensor]:
    """Return points in the latent plane; with labels, each is the label itself, in its colour.

    So labels are told apart by shape too.

    Args:
        points: (N, 2), of `plane`.
        axis_names: of the two axes.
        labels: whole numbers (N,).

    Returns:
        The figure, and where on it each point lies: shares of its width from the left and of its
        height from the top, (N, 2).
    """
    figure = new_figure(WIDTH, 4.6)
    axes = figure.subplots()
    horizontal, vertical = points.T.numpy()
    size = 7 if len(points) < MANY else 5
    if labels is None:
        axes.scatter(horizontal, vertical, s=2.5 * size, color=BLUE, alpha=0.7, linewidths=0)
    else:
        axes.plot(horizontal, vertical, linestyle="none")  # for the axes' limits
        values = labels.unique().tolist()
        for value in values:
            rows = (labels == value).nonzero().flatten().tolist()
            axes.scatter(
                horizontal[rows], vertical[rows], s=(4.5 if value < 10 else 9) * size,
                marker=f"${value:g}$", color=PALETTE[values.index(value) % len(PALETTE)],
                linewidths=0.3,
            )  # fmt: skip
    axes.set_xlabel(axis_names[0])
    axes.set_ylabel(axis_names[1])
    if not axis_names[1]:
        axes.set_yticks([])
    plain(axes)
    figure.draw_without_rendering()  # the layout is settled on drawing
    at = torch.as_tensor(axes.transData.transform(points.numpy()), dtype=torch.float64)
    at /= torch.tensor(figure.bbox.size, dtype=torch.float64)
    return figure, torch.stack([at[:, 0], 1 - at[:, 1]], 1)
