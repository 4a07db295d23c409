"""Sample quality by nearest neighbours: fidelity, variety, and copies of the training data."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.diagnostics.arrays import as_rows, check_whole, check_widths
from pyrovae.diagnostics.outliers import auroc

DISTANCES = 2**22  # held at once, in float64


@dataclass(frozen=True)
class PrecisionRecall:
    """How well generated data lie among the real ones, and the real ones among them.

    Standard errors are of the data that are scored; the balls that score them are taken as given.

    Attributes:
        precision: share of the generated data within a ball of the real ones.
        precision_se: its binomial standard error, given the real data.
        recall: share of the real data within a ball of the generated ones.
        recall_se: its binomial standard error, given the generated data.
        density: mean over the generated data of the real balls they lie in, over k; may exceed 1.
        density_se: its standard error over the generated data, given the real ones.
        coverage: share of the real data whose ball holds a generated one. It has no honest standard
            error: all balls depend on all data.
        equal_coverage: its expectation where both samples are of one density.
        k: which neighbour is a ball's radius.
    """

    precision: float
    precision_se: float
    recall: float
    recall_se: float
    density: float
    density_se: float
    coverage: float
    equal_coverage: float
    k: int


def precision_recall(real: Any, generated: Any, k: int = 3) -> PrecisionRecall:
    """Return precision and recall, density and coverage, by k-nearest-neighbour balls.

    The ball of a datum reaches to its k-th nearest neighbour among the data of its own kind.
    Precision and recall: Kynkaanniemi et al. (2019), eqs. 1 and 2. Density and coverage: Naeem et
    al. (2020); one outlier with a large ball raises precision, and hardly density.
    For two samples of one density, of N real and M generated data, the coverage is on average
    1 - (N - 1) ... (N - k) / ((N + M - 1) ... (N + M - k)) (their lemma 2). Precision and
    recall depend on the numbers of data: compare them at one N and M.

    Distances are Euclidean, of the arrays as they are: of images, pass features of them, if pixels
    are no measure of likeness.

    Args:
        real: data (N, ...), N > k.
        generated: data (M, ...) of the same shape, M > k.
        k: which neighbour.

    Returns:
        PrecisionRecall.

    Raises:
        ValueError: not two finite arrays of one datum's shape, or not more than k data in each.

    Example:
        >>> x = torch.randn(100, 2)
        >>> precision_recall(x, x + 9.0).precision
        0.0
    """
    check_whole("k", k, 1)
    x, y = as_rows("real", real, k + 1), as_rows("generated", generated, k + 1)
    check_widths(real=x, generated=y)
    n, m = len(x), len(y)
    real_radius, generated_radius = _radii(x, k), _radii(y, k)
    balls = x.new_zeros(m)
    covered, recalled = torch.zeros(2, n, dtype=torch.bool, device=x.device)
    for rows, distance in _distances(x, y):
        inside = distance <= real_radius[rows, None]
        balls += inside.sum(0)
        covered[rows] = inside.any(1)
        recalled[rows] = (distance <= generated_radius).any(1)
    precision, recall = float((balls > 0).double().mean()), float(recalled.double().mean())
    return PrecisionRecall(
        precision=precision,
        precision_se=math.sqrt(precision * (1 - precision) / m),
        recall=recall,
        recall_se=math.sqrt(recall * (1 - recall) / n),
        density=float(balls.mean()) / k,
        density_se=float(balls.std()) / k / math.sqrt(m),
        coverage=float(covered.double().mean()),
        equal_coverage=1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1)),
        k=k,
    )


@dataclass(frozen=True)
class Neighbours:
    """The nearest of other data, the nearest first.

    Attributes:
        distances: Euclidean, (M, k).
        indices: of the rows of the others, (M, k).
    """

    distances: Tensor
    indices: Tensor


def nearest_neighbours(generated: Any, training: Any, k: int = 1) -> Neighbours:
    """Return the k training data nearest to each generated one: what it may be a copy of.

    Args:
        generated: data (M, ...).
        training: data (N, ...) of the same shape, N >= k.
        k: how many.

    Returns:
        Neighbours; the distance of a copy is exactly 0.

    Raises:
        ValueError: not two finite arrays of one datum's shape, or fewer than k training data.

    Example:
        >>> nearest_neighbours([[1.0], [7.0]], [[0.0], [5.0], [7.0]]).indices.tolist()
        [[0], [2]]
    """
    check_whole("k", k, 1)
    y, x = as_rows("generated", generated), as_rows("training", training, k)
    check_widths(generated=y, training=x)
    indices = torch.cat([d.topk(k, largest=False).indices for _, d in _distances(y, x)])
    # cdist goes by products of matrices, whose rounding leaves a copy a little away
    distances = torch.stack([(y - x[indices[:, i]]).norm(dim=1) for i in range(k)], 1)
    distances, order = distances.sort(dim=1, stable=True)
    return Neighbours(distances, indices.gather(1, order))


@dataclass(frozen=True)
class Memorisation:
    """Do generated data lie nearer to the training data than fresh data of the same law do?

    Attributes:
        closer: P(distance of a generated datum < that of a held-out one), ties counting a half:
            1/2 where the two are of one law, 1 where all are copies.
        closer_se: its standard error, given the training data (DeLong et al. 1988).
        p_value: of the one-sided rank test that generated data are no nearer.
        ratio: of the median distances, generated over held-out: below 1 for copies; NaN where most
            held-out data are copies themselves.
        generated: distance of each generated datum to its nearest training datum, (M,).
        held_out: distance of each held-out datum to its nearest training datum, (H,).
    """

    closer: float
    closer_se: float
    p_value: float
    ratio: float
    generated: Tensor
    held_out: Tensor


def memorisation(generated: Any, training: Any, held_out: Any) -> Memorisation:
    """Test for copies of the training data, by the distance to the nearest training datum.

    Meehan et al. (2020): the Mann-Whitney U test of the distances of generated data
    against those of held-out data, here over all of space at once, not cell by cell; so a model
    that copies in some places and strays in others may pass. Given the training data, distances of
    one law make the p-value uniform: the held-out data must have had no part in training, nor in
    choosing the model. A p-value that is not small is no proof of the contrary; `closer` well below
    1/2 means samples that lie off the data, underfitted or blurred.

    Args:
        generated: data (M, ...), M >= 2.
        training: data (N, ...) that the model was trained on.
        held_out: data (H, ...) of the same law as the training data, H >= 2.

    Returns:
        Memorisation.

    Raises:
        ValueError: not three finite arrays of one datum's shape, or too few data.

    Example:
        >>> x = torch.randn(200, 3)
        >>> memorisation(x[:50] + 0.01, training=x[:100], held_out=x[100:]).closer > 0.9
        True
    """
    from scipy.stats import mannwhitneyu

    as_rows("generated", generated, 2), as_rows("held_out", held_out, 2)
    ours = nearest_neighbours(generated, training).distances[:, 0]
    fresh = nearest_neighbours(held_out, training).distances[:, 0]
    found = auroc(ours, fresh)
    p_value = mannwhitneyu(ours.cpu().numpy(), fresh.cpu().numpy(), alternative="less").pvalue
    median = float(fresh.median())
    ratio = float(ours.median()) / median if median > 0 else math.nan
    return Memorisation(found.value, found.standard_error, float(p_value), ratio, ours, fresh)


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows of x, their distances to all y), a bounded number at a time."""
    rows = max(1, DISTANCES // len(y))
    for start in range(0, len(x), rows):
        some = slice(start, min(start + rows, len(x)))
        yield some, torch.cdist(x[some], y)


def _radii(x: Tensor, k: int) -> Tensor:
    """Return the distance of each row to its k-th nearest among the others, (N,)."""
    found = []
    for rows, distance in _distances(x, x):
        itself = torch.arange(rows.start, rows.stop, device=x.device)
        distance[itself - rows.start, itself] = math.inf
        found.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(found)
