"""The duality view: the ELBO rising, log p(x) above it, and the KL between them."""

from typing import TYPE_CHECKING

import torch

from pyrovae.evidence import IdentityRecorder
from pyrovae.plots.style import COLOURS, INK, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def duality(recorder: IdentityRecorder) -> "Figure":
    """Return log p(x), the ELBO and KL(q(z|x) || p(z|x)) between them, over training.

    Args:
        recorder: the callback that `fit` was given; means over its data are drawn.
    """
    columns = {
        name: torch.stack([getattr(i, name).mean() for i in recorder.identities]).numpy()
        for name in ("log_evidence", "elbo", "kl")
    }
    figure = new_figure(8.5, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.plot(recorder.epochs, columns["log_evidence"], color=INK, label="log p(x)")
    left.plot(recorder.epochs, columns["elbo"], color=COLOURS[0], label="ELBO")
    left.fill_between(
        recorder.epochs, columns["elbo"], columns["log_evidence"], color=COLOURS[1], alpha=0.18,
        linewidth=0, label="KL(q(z|x) || p(z|x))",
    )  # fmt: skip
    if len(recorder.epochs) > 8:  # the first steep epochs would hide the rest
        cut = columns["elbo"][max(1, len(recorder.epochs) // 10)]
        top = columns["log_evidence"].max()
        left.set_ylim(cut - 0.1 * (top - cut), top + 0.1 * (top - cut))
    left.set_title("the bound and what it bounds", fontsize=10)
    left.legend(frameon=False, fontsize=8, loc="lower right")
    right.plot(recorder.epochs, columns["kl"], color=COLOURS[1])
    right.set_ylim(bottom=0)
    right.set_title("KL(q(z|x) || p(z|x)) = log p(x) - ELBO", fontsize=10)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.set_ylabel("nats per datum")
        plain(axes)
    return figure
