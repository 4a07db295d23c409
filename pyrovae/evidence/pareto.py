"""The shape of the importance weights' tail: is an estimate made of them to be trusted?"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_DRAWS = 30  # below, the tail (a fifth of the draws) holds too few to fit
MAX_TAIL = 1000  # largest weights kept of any number of draws: 3 sqrt S reaches it at S = 111,000
COLUMNS = 64  # data fitted at once


def tail_size(draws: int) -> int:
    """Return how many of the largest of S weights make the tail: min(S/5, 3 sqrt S, 1000).

    Vehtari et al. (2024), section 6; the last of the three keeps memory constant in S.
    """
    return min(math.ceil(min(draws / 5, 3 * draws**0.5)), MAX_TAIL)


def threshold(draws: int) -> float:
    """Return the k-hat below which S weights are to be trusted: min(1 - 1 / log10 S, 0.7).

    Vehtari et al. (2024), section 3.2.4.
    """
    return min(1 - 1 / math.log10(draws), 0.7)


def khat(log_weights: Tensor) -> Tensor:
    """Return k-hat of each datum, the shape of the generalized Pareto law of its largest weights.

    p(w | w > u) = (1 + k (w - u) / s)^(-1/k - 1) / s,   u the (M + 1)-th largest of S weights,
    M = min(S/5, 3 sqrt S, 1000)

    Of such weights only the moments below 1/k are finite: for k > 1/2 they have no variance, and
    for k > 0.7 no practical number S of draws suffices. Vehtari et al. (2024).

    Two cases have no fit. Where the largest weights are all equal, to rounding, there is no tail:
    -inf, the best there is. So it is for the constant weights of a perfect guide. Where fewer than
    five distinct ones stand out, or all weights are zero: inf, not to be trusted.

    Args:
        log_weights: log w (S, N), S draws of each of N data, as `log_weights` gives; in nats, up to
            a constant for each datum; -inf for a draw of no weight.

    Returns:
        Tensor (N,).

    Raises:
        ValueError: no two dimensions, fewer than 30 draws, or a value that is NaN or +inf.

    Example:
        >>> khat(torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))).shape
        torch.Size([3])
    """
    if log_weights.dim() != 2 or len(log_weights) < MIN_DRAWS:
        raise ValueError(
            f"expected log_weights of shape (draws, data) with at least {MIN_DRAWS} draws; got "
            f"{tuple(log_weights.shape)}: raise num_particles"
        )
    if bool((bad := log_weights.isnan() | (log_weights == math.inf)).any()):
        raise ValueError(
            f"expected log_weights that are finite or -inf; got {int(bad.sum())} that are NaN or "
            f"+inf, the first at index {tuple(bad.nonzero()[0].tolist())}: are the densities of "
            "model and guide finite?"
        )
    largest = log_weights.detach().topk(tail_size(len(log_weights)) + 1, 0).values
    return fit_tail(largest).khat.to(log_weights)


@dataclass(frozen=True)
class Tail:
    """The M largest weights of each of N data, as the law fitted to them has them, in float64.

    Attributes:
        khat: the law's shape, (N,).
        smoothed: log weights replaced by the law's quantiles, (M, N): Pareto smoothing (Vehtari et
            al. 2024, section 3), the i-th of M weights above u becomes u + F^-1((i - 1/2) / M), at
            most the largest weight.
        log_square: log of the sum of squares that the law expects of M weights, for k < 1/2,
            M (u^2 + 2 u s / (1 - k) + 2 s^2 / ((1 - k) (1 - 2 k))), (N,): draws that fell short of
            the tail's end leave it out of their own sum.
    """

    khat: Tensor
    smoothed: Tensor
    log_square: Tensor


def fit_tail(largest: Tensor) -> Tail:
    """Fit the generalized Pareto law; a tail with no fit stays as it is.

    Args:
        largest: the M + 1 largest log weights, in descending order, (M + 1, N).
    """
    rounding = 1e-8 + 10 * torch.finfo(largest.dtype).eps * largest[0].abs()
    top = largest.double()
    spread = top[0] - top[-2]
    k = torch.full_like(spread, math.inf)
    k[spread <= rounding] = -math.inf
    tail = top[:-1].clone()
    square = (2 * tail).logsumexp(0)
    standing_out = (top[:-1] > top[-1]).sum(0)
    fits = (spread > rounding) & (standing_out > 4)  # neither holds where every weight is zero
    for m in standing_out[fits].unique().tolist():
        for some in (fits & (standing_out == m)).nonzero().flatten().split(COLUMNS):
            best, cut = top[0, some], (top[-1, some] - top[0, some]).exp()
            weights = (top[:m, some] - best).exp().flip(0)  # relative to the largest, ascending
            shape, scale = generalized_pareto(weights - cut)
            k[some] = shape
            at = ((torch.arange(m, dtype=top.dtype) + 0.5) / m).unsqueeze(-1)
            quantiles = scale * torch.expm1(-shape * torch.log1p(-at)) / shape
            tail[:m, some] = best + (quantiles + cut).clamp(max=1).log().flip(0)
            expected = cut.square() + 2 * cut * scale / (1 - shape)
            expected += 2 * scale.square() / ((1 - shape) * (1 - 2 * shape))
            finite = shape < 0.5
            square[some[finite]] = (math.log(m) + expected.log() + 2 * best)[finite]
    return Tail(k, tail, square)


def generalized_pareto(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return shape k and scale s of the law p(x) = (1 + k x / s)^(-1/k - 1) / s, fitted to x.

    Zhang & Stephens (2009): the posterior mean of b = -k / s over a grid, k being its maximum
    likelihood given b; then k is drawn to 1/2 by the weight of ten observations, as Vehtari et al.
    (2024) do.

    Args:
        x: excesses over the threshold, in ascending order, positive, (M, N).

    Returns:
        k and s, each (N,).
    """
    n = len(x)
    grid = 30 + int(n**0.5)
    j = torch.arange(1, grid + 1, dtype=x.dtype).unsqueeze(-1)
    quartile = x[int(n / 4 + 0.5) - 1]
    b = 1 / x[-1] + (1 - (grid / (j - 0.5)).sqrt()) / (3 * quartile)  # (grid, N)
    k = torch.log1p(-b.unsqueeze(1) * x).mean(1)
    log_likelihood = n * ((-b / k).log() - k - 1)
    b = (log_likelihood.softmax(0) * b).sum(0)
    k = torch.log1p(-b * x).mean(0)
    scale = -k / b
    return (n * k + 10 * 0.5) / (n + 10), scale
