"""Out of distribution: which data a model finds unlikely, or too likely to be typical."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.diagnostics.arrays import as_column


@dataclass(frozen=True)
class OutlierScores:
    """How unlike the reference data are, one entry a datum.

    Attributes:
        score: -log p(x), in nats, (N,).
        p_value: rank of the score among the reference's, (N,).
        typicality: |-log p(x) - H|, H the reference's mean of -log p, in nats, (N,).
        typicality_p_value: rank of the distance from the mean among the reference's, (N,).
        entropy: H, an estimate of the cross-entropy of the data to the model, in nats.
        n: how many reference data there are: no p-value is below 1 / (n + 1).
    """

    score: Tensor
    p_value: Tensor
    typicality: Tensor
    typicality_p_value: Tensor
    entropy: float
    n: int

    @property
    def ranking(self) -> Tensor:
        """Indices of the data, the least likely first, (N,)."""
        return self.score.argsort(descending=True, stable=True)


def outlier_scores(log_evidence: Any, reference: Any) -> OutlierScores:
    """Return -log p(x), and its distance from typical, with p-values by rank among held-out data.

    p(x) = (1 + #{r : s(r) >= s(x)}) / (n + 1), r the n reference data: if x is another draw of
    their law, P(p <= a) <= a (Vovk et al. (2005), conformal prediction). The p-values of many x
    share one reference, so they are dependent. A high-dimensional model may give outliers a
    *higher* density than its own data: then -log p(x) sees nothing, and typicality, the distance of
    -log p(x) from its mean H, does (Nalisnick et al. 2019, batches of one datum). Its
    p-value takes H from the reference and x together, as a conformal score must, or x alone would
    be left out of the mean that the others are measured from.

    Args:
        log_evidence: log p(x) of the data in question, (N,), in nats; of `evidence.iwae`, say.
        reference: log p(x) of held-out data under the same model, (n,), by the same estimator with
            as many draws. Training data will not do: the model knows them.

    Returns:
        OutlierScores.

    Raises:
        ValueError: not one finite number a datum, or fewer than two reference data.

    Example:
        >>> outlier_scores([-9.0, -2.0], [-1.0, -2.0, -3.0]).p_value
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    score = -as_column("log_evidence", log_evidence)
    known, _ = (-as_column("reference", reference, least=2)).sort()
    n, mean = len(known), known.mean()
    at_least = n - torch.searchsorted(known, score)
    # with x in the mean, mean' = (n mean + s) / (n + 1); r counts if |r - mean'| >= |s - mean'|
    mirrored = 2 * (n * mean + score) / (n + 1) - score
    below = torch.searchsorted(known, score.minimum(mirrored), right=True)
    above = n - torch.searchsorted(known, score.maximum(mirrored))
    as_far = (below + above).clamp(max=n)  # those at mean' itself are counted twice
    return OutlierScores(
        score=score,
        p_value=(1 + at_least).double() / (n + 1),
        typicality=(score - mean).abs(),
        typicality_p_value=(1 + as_far).double() / (n + 1),
        entropy=float(mean),
        n=n,
    )


@dataclass(frozen=True)
class AUROC:
    """The area under the receiver's operating curve.

    Attributes:
        value: P(score of an outlier > that of an inlier), ties counting a half.
        standard_error: of both samples; 0 where they are separated, which is no certainty.
    """

    value: float
    standard_error: float


def auroc(inliers: Any, outliers: Any) -> AUROC:
    """Return P(outlier's score > inlier's score) + P(equal) / 2, with DeLong's standard error.

    DeLong et al. (1988): the variances of either sample's placements among the other,
    over their numbers, so that no law of the scores is assumed.

    Args:
        inliers: scores of data of the model's kind, (n,), n >= 2.
        outliers: scores of the others, (m,), m >= 2; the larger, the more an outlier.

    Returns:
        AUROC.

    Raises:
        ValueError: not one finite number a datum, or fewer than two of either.

    Example:
        >>> auroc([0.0, 1.0], [1.0, 2.0]).value
        0.875
    """
    low, high = as_column("inliers", inliers, 2), as_column("outliers", outliers, 2)
    of_outliers = _share_below(high, low)
    of_inliers = _share_below(low, high)  # 1 - this, of the same variance
    variance = of_outliers.var() / len(high) + of_inliers.var() / len(low)
    return AUROC(float(of_outliers.mean()), math.sqrt(float(variance)))


def _share_below(values: Tensor, others: Tensor) -> Tensor:
    """Return for each value the share of the others that lie below, those that equal it halved."""
    others, _ = others.sort()
    less = torch.searchsorted(others, values)
    not_more = torch.searchsorted(others, values, right=True)
    return (less + not_more).double() / (2 * len(others))
