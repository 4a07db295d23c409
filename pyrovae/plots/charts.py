"""Charts of a report: one question each, narrow enough to be read on a phone."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrovae.diagnostics import Memorisation
from pyrovae.plots.style import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    WIDTH,
    new_figure,
    plain,
)
from pyrovae.training import History
from pyrovae.training.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 24
CUT = 20  # the first epochs / CUT are steep and would hide the rest
CLAMPED = 2.0  # |k-hat| beyond this is drawn at the edge


def _axes(height: float = 3.2) -> tuple["Figure", "Axes"]:
    figure = new_figure(WIDTH, height)
    axes = figure.subplots()
    plain(axes)
    return figure, axes


def _column(history: History, name: str, sign: float = 1.0) -> list[float]:
    return [math.nan if v is None else sign * v for v in history[name]]


def _zoom(axes: "Axes", curves: Sequence[Sequence[float]]) -> None:
    """Let the axis begin where the steep start of training is over."""
    late = [v for c in curves for v in c[len(c) // CUT :] if math.isfinite(v)]
    if len(curves[0]) >= CUT and late:
        low, high = min(late), max(late)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))


def _epochs(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def elbo_curve(history: History) -> "Figure":
    """Return the ELBO over the epochs, of the training and of the validation data.

    Args:
        history: of the training, with `best_epoch`.
    """
    figure, axes = _axes()
    epochs, curves = _column(history, "epoch"), [_column(history, "loss", -1)]
    dot = "o" if len(epochs) == 1 else None
    axes.plot(epochs, curves[0], color=BLUE, marker=dot, label="training, as trained")
    if any(v is not None for v in history["validation_loss"]):
        curves.append(_column(history, "validation_loss", -1))
        axes.plot(
            epochs, curves[1], color=VERMILLION, linestyle="--", marker=dot, label="validation"
        )
        axes.axvline(
            history.best_epoch, color=GREY, linewidth=1, linestyle=":", label="weights kept"
        )
    _zoom(axes, curves)
    _epochs(axes)
    axes.set_ylabel("ELBO, nats per datum")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def term_curves(history: History) -> "Figure":
    """Return the ELBO's two terms over the epochs, each in a panel of its own.

    Args:
        history: of the training.
    """
    figure = new_figure(WIDTH, 4.2)
    upper, lower = figure.subplots(2, 1, sharex=True)
    terms = (
        (upper, "reconstruction", "E_q log p(x|z)", COLOURS[1]),
        (lower, "kl", "KL(q(z|x) || p(z))", COLOURS[2]),
    )
    for axes, name, title, colour in terms:
        curve = _column(history, name)
        axes.plot(history["epoch"], curve, color=colour, marker="o" if len(curve) == 1 else None)
        _zoom(axes, [curve])
        axes.set_title(title, fontsize=10, loc="left", color=INK)
        axes.set_ylabel("nats per datum")
        plain(axes)
    _epochs(lower)
    return figure


def evidence_intervals(elbo: Tensor, log_evidence: Tensor, low: Tensor, high: Tensor) -> "Figure":
    """Return by how much log p(x) of each datum exceeds its ELBO, with its interval.

    Data are in the order of that gap; the ELBO is the line at 0.

    Args:
        elbo: (N,), in nats.
        log_evidence: the estimate of log p(x), (N,).
        low: lower ends, (N,).
        high: upper ends, (N,), inf where only the lower end is known.
    """
    order = (log_evidence - elbo).argsort()
    estimate, low, high = (
        (t - elbo).detach().cpu().double()[order] for t in (log_evidence, low, high)
    )
    figure, axes = _axes(3.4)
    rank = torch.arange(len(order)) + 1
    closed = high.isfinite()
    for rows, colour, marker, label in (
        (closed, BLUE, "o", "log p(x), 95% interval"),
        (~closed, VERMILLION, "^", "log p(x), lower bound alone"),
    ):
        if not bool(rows.any()):
            continue
        upper = torch.where(closed, high, estimate)[rows]
        axes.vlines(rank[rows].numpy(), low[rows].numpy(), upper.numpy(), color=colour, lw=1.4)
        axes.plot(
            rank[rows].numpy(), estimate[rows].numpy(), marker, color=colour, markersize=3.2,
            label=label,
        )  # fmt: skip
    axes.axhline(0, color=INK, linewidth=1.6, label="ELBO")
    axes.set_xlabel("data, in the order of the gap")
    axes.set_ylabel("nats above the ELBO")
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncol=2)
    return figure


def gap_bars(
    names: Sequence[str], approximation: Sequence[Sequence[float]],
    amortization: Sequence[Sequence[float]],
) -> "Figure":  # fmt: skip
    """Return for each pair a bar log p(x) - ELBO in two parts, each with two standard errors.

    Args:
        names: of the pairs.
        approximation: (mean, standard error) of log p(x) - ELBO of the best guide, of each pair.
        amortization: (mean, standard error) of that ELBO less the ELBO, of each pair.
    """
    figure, axes = _axes(1.35 + 0.5 * len(names))
    parts = (
        (approximation, BLUE, "", "approximation: the family of q"),
        (amortization, ORANGE, "///", "amortization: the network"),
    )
    starts = [0.0] * len(names)
    for number, (values, colour, hatch, label) in enumerate(parts):
        for row, (mean, error) in enumerate(values):
            axes.barh(
                row, mean, left=starts[row], color=colour, hatch=hatch, height=0.62,
                edgecolor="white", label=label if row == 0 else None,
            )  # fmt: skip
            end, shift = starts[row] + mean, 0.12 * (2 * number - 1)
            axes.errorbar(end, row + shift, xerr=2 * error, color=INK, capsize=3, lw=1.2)
            if number == 0:
                starts[row] = end
    axes.set_yticks(range(len(names)), list(names))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("log p(x) - ELBO, nats per datum (whiskers: 2 standard errors)")
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncol=2)
    return figure


def khat_histogram(khat: Tensor, threshold: float) -> "Figure":
    """Return the histogram of k-hat, the data above the threshold in another colour and hatched.

    Args:
        khat: (N,); beyond +-2, and infinite ones, are counted at the edge.
        threshold: below which weights are to be trusted.
    """
    figure, axes = _axes(2.9)
    khat = khat.detach().cpu().double()
    outside = bool((khat.abs() > CLAMPED).any())
    khat = khat.clamp(-CLAMPED, CLAMPED)
    low, high = min(float(khat.min()), 0.0) - 0.05, max(float(khat.max()), threshold) + 0.05
    # the threshold is an edge, so that no bar lies on both of its sides
    step = (high - low) / BINS
    below = torch.arange(math.ceil((threshold - low) / step), -1, -1) * -step + threshold
    above = torch.arange(1, math.ceil((high - threshold) / step) + 1) * step + threshold
    edges = torch.cat([below, above]).double()
    for rows, colour, hatch, label in (
        (khat < threshold, BLUE, "", "below: to be trusted"),
        (khat >= threshold, VERMILLION, "///", "above: not"),
    ):
        axes.hist(
            khat[rows].numpy(), bins=edges.tolist(), color=colour, hatch=hatch, edgecolor="white",
            label=f"{label} ({int(rows.sum())})",
        )  # fmt: skip
    axes.axvline(threshold, color=INK, linewidth=1.2, linestyle="--")
    beyond = "; at the edge: beyond" if outside else ""
    axes.set_xlabel(f"k-hat (dashed: threshold {threshold:.2f}{beyond})")
    axes.set_ylabel("data")
    axes.legend(frameon=False, fontsize=9)
    return figure


def unit_bars(variance: Tensor, active: Tensor, threshold: float) -> "Figure":
    """Return Cov_x(E_q[z_i|x]) of each latent number, the largest first, on a scale of logarithms.

    Args:
        variance: (d,).
        active: which are active, (d,), bool.
        threshold: above which they are.
    """
    figure, axes = _axes(2.9)
    order = variance.argsort(descending=True)
    values, active = variance[order].detach().cpu().double(), active[order].cpu()
    floor = min(threshold / 30, float(values.clamp(min=threshold / 1e3).min()) / 2)
    at = torch.arange(len(values))
    for rows, colour, hatch, label in (
        (active, GREEN, "", "active"), (~active, GREY, "///", "inactive"),
    ):  # fmt: skip
        if bool(rows.any()):
            axes.bar(
                at[rows].numpy(), (values[rows].clamp(min=floor) - floor).numpy(), bottom=floor,
                color=colour, hatch=hatch, edgecolor="white",
                label=f"{label} ({int(rows.sum())})",
            )  # fmt: skip
    axes.axhline(threshold, color=INK, linewidth=1.2, linestyle="--")
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    if len(values) <= 20:
        axes.set_xticks(at.tolist(), [f"{i}" for i in order.tolist()])
        axes.set_xlabel(f"latent number i (dashed: threshold {threshold:g})")
    else:
        axes.set_xlabel(f"latent numbers, the most active first (dashed: threshold {threshold:g})")
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("variance of E_q[z_i|x]")
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncol=2)
    return figure


def copy_distances(found: Memorisation) -> "Figure":
    """Return distances to the nearest training datum: of samples, and of held-out data.

    Args:
        found: what `diagnostics.memorisation` returned.
    """
    figure, axes = _axes(2.9)
    groups = (
        (found.held_out, SKY, "held-out data", {"alpha": 0.6}),
        (found.generated, INK, "samples", {"histtype": "step", "linewidth": 1.8}),
    )
    highest = max(float(d.max()) for d, *_ in groups)
    edges = torch.linspace(0, max(highest, 1e-9) * 1.02, BINS + 1).tolist()
    for distances, colour, label, options in groups:
        values = distances.detach().cpu().numpy()
        share = [1 / len(values)] * len(values)
        axes.hist(values, bins=edges, weights=share, color=colour, label=label, **options)
    axes.set_xlabel("distance to the nearest training datum")
    axes.set_ylabel("share")
    axes.legend(frameon=False, fontsize=9)
    return figure


def comparison_bars(comparison: Comparison) -> "Figure":
    """Return each run's log p(x) less that of the best, with two paired standard errors.

    Args:
        comparison: what `training.comparison.compare` returned.
    """
    figure, axes = _axes(0.9 + 0.45 * len(comparison.rows))
    for place, row in enumerate(comparison.rows):
        axes.errorbar(
            row.difference, place, xerr=2 * (row.difference_se or 0), fmt="o", color=BLUE,
            capsize=4, markersize=6,
        )  # fmt: skip
    axes.set_yticks(range(len(comparison.rows)), [row.run for row in comparison.rows])
    axes.set_ylim(len(comparison.rows) - 0.5, -0.5)
    axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
    axes.set_xlabel("log p(x) less the best's, nats (2 paired standard errors)")
    return figure
