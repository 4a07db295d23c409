"""Special functions, right in float32 where differences of large ones are not; and inverses."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def gamma_rest(y: Tensor) -> Tensor:
    """Return log Gamma(y + 1) - y log y + y, which grows as log(y) / 2, for y >= 0.

    log Gamma(1e6 + 1) is 1.3e7, and its last digit in float32 a whole nat. From 16 on it is
    Stirling's series, log(2 pi y) / 2 + 1/(12 y) - 1/(360 y^3) + ..., right to 1e-13.
    """
    small, large = y.clamp(max=16), y.clamp(min=16)
    exact = torch.lgamma(small + 1) - torch.xlogy(small, small) + small
    inverse = large.reciprocal()
    square = inverse.square()
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    return torch.where(y < 16, exact, 0.5 * torch.log(2 * math.pi * large) + series)


def log_beta(a: Tensor, b: Tensor) -> Tensor:
    """Return log Gamma(a) Gamma(b) / Gamma(a + b), for a, b > 0."""
    total = a + b
    rest = gamma_rest(a) + gamma_rest(b) - gamma_rest(total)
    return rest + a * torch.log(a / total) + b * torch.log(b / total) - torch.log(a * b / total)


def log_ratio(difference: Tensor, ratio: Tensor) -> Tensor:
    """Return log(ratio), given both ratio > 0 and difference = ratio - 1 to full accuracy.

    Near 1 the difference tells more, near 0 the ratio does.
    """
    near = torch.log1p(difference.clamp(min=-0.5))
    return torch.where(difference > -0.5, near, torch.log(ratio))


def bisect(
    increasing: Callable[[Tensor], Tensor], target: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Return t in [low, high] with increasing(t) = target, element by element.

    Where there is none, the nearer end.
    """
    for _ in range(60):
        middle = (low + high) / 2
        below = increasing(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
