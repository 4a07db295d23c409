"""The picture of the two directions of KL."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrovae.distributions import MixtureOfNormals
from pyrovae.divergences import Fit, NormalFamily, fit_forward, fit_reverse
from pyrovae.plots.style import COLOURS, INK, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#8c8c8c"
STEPS, LR = 300, 0.1
TITLES = {1: "one dimension: densities", 2: "two dimensions: q at 1 and 2 standard deviations"}
LABELS = (
    ("forward", COLOURS[0], "forward fit, minimises KL(p || q): covers"),
    ("reverse", COLOURS[1], "reverse fit, minimises KL(q || p): seeks a mode"),
)


def forward_reverse(*, seed: int = 0) -> "Figure":
    """Return a target of two modes and the normals fitted to it by each direction of KL.

    In one and in two dimensions, with both KLs of both fits underneath. The fits are made on call,
    by `divergences.fit_forward` and `fit_reverse`, from the same initial values; that takes a few
    seconds. After Bishop (2006), figures 10.2 and 10.3.

    Args:
        seed: of the fits.
    """
    figure = new_figure(9.0, 5.4)
    axes = figure.subplots(2, 2, height_ratios=[4.6, 1])
    for column, dim in enumerate((1, 2)):
        target = _target(dim)
        fits = _fits(target, seed)
        (_line if dim == 1 else _plane)(axes[0, column], target, fits)
        axes[0, column].set_title(TITLES[dim], fontsize=10, color=INK)
        _numbers(axes[1, column], fits)
    _legend(figure)
    return figure


def _target(dim: int) -> MixtureOfNormals:
    """Return p: in 1-d two modes of unequal width, in 2-d two ridges side by side."""
    f64 = torch.float64
    if dim == 1:
        loc, scale = torch.tensor([[-2.0], [2.5]]), torch.tensor([[0.7], [0.9]])
    else:
        loc = torch.tensor([[-1.5, -1.5], [1.5, 1.5]])
        scale = torch.linalg.cholesky(
            torch.tensor([[[0.8, -0.45], [-0.45, 0.7]], [[0.6, -0.3], [-0.3, 0.9]]])
        )
    return MixtureOfNormals(loc.to(f64), scale.to(f64), torch.tensor([0.6, 0.4]).to(f64).log())


def _fits(target: MixtureOfNormals, seed: int) -> dict[str, Fit]:
    """Return the fit by each direction, both from a unit normal that leans to the larger mode."""
    (dim,) = target.event_shape
    family = NormalFamily(dim, full_rank=dim > 1, loc=-1.0).double()
    return {
        "forward": fit_forward(target, family, steps=STEPS, lr=LR, seed=seed),
        "reverse": fit_reverse(target, family, steps=STEPS, lr=LR, seed=seed),
    }


def _line(axes: "Axes", target: MixtureOfNormals, fits: dict[str, Fit]) -> None:
    x = torch.linspace(-7, 7, 801, dtype=torch.float64)
    p = target.log_prob(x.unsqueeze(-1)).exp()
    axes.fill_between(x.numpy(), p.numpy(), color=GREY, alpha=0.35, linewidth=0)
    for name, colour, _ in LABELS:
        density = fits[name].q.log_prob(x.unsqueeze(-1)).exp()
        axes.plot(x.numpy(), density.numpy(), color=colour, linewidth=2)
    axes.set_xlim(-7, 7)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("x")
    axes.set_ylabel("density")
    plain(axes)


def _plane(axes: "Axes", target: MixtureOfNormals, fits: dict[str, Fit]) -> None:
    side = torch.linspace(-4.5, 4.5, 301, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)

    def over_mode(log_density: Tensor) -> Tensor:
        return (log_density - log_density.max()).exp()

    levels = torch.linspace(0.05, 1, 9).tolist()
    p = over_mode(target.log_prob(x)).numpy()
    axes.contourf(side.numpy(), side.numpy(), p, levels, cmap="Greys", vmin=-0.3, vmax=1.6)
    for name, colour, _ in LABELS:
        q = over_mode(fits[name].q.log_prob(x)).numpy()
        sds = torch.tensor([2.0, 1.0]).square().mul(-0.5).exp().tolist()  # at 2 and 1 of them
        axes.contour(side.numpy(), side.numpy(), q, sds, colors=[colour], linewidths=[1.2, 2])
    axes.set_aspect("equal")
    axes.set_xlabel("x[0]")
    axes.set_ylabel("x[1]")
    plain(axes)


def _numbers(axes: "Axes", fits: dict[str, Fit]) -> None:
    """Write both KLs of both fits; the one that the fit minimises is bold."""
    axes.set_axis_off()
    columns = {"forward": (0.62, "KL(p || q)"), "reverse": (0.88, "KL(q || p)")}
    axes.text(0.12, 0.85, "in nats", fontsize=9, color=GREY)
    for x, heading in columns.values():
        axes.text(x, 0.85, heading, ha="right", fontsize=9, color=INK)
    for row, (name, colour, _) in enumerate(LABELS):
        y = 0.5 - 0.35 * row
        axes.text(0.12, y, f"{name} fit", fontsize=9, color=colour)
        for kl, (x, _) in columns.items():
            value = float(getattr(fits[name], kl))
            weight = "bold" if kl == name else "normal"
            axes.text(x, y, f"{value:.3f}", ha="right", fontsize=9, weight=weight, color=INK)


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = [Line2D([], [], color=colour, lw=2, label=label) for _, colour, label in LABELS]
    handles = [Patch(color=GREY, alpha=0.5, linewidth=0, label="target p"), *lines]
    figure.legend(handles=handles, loc="outside upper center", ncol=3, frameon=False, fontsize=9)
