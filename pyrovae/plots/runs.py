"""Pictures of a trained pair and of its training."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrovae.data import Data
from pyrovae.diagnostics import latent_means
from pyrovae.nets import evaluating
from pyrovae.pairs import VAE
from pyrovae.pairs.base import Pair, mean_or_draw
from pyrovae.plots.style import COLOURS, INK, MISSING, new_figure, plain, save
from pyrovae.training import History
from pyrovae.training.sources import classes, context_of, context_to_sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS, MOST_COLUMNS = 12, 20  # pictures a row, by default and where each is a class of its own
N = 60  # samples
MOST_POINTS = 5000  # of the latent plane


def _draw(axes: "Axes", x: Tensor, low: float, high: float) -> None:
    """Draw one datum: an image (H, W) or (C, H, W) with C 1 or 3, anything else as a line."""
    x = x.squeeze(0) if x.dim() == 3 and x.shape[0] == 1 else x
    if x.dim() == 2:
        axes.set_facecolor(MISSING)
        axes.imshow(x.numpy(), cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
    elif x.dim() == 3 and x.shape[0] == 3:
        axes.imshow(((x - low) / max(high - low, 1e-12)).clamp(0, 1).movedim(0, -1).numpy())
    else:
        axes.plot(x.flatten().numpy(), color=INK, linewidth=0.9)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)
        spine.set_color("#bbbbbb")


def _grid(rows: list[Tensor], names: list[str], title: str) -> "Figure":
    """Draw rows of data, each row named at its left; all on one scale of grey."""
    rows = [r.detach().cpu().float() for r in rows]
    values = torch.cat([r.flatten() for r in rows])
    values = values[~values.isnan()]  # an entry that is missing
    low, high = float(values.min()), float(values.max())
    columns = max(len(r) for r in rows)
    figure = new_figure(
        0.62 * columns + (0.95 if any(names) else 0.1), 0.62 * len(rows) + 0.4, pad=0.02
    )
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        for j in range(columns):
            if j < len(row):
                _draw(axes[i, j], row[j], low, high)
            else:
                axes[i, j].set_axis_off()
        axes[i, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, color=INK)
    figure.suptitle(title, fontsize=10, color=INK)
    return figure


def reconstructions(
    vae: Pair, x: Tensor, *c: Tensor, columns: int = COLUMNS, seed: int = 0
) -> "Figure":
    """Return inputs above their reconstructions E[x'|z], z ~ q(z|x).

    Args:
        vae: the pair.
        x: data (N, *data_shape), of which the first `columns` are shown.
        *c: context, N rows each.
        columns: how many.
        seed: of the draws of z.
    """
    x = x[:columns]
    pictures = [x, vae.reconstruct(x, *(t[:columns] for t in c), seed=seed)]
    return _grid(pictures, ["input", "reconstruction"], "Reconstructions")


def samples(
    vae: Pair, *c: Tensor, n: int = N, columns: int | None = None, seed: int = 0
) -> "Figure":
    """Return draws from the generative model: E[x|z] for z ~ p(z).

    Args:
        vae: the pair.
        *c: context, n rows each.
        n: how many.
        columns: how many a row; by default 12, or of a pair that takes labels one a class, as long
            as there are no more than 20.
        seed: of the draws.
    """
    x = vae.sample(n, *c, seed=seed, mean=True)
    if columns is None:
        number = int(c[-1].max()) + 1 if c and vae.takes_labels else COLUMNS
        columns = number if number <= MOST_COLUMNS else COLUMNS
    rows = list(x.split(columns))
    return _grid(rows, [""] * len(rows), "Samples: E[x|z] with z drawn from the prior")


def history(history: History) -> "Figure":
    """Return the ELBO and its terms over the epochs, in nats a datum.

    Args:
        history: what `fit` returned.
    """
    figure = new_figure(8.5, 3.4)
    left, right = figure.subplots(1, 2)
    epochs = history["epoch"]
    left.plot(epochs, _negated(history["loss"]), color=COLOURS[0], label="training objective")
    if any(v is not None for v in history["validation_loss"]):
        left.plot(
            epochs, _negated(history["validation_loss"]), color=COLOURS[0], linestyle="--",
            label="validation objective",
        )  # fmt: skip
        left.axvline(history.best_epoch, color="#999999", linewidth=0.8, linestyle=":")
    _zoom(left, history)
    left.set_title("ELBO as trained", fontsize=10)
    right.plot(
        epochs, _negated(history["reconstruction"]), color=COLOURS[1], label="-E_q log p(x|z)"
    )
    right.plot(epochs, _numbers(history["kl"]), color=COLOURS[2], label="KL(q(z|x) || p(z))")
    right.set_title("its two terms", fontsize=10)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.set_ylabel("nats per datum")
        axes.legend(frameon=False, fontsize=8)
        plain(axes)
    return figure


def _zoom(axes: "Axes", history: History) -> None:
    """Cut off the first steep epochs, which would hide the rest."""
    values = sorted(
        v for key in ("loss", "validation_loss") for v in _negated(history[key]) if v == v
    )
    if len(values) > 20:
        low, high = values[len(values) // 20], values[-1]
        axes.set_ylim(low - 0.3 * (high - low), high + 0.1 * (high - low))


def _numbers(column: list[float | None]) -> list[float]:
    return [float("nan") if v is None else v for v in column]


def _negated(column: list[float | None]) -> list[float]:
    return [-v for v in _numbers(column)]


def latent(
    vae: Pair, x: Tensor, labels: Tensor | None = None, c: Sequence[Tensor] = ()
) -> "Figure":
    """Return the means of q(z|x) in the latent plane, coloured by label.

    With more than two latent dimensions, their first two principal components; with one, its
    histogram.

    Args:
        vae: the pair, all of whose latent sites are shown, in a row.
        x: data (N, *data_shape).
        labels: whole numbers (N,).
        c: context, N rows each.
    """
    pair = vae.local
    z = latent_means(pair.model, pair.guide, x, *c).detach().cpu()
    first, second = "z[0]", "z[1]"
    if z.shape[1] > 2 and len(z) > 2:
        centred = z - z.mean(0)
        _, s, v = torch.linalg.svd(centred.double(), full_matrices=False)
        share = (s.square() / s.square().sum())[:2]
        z = centred @ v[:2].T.to(centred.dtype)
        first, second = (
            f"principal component {i + 1} ({share[i]:.0%} of variance)" for i in (0, 1)
        )
    figure = new_figure(5.6, 4.6)
    axes = figure.subplots()
    groups: list[tuple[Any, Tensor]] = [(None, torch.ones(len(z), dtype=torch.bool))]
    if labels is not None and len(labels.unique()) <= 20:
        groups = [(int(k), labels == k) for k in labels.unique()]
    from matplotlib import colormaps

    palette = colormaps["tab10" if len(groups) <= 10 else "tab20"]
    for i, (name, rows) in enumerate(groups):
        colour = palette(i) if name is not None else COLOURS[0]
        label = None if name is None else str(name)
        if z.shape[1] == 1:
            axes.hist(z[rows, 0].numpy(), bins=40, color=colour, alpha=0.6, label=label)
        else:
            size = 14 if len(z) < 2000 else 4
            horizontal, vertical = z[rows, :2].T.numpy()
            axes.scatter(
                horizontal, vertical, s=size, color=colour, alpha=0.75, linewidths=0, label=label
            )
    axes.set_xlabel(first)
    axes.set_ylabel(second if z.shape[1] > 1 else "data")
    axes.set_title(f"Means of q(z|x), {len(z):,} data", fontsize=10)
    if groups[0][0] is not None:
        axes.legend(
            frameon=False, fontsize=8, title="label", bbox_to_anchor=(1.01, 0.5), loc="center left",
            markerscale=1.5,
        )  # fmt: skip
    plain(axes)
    return figure


def manifold(vae: VAE, *c: Tensor, n: int = 16) -> "Figure":
    """Return E[x|z] over a grid of the latent plane, at quantiles of the standard normal.

    Kingma & Welling (2014), figure 4.

    Args:
        vae: the pair, of two latent dimensions and a data shape (H, W) or (1, H, W).
        *c: context of one datum, the same all over the plane, without the dimension of data.
        n: grid points a side.

    Raises:
        ValueError: another number of latent dimensions, or data that are no grey images.
    """
    shape = tuple(s for i, s in enumerate(vae.likelihood.data_shape) if i > 0 or s > 1)
    if vae.likelihood.latent_dim != 2 or len(shape) != 2:
        raise ValueError(
            "expected a VAE of two latent dimensions and grey images; got latent_dim "
            f"{vae.likelihood.latent_dim}, data_shape {vae.likelihood.data_shape}"
        )
    quantiles = torch.special.ndtri((torch.arange(n) + 0.5) / n)
    z = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(1)  # rows downwards: z[1] upwards
    context = [t.expand(len(z), *t.shape) for t in c]
    with torch.no_grad(), evaluating(vae):
        x = mean_or_draw(vae.decode(z, *context)).cpu().reshape(n * n, *shape)
    x = torch.nn.functional.pad(x, (1, 1, 1, 1), value=float(x.min()))  # a gap between images
    height, width = x.shape[1:]
    mosaic = x.reshape(n, n, height, width).transpose(1, 2).reshape(n * height, n * width)
    figure = new_figure(5.6, 5.6)
    axes = figure.subplots()
    axes.imshow(mosaic.numpy(), cmap="gray_r", interpolation="nearest")
    for axis, length, order in ((axes.xaxis, width, 1), (axes.yaxis, height, -1)):
        ticks = list(range(0, n, max(1, n // 6)))
        axis.set_ticks([(t + 0.5) * length - 0.5 for t in ticks])
        axis.set_ticklabels([f"{quantiles[t if order > 0 else n - 1 - t]:.1f}" for t in ticks])
    axes.set_xlabel("z[0]")
    axes.set_ylabel("z[1]")
    given = f", c = {', '.join(str(t.tolist()) for t in c)}" if c else ""
    axes.set_title(f"E[x|z] over the latent plane, at quantiles of N(0, 1){given}", fontsize=10)
    return figure


def save_all(path: Path, vae: Pair, data: Data, history_of_run: History) -> list[Path]:
    """Write the pictures of a run to its directory, and return their paths.

    Args:
        path: the run directory.
        vae: the trained pair.
        data: what it was trained on; the pictures show its test data.
        history_of_run: of the training.
    """
    x, c = data.test, context_of(vae, data, "test")
    some, *given = (t[:MOST_POINTS] for t in (x, *c))
    labels = data.labels["test"][:MOST_POINTS] if data.labels else None
    figures = {
        "reconstructions": reconstructions(vae, x, *c),
        "samples": samples(vae, *context_to_sample(vae, classes(data), N), n=N),
        "elbo": history(history_of_run),
        "latent": latent(vae, some, labels, given),
    }
    pair = vae.local
    if isinstance(pair, VAE) and pair.likelihood.latent_dim == 2 and len(data.data_shape) == 2:
        if getattr(pair.prior, "space", "real") == "real":
            figures["manifold"] = manifold(pair, *(t[0] for t in c))
    return [save(figure, path / f"{name}.png") for name, figure in figures.items()]
