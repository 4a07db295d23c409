"""The shape of the importance weights' tail: is an estimate made of them to be trusted?"""

import importlib
import math
import warnings
from importlib.metadata import version

import torch
from torch import Tensor

MIN_DRAWS = 30  # below, the tail (a fifth of the draws) holds too few for ArviZ to fit


def khat(log_weights: Tensor) -> Tensor:
    """Return k-hat of each datum, the shape of the generalized Pareto law of its largest weights.

    p(w | w > u) = (1 + k (w - u) / s)^(-1/k - 1) / s,   u the min(S/5, 3 sqrt S)-th largest weight

    Of such weights only the moments below 1/k are finite: for k > 1/2 they have no variance, and
    for k > 0.7 no practical number S of draws suffices. Vehtari et al. (2024); the fit is ArviZ's.

    Two cases have no fit. Where the largest weights are all equal, to rounding, there is no tail:
    -inf, the best there is. (So it is for the constant weights of a perfect guide, of which ArviZ
    says inf.) Where fewer than five distinct ones stand out, or all weights are zero, or the tail
    is too uneven for ArviZ: inf, not to be trusted.

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
    log_w = log_weights.detach().cpu().double()
    if bool((bad := log_w.isnan() | (log_w == math.inf)).any()):
        raise ValueError(
            f"expected log_weights that are finite or -inf; got {int(bad.sum())} that are NaN or "
            f"+inf, the first at index {tuple(bad.nonzero()[0].tolist())}: are the densities of "
            "model and guide finite?"
        )
    draws = len(log_w)
    tail = log_w.topk(math.floor(min(draws / 5, 3 * draws**0.5)), 0).values
    largest, spread = tail[0], tail[0] - tail[-1]
    rounding = 1e-8 + 10 * torch.finfo(log_weights.dtype).eps * largest.abs()
    k = torch.full_like(largest, math.inf)
    k[spread <= rounding] = -math.inf
    if bool((fits := spread > rounding).any()):  # neither holds where every weight is zero
        k[fits] = _fit(log_w[:, fits].T).nan_to_num(math.inf, math.inf, -math.inf)
    return k.to(log_weights)


def _fit(log_w: Tensor) -> Tensor:
    """Return ArviZ's k-hat for log weights (N, S): the two series differ in place and in sign."""
    values = log_w.contiguous().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the coming 1.0, when imported; overflows that it mends
        if int(version("arviz").split(".")[0]) < 1:
            psislw = importlib.import_module("arviz").psislw
        else:
            values = -values
            psislw = importlib.import_module("arviz_stats.base").array_stats.psislw
        return torch.as_tensor(psislw(values)[1])
