"""Are two samples of one law? By the distance of their means under a kernel."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.diagnostics.arrays import as_rows, check_whole, check_widths

ELEMENTS = 2**22  # of permutations and data held at once
ROUNDING = 1e-12  # of a statistic of kernel values, which are at most 1


@dataclass(frozen=True)
class TwoSample:
    """The maximum mean discrepancy of two samples, and its permutation test.

    Attributes:
        mmd2: the unbiased estimate of MMD^2; about 0, and perhaps below, for one law.
        p_value: of the hypothesis that both are of one law, at least 1 / (1 + num_permutations).
        bandwidth: h of the kernel exp(-|x - y|^2 / (2 h^2)), in the units of x.
        num_permutations: B.
    """

    mmd2: float
    p_value: float
    bandwidth: float
    num_permutations: int


def two_sample(
    x: Any,
    y: Any,
    *,
    num_permutations: int = 1000,
    bandwidth: float | None = None,
    seed: int = 0,
) -> TwoSample:
    """Return the unbiased MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), with its permutation test.

    Gretton et al. (2012), eq. 3 (lemma 6), k(x, y) = exp(-|x - y|^2 / (2 h^2)). The p-value is
    (1 + #{permuted >= observed}) / (1 + B), over B permutations of which datum is of which sample:
    its level is exact at any size, whatever the law, if the data are independent. The n + m data
    are compared each with each: memory grows with the square of their number, 5,000 take 0.2 GB.

    Args:
        x: data (n, ...), n >= 2.
        y: data (m, ...) of the same shape, m >= 2.
        num_permutations: B.
        bandwidth: h; None for the median distance between any two of the n + m data.
        seed: of the permutations.

    Returns:
        TwoSample.

    Raises:
        ValueError: not two finite arrays of one datum's shape, fewer than two data in either, a
            bandwidth that is not positive, or data whose median distance is 0.

    Example:
        >>> x = torch.randn(60, 2)
        >>> two_sample(x[:30], x[30:] + 3.0, num_permutations=99).p_value
        0.01
    """
    check_whole("num_permutations", num_permutations, 1)
    first, second = as_rows("x", x, 2), as_rows("y", y, 2)
    check_widths(x=first, y=second)
    pooled, n = torch.cat([first, second]), len(first)
    squared = torch.cdist(pooled, pooled).square_()
    if bandwidth is None:
        i, j = torch.triu_indices(len(pooled), len(pooled), 1, device=pooled.device)
        bandwidth = math.sqrt(float(squared[i, j].median()))
    if not 0 < bandwidth < math.inf:
        raise ValueError(
            f"expected a positive bandwidth; got {bandwidth}: if it is the median distance, most "
            "of the data are copies of each other: give one"
        )
    kernel = squared.div_(-2 * bandwidth**2).exp_().fill_diagonal_(0)
    generator = torch.Generator().manual_seed(seed)
    observed = torch.zeros(1, len(pooled), dtype=torch.float64, device=pooled.device)
    observed[:, :n] = 1
    mmd2 = float(_unbiased(kernel, observed))
    as_large, left, size = 0, num_permutations, max(1, ELEMENTS // len(pooled))
    while left:
        count = min(size, left)
        noise = torch.rand(count, len(pooled), generator=generator, dtype=torch.float64)
        chosen = noise.argsort(1)[:, :n].to(pooled.device)
        permuted = torch.zeros(count, len(pooled)).to(observed).scatter_(1, chosen, 1.0)
        as_large += int((_unbiased(kernel, permuted) >= mmd2 - ROUNDING).sum())
        left -= count
    return TwoSample(mmd2, (1 + as_large) / (1 + num_permutations), bandwidth, num_permutations)


def _unbiased(kernel: Tensor, first: Tensor) -> Tensor:
    """Return MMD^2 for each choice (B, n + m), 0s and 1s, of the first sample, (B,).

    kernel (n + m, n + m) has a diagonal of 0: no datum is compared with itself.
    """
    n = first[0].sum()
    m = first.shape[1] - n
    own = ((first @ kernel) * first).sum(1)  # sums over all pairs, each of them twice
    to_all = first @ kernel.sum(1)
    between = to_all - own
    other = kernel.sum() - to_all - between
    return own / (n * (n - 1)) + other / (m * (m - 1)) - 2 * between / (n * m)
