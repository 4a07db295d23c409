"""What a report shows of a run, computed: a function a section, plain data as results."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyrovae import diagnostics, evidence
from pyrovae.data import Data
from pyrovae.distributions.sphere import SPHERE
from pyrovae.nets import evaluating
from pyrovae.pairs.base import Pair, mean_or_draw
from pyrovae.plots.maps import plane
from pyrovae.report.repeating import command
from pyrovae.training import History, evaluation, rundir
from pyrovae.training.batches import Batch
from pyrovae.training.sources import classes, context_of, context_to_sample

Section = TypeVar("Section")

COLUMNS = 8  # pictures a row, as many as are seen on a phone
LATENTS = 1000  # data whose latents are looked at
DRAWS = 200  # samples compared with the training data
NEIGHBOURS = 3
FIGURES = ("elbo", "reconstruction", "kl", "log_evidence")
MANNER = ("split", "n", "num_particles", "measure", "units")  # how figures came about


@dataclass(frozen=True)
class Opened:
    """A run as its directory holds it.

    Attributes:
        run: the directory.
        config: what it was made of.
        figures: what `evaluate` left, see `evaluation.figures`.
        history: of the training.
        vae: the trained pair.
        data: what it was trained on.
        command: what repeats it.
    """

    run: Path
    config: dict[str, Any]
    figures: dict[str, Any]
    history: History
    vae: Pair
    data: Data
    command: str


@dataclass(frozen=True)
class Missing:
    """A section that there is not.

    Attributes:
        reason: why.
    """

    reason: str


@dataclass(frozen=True)
class Worst:
    """The data with the largest k-hat, the largest first.

    Attributes:
        x: the data, (COLUMNS, *data_shape), or all if they are fewer.
        reconstructed: E[x'|z] of each, of one z ~ q(z|x).
        khat: k-hat of each.
    """

    x: Tensor
    reconstructed: Tensor
    khat: Tensor


@dataclass(frozen=True)
class Bounds:
    """The evidence of each datum, in nats, in original units.

    Attributes:
        elbo: the ELBO, (N,).
        log_evidence: the estimate of log p(x), (N,).
        low: lower end of its interval, (N,).
        high: upper end, (N,), inf where only a lower bound is honest.
        khat: Pareto k-hat of its weights, (N,).
        threshold: below which they are to be trusted.
        num_particles: importance samples a datum.
        worst: those with the largest k-hat.
    """

    elbo: Tensor
    log_evidence: Tensor
    low: Tensor
    high: Tensor
    khat: Tensor
    threshold: float
    num_particles: int
    worst: Worst

    @property
    def above(self) -> Tensor:
        """Is a datum's k-hat not below the threshold? (N,), bool."""
        return ~(self.khat < self.threshold)


@dataclass(frozen=True)
class Gaps:
    """The inference gap and its parts: means per datum in nats, each with its standard error.

    Attributes:
        total: log p(x) - ELBO.
        approximation: log p(x) less the ELBO of the best guide of the family.
        amortization: that ELBO less the ELBO of the guide.
        n: how many data.
    """

    total: tuple[float, float]
    approximation: tuple[float, float]
    amortization: tuple[float, float]
    n: int


@dataclass(frozen=True)
class Units:
    """What each latent number tells of the data.

    Attributes:
        active: of each number, whether its mean moves with the data.
        collapsed: KL by number.
        surgery: the KL taken apart.
        n: how many data.
    """

    active: diagnostics.ActiveUnits
    collapsed: diagnostics.Collapse | Missing
    surgery: diagnostics.Surgery | Missing
    n: int


@dataclass(frozen=True)
class Traversal:
    """One latent number moved at a time.

    Attributes:
        dims: which numbers, the most active first.
        x: what is decoded, (len(dims), COLUMNS, *data_shape).
    """

    dims: list[int]
    x: Tensor


@dataclass(frozen=True)
class Map:
    """The latent plane.

    Attributes:
        points: (N, 2).
        axis_names: of its two axes.
        labels: whole numbers (N,), if the data have any.
        x: the data, (N, *data_shape).
    """

    points: Tensor
    axis_names: tuple[str, str]
    labels: Tensor | None
    x: Tensor


@dataclass(frozen=True)
class Copies:
    """Samples and the training data nearest to them.

    Attributes:
        samples: E[x|z] of draws z, (COLUMNS, *data_shape).
        nearest: of each, the nearest training data, (COLUMNS, k, *data_shape).
        distances: to them, (COLUMNS, k).
        test: draws of x tested for being copies.
    """

    samples: Tensor
    nearest: Tensor
    distances: Tensor
    test: diagnostics.Memorisation


@dataclass(frozen=True)
class Gathered:
    """All that a report shows of one run.

    Attributes:
        opened: the run.
        rows: the first test data, that evidence and k-hat are of.
        bounds: their evidence.
        gaps: the inference gap.
        units: the latent numbers.
        reconstructed: E[x'|z] of the first of `rows`.
        samples: E[x|z] of draws z of the prior.
        traversal: of latent numbers.
        interpolated: a row a pair of data, from the one to the other, both at the ends.
        map: the latent plane.
        copies: the training data nearest to samples.
    """

    opened: Opened
    rows: Tensor
    bounds: Bounds | Missing
    gaps: Gaps | Missing
    units: Units | Missing
    reconstructed: Tensor
    samples: Tensor
    traversal: Traversal | Missing
    interpolated: Tensor | Missing
    map: Map | Missing
    copies: Copies | Missing


def open_run(run: Path, data_dir: Path | None = None) -> Opened:
    """Read a run.

    Raises:
        FileNotFoundError: no such run, one without weights or figures, or its data are not there.
        ValueError: a damaged file, or data that have changed.
    """
    config = rundir.read_config(run)
    for name in ("metrics.json", "evaluation.safetensors"):
        if not (run / name).is_file():
            raise FileNotFoundError(
                f"expected figures in {run / name}; there are none: run `pyrovae evaluate {run}`"
            )
    try:
        figures = json.loads((run / "metrics.json").read_text())
        for key in FIGURES:
            float(figures[key])
        for key in MANNER:
            figures[key]
        each = rundir.read_tensors(run / "evaluation.safetensors")["log_evidence"]
        if len(each) != figures["n"]:
            raise ValueError(f"{len(each)} data, not {figures['n']}")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"the figures of {run} are damaged: {error!r}; run `pyrovae evaluate {run}`"
        ) from None
    vae = rundir.load(run)
    return Opened(
        run, config, figures, read_history(run), vae, evaluation.load_data(run, data_dir),
        command(config, vae),
    )  # fmt: skip


def read_history(run: Path) -> History:
    """Read `history.csv`, and find the epoch whose weights were kept, as `fit` chooses it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    path = run / "history.csv"
    if not path.is_file():
        raise FileNotFoundError(f"expected the training's history in {path}; there is none")
    try:
        with path.open(newline="") as file:
            epochs = [
                {key: float(v) if v else None for key, v in row.items()}
                for row in csv.DictReader(file)
            ]
        if not epochs:
            raise ValueError("it has no epochs")
        history = History(epochs, len(epochs))
        measured = [
            (loss, number)
            for number, (loss, beta) in enumerate(
                zip(history["validation_loss"], history["beta"], strict=True), 1
            )
            if loss is not None and beta == epochs[-1]["beta"]
        ]
        for name in ("epoch", "loss", "reconstruction", "kl"):
            history[name]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; train again") from None
    if measured:
        history.best_epoch = min(measured)[1]
    return history


def gather(
    opened: Opened,
    *,
    limit: int,
    gap_data: int,
    num_particles: int,
    seed: int,
    say: Callable[[str], None],
) -> Gathered:
    """Compute all that a report shows of a run.

    A section that the run's pair or data do not allow is `Missing`, with the reason.

    Args:
        opened: the run.
        limit: how many test data evidence and k-hat are of.
        gap_data: how many the inference gap is of.
        num_particles: importance samples a datum.
        seed: of all draws.
        say: is told what is being done.
    """

    def attempt(name: str, section: Callable[..., Section], *args: Any) -> Section | Missing:
        say(f"{opened.run}: {name}")
        try:
            return section(*args)
        except (ValueError, NotImplementedError, FloatingPointError) as error:
            return Missing(str(error) or type(error).__name__)

    vae, data = opened.vae, opened.data
    pair = vae.local
    test = data.split("test"), *context_of(vae, data, "test")
    rows, many = first(test, limit), first(test, LATENTS)
    bounds = attempt("evidence and k-hat", bounds_of, opened, rows, num_particles, seed)
    gaps = attempt("inference gaps", gaps_of, pair, first(rows, gap_data), seed)
    units = attempt("latents", units_of, pair, many, seed)
    means = attempt("latent means", diagnostics.latent_means, pair.model, pair.guide, *many)

    def of_means(name: str, section: Callable[..., Section], *args: Any) -> Section | Missing:
        return means if isinstance(means, Missing) else attempt(name, section, *args)

    return Gathered(
        opened, rows[0], bounds, gaps, units,
        reconstructed=vae.reconstruct(*first(rows, 2 * COLUMNS), seed=seed),
        samples=drawn(vae, data, 4 * COLUMNS, seed=seed, mean=True),
        traversal=of_means("traversals", traversal_of, pair, many, means, units, seed),
        interpolated=of_means("interpolations", interpolated_of, pair, many, means),
        map=of_means("latent map", map_of, data, many[0], means),
        copies=attempt("nearest training data", copies_of, vae, data, seed),
    )  # fmt: skip


def first(rows: Batch, n: int) -> Batch:
    """Return the first n rows of data and of their context."""
    return tuple(t[:n] for t in rows)


def drawn(vae: Pair, data: Data, n: int, **options: Any) -> Tensor:
    """Return n samples of a pair, for labels 0, 1, ... in turn where it takes labels."""
    return vae.sample(n, *context_to_sample(vae, classes(data), n), **options)


def bounds_of(opened: Opened, rows: Batch, num_particles: int, seed: int) -> Bounds:
    """Return the evidence of data (x, *c), with intervals and k-hat."""
    pair = opened.vae.local
    found = evidence.summarise(
        pair.model, pair.guide, *rows, num_particles=num_particles, seed=seed, with_khat=True
    )
    gain = opened.data.log_jacobian(rows[0])
    low, high = found.evidence.interval()
    khat = found.evidence.khat
    assert khat is not None  # it was asked for
    worst = khat.argsort(descending=True)[:COLUMNS]
    shown = tuple(t[worst] for t in rows)
    return Bounds(
        elbo=found.elbo + gain,
        log_evidence=found.evidence.log_evidence + gain,
        low=low + gain,
        high=high + gain,
        khat=khat,
        threshold=evidence.pareto.threshold(num_particles),
        num_particles=num_particles,
        worst=Worst(shown[0], opened.vae.reconstruct(*shown, seed=seed), khat[worst]),
    )


def gaps_of(pair: Pair, rows: Batch, seed: int) -> Gaps:
    """Return the inference gap of data (x, *c), a mean with its parts."""
    found = evidence.gaps(pair.model, pair.guide, *rows, seed=seed)
    return Gaps(
        total=mean_and_error(found.approximation + found.amortization),
        approximation=mean_and_error(found.approximation),
        amortization=mean_and_error(found.amortization),
        n=len(rows[0]),
    )


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of (N,), and its standard error, NaN of one datum."""
    values = values.double()
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), error


def units_of(vae: Pair, rows: Batch, seed: int) -> Units:
    """Return what the latent numbers tell of data (x, *c)."""
    pair = vae.model, vae.guide
    collapsed: diagnostics.Collapse | Missing
    surgery: diagnostics.Surgery | Missing
    try:
        collapsed = diagnostics.collapse(*pair, *rows)
    except ValueError as error:
        collapsed = Missing(str(error))
    try:
        if len(rows) > 1 and getattr(vae.prior, "context_dim", 0) > 0:
            raise ValueError("the prior depends on the context, so q(z) has no one p(z) to be near")
        surgery = diagnostics.elbo_surgery(*pair, *rows, seed=seed)
    except ValueError as error:
        surgery = Missing(str(error))
    active = diagnostics.active_units(*pair, *rows, seed=seed)
    return Units(active, collapsed, surgery, len(rows[0]))


def decoder_of(pair: Pair) -> Callable[..., Any]:
    """Return what decodes all latent numbers of a pair, side by side as `latent_means` has them."""
    decode: Callable[..., Any] | None = getattr(pair, "decode", None)
    if decode is None:
        raise ValueError(f"{type(pair).__name__} has no one function that decodes all its latents")
    return decode


def traversal_of(
    vae: Pair, rows: Batch, means: Tensor, units: Units | Missing, seed: int
) -> Traversal:
    """Return the most active latent numbers moved one at a time, where the data have them."""
    decode, c = decoder_of(vae), [t[0] for t in rows[1:]]
    if getattr(vae.prior, "space", "real") != "real":
        raise ValueError(f"z lives on {vae.prior.space}, where no number can be moved alone")
    variance = means.var(0) if isinstance(units, Missing) else units.active.variance
    dims = variance.argsort(descending=True)[:COLUMNS].tolist()
    share = torch.linspace(0.05, 0.95, COLUMNS, dtype=means.dtype)
    values = means.quantile(share, 0).T[dims]
    x = diagnostics.traversals(decode, means[0], *c, dims=dims, values=values, seed=seed)
    return Traversal(dims, x)


def interpolated_of(vae: Pair, rows: Batch, means: Tensor) -> Tensor:
    """Return rows from one datum to another: the two, and between them what lies between in z.

    What lies between has the context of the datum that it comes from.

    Returns:
        Tensor (pairs, COLUMNS, *data_shape).
    """
    (x, *c), decode = rows, decoder_of(vae)
    space = getattr(vae.prior, "space", "real")
    if space not in ("real", SPHERE):
        raise ValueError(f"z lives on {space}, where nothing lies between two points")
    pairs = min(len(x) // 2, 5)
    if pairs == 0:
        raise ValueError("there are fewer than two data")
    start, end = means[: 2 * pairs : 2], means[1 : 2 * pairs : 2]
    share = torch.linspace(0, 1, COLUMNS - 2, dtype=means.dtype)[:, None]
    z = torch.stack([a + share * (b - a) for a, b in zip(start, end, strict=True)])
    if space == SPHERE:
        z = z / z.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    context = [t[: 2 * pairs : 2].repeat_interleave(len(share), 0) for t in c]
    with torch.no_grad(), evaluating(vae):
        between = mean_or_draw(decode(z.flatten(0, 1), *context)).to(x)
    between = between.unflatten(0, z.shape[:2])
    return torch.cat([x[: 2 * pairs : 2, None], between, x[1 : 2 * pairs : 2, None]], 1)


def map_of(data: Data, x: Tensor, means: Tensor) -> Map:
    """Return the latent plane of test data x."""
    points, names = plane(means)
    labels = data.labels["test"][: len(x)] if "test" in data.labels else None
    return Map(points, names, labels, x)


def copies_of(vae: Pair, data: Data, seed: int) -> Copies:
    """Return samples beside the training data nearest to them, and test for copies."""
    train = data.split("train")
    k = min(NEIGHBOURS, len(train))
    samples = drawn(vae, data, COLUMNS, seed=seed, mean=True)
    near = diagnostics.nearest_neighbours(samples, train, k)
    draws = drawn(vae, data, DRAWS, seed=seed + 1)
    test = diagnostics.memorisation(draws, train, data.split("test")[:LATENTS])
    return Copies(samples, train[near.indices], near.distances, test)
