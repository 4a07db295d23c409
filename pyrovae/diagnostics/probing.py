"""What the latents tell of labels: probes of them, and the means that are probed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.diagnostics.arrays import as_rows, check_whole
from pyrovae.importance import batched, find_modules, guide_distributions, inspect, simulate

MAX_ITERATIONS = 2000  # of the logistic regression


def latent_means(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_draws: int = 100,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
) -> Tensor:
    """Return E_q[z|x] of each datum, all latent sites in a row.

    Of a guide with one site whose distribution knows its mean, that mean; otherwise (a flow, or
    several sites, any of which may depend on draws of another) the mean of `num_draws` draws.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        num_draws: draws of z a datum, where draws are needed.
        seed: of the draws.
        modules: those that the functions hold in their closures.

    Returns:
        Tensor (N, d), in the order of the model's sites.

    Raises:
        ValueError: no valid pair, or num_draws that is no positive whole number.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> latent_means(vae.model, vae.guide, torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    check_whole("num_draws", num_draws, 1)
    x, c = batched(x, c, find_modules(model, guide, modules=modules))
    structure = inspect(model, guide, x[:2], *(t[:2] for t in c), modules=modules)
    structure.check()
    names = [site.name for site in structure.latents if site.in_model]
    if len(structure.latents) == 1:
        mean = _mean(guide_distributions(guide, x, *c, modules=modules)[names[0]])
        if mean is not None:
            return mean.reshape(len(x), -1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(num_draws):
        drawn = simulate(guide, x, *c, seed=seed * 1_000_003 + i, modules=modules)
        total = total + torch.cat([drawn[n].reshape(len(x), -1).double() for n in names], -1)
    return (total / num_draws).to(x.dtype)


def _mean(q: Any) -> Tensor | None:
    """Return q's mean where it is known and finite: torch's Categorical says NaN."""
    try:
        mean = q.mean
    except NotImplementedError:
        return None
    return mean if bool(mean.isfinite().all()) else None


@dataclass(frozen=True)
class Probes:
    """Accuracy of labels predicted from latents, on data left out of each fit.

    Attributes:
        linear: accuracy of logistic regression.
        linear_se: its standard error.
        nearest: accuracy of the vote of the k nearest neighbours.
        nearest_se: its standard error.
        majority: share of the most frequent label, which needs no latents.
        predictions: the two's labels for each datum, (2, N), in the labels' dtype.
        n: how many data.
    """

    linear: float
    linear_se: float
    nearest: float
    nearest_se: float
    majority: float
    predictions: Tensor
    n: int


def probes(latents: Any, labels: Any, *, folds: int = 5, k: int = 5, seed: int = 0) -> Probes:
    """Return how well a linear and a nearest-neighbour probe tell labels from latents.

    Alain & Bengio (2017). Logistic regression, with scikit-learn's default penalty, is of the
    latents standardised in each training fold; neighbours are of the latents as they are, since to
    standardise would make a collapsed number's noise as large as what is coded. By stratified
    cross-validation: every datum is predicted once. Standard errors are sqrt(a (1 - a) / N), as if
    the N predictions were independent: those of a fold share one fit and the folds share training
    data, which they leave out (Bengio & Grandvalet (2004): no unbiased estimate is to be had).

    Args:
        latents: (N, d), of `latent_means`, say.
        labels: (N,), whole numbers, at least two different ones, each of at least `folds` data.
        folds: of the cross-validation.
        k: neighbours.
        seed: of the division into folds.

    Returns:
        Probes.

    Raises:
        ValueError: no finite latents, labels that are no whole numbers, one a datum, of two values
            or more, too few data of a label for the folds, or folds or k out of range.

    Example:
        >>> y = torch.arange(60) % 2
        >>> z = torch.randn(60, 2) + 9.0 * y.unsqueeze(1)
        >>> probes(z, y).linear
        1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    z, y = as_rows("latents", latents).cpu().numpy(), torch.as_tensor(labels).cpu()
    if y.shape != (len(z),) or y.is_floating_point() and not bool((y == y.round()).all()):
        raise ValueError(
            f"expected labels ({len(z)},), a whole number for each row of the latents; got "
            f"{tuple(y.shape)} of {y.dtype}"
        )
    check_whole("folds", folds, 2)
    values, counts = y.unique(return_counts=True)
    if len(values) < 2 or int(counts.min()) < folds:
        raise ValueError(
            f"expected at least two labels, of at least folds={folds} data each; got counts "
            f"{dict(zip(values.tolist(), counts.tolist(), strict=True))}: take fewer folds, or "
            "leave rare labels out"
        )
    check_whole("k", k, 1, most=len(z) - -(-len(z) // folds), why=", the data of a training fold")
    division = StratifiedKFold(folds, shuffle=True, random_state=seed)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
    predicted = [
        torch.as_tensor(cross_val_predict(probe, z, y.numpy(), cv=division))
        for probe in (linear, KNeighborsClassifier(k))
    ]
    scores = [float((p == y).double().mean()) for p in predicted]
    errors = [math.sqrt(a * (1 - a) / len(z)) for a in scores]
    return Probes(
        scores[0], errors[0], scores[1], errors[1],
        majority=float(counts.max()) / len(z), predictions=torch.stack(predicted), n=len(z),
    )  # fmt: skip
