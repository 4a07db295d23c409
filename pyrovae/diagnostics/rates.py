"""The rate-distortion curve: what models trained at several betas pay for what they keep."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.diagnostics.arrays import check_whole
from pyrovae.importance import log_terms

BLOCK = 100  # draws a datum whose terms are held at once


@dataclass(frozen=True)
class RateDistortion:
    """Rate and distortion at each beta, in nats; standard errors are over the data.

    Attributes:
        betas: as they were given, (B,).
        rates: KL(q(z|x_n) || p(z)), (B, N), means over the draws.
        distortions: -E_q[log p(x_n|z)], (B, N), means over the draws.
    """

    betas: Tensor
    rates: Tensor
    distortions: Tensor

    @property
    def rate(self) -> Tensor:
        """R, the mean rate, (B,)."""
        return self.rates.mean(1)

    @property
    def rate_se(self) -> Tensor:
        """Its standard error, (B,)."""
        return _error(self.rates)

    @property
    def distortion(self) -> Tensor:
        """D, the mean distortion, (B,)."""
        return self.distortions.mean(1)

    @property
    def distortion_se(self) -> Tensor:
        """Its standard error, (B,)."""
        return _error(self.distortions)

    @property
    def elbo(self) -> Tensor:
        """-(R + D), whatever the beta a model was trained at, (B,)."""
        return -(self.rate + self.distortion)

    @property
    def elbo_se(self) -> Tensor:
        """Its standard error, (B,)."""
        return _error(self.rates + self.distortions)

    @property
    def slope(self) -> Tensor:
        """(D' - D) / (R' - R) between neighbouring betas: between -beta and -beta' at the optimum.

        Of shape (B - 1,); NaN or infinite where the two rates are equal.
        """
        return self.distortion.diff() / self.rate.diff()

    @property
    def slope_se(self) -> Tensor:
        """Its standard error by the delta method, of differences datum by datum, (B - 1,)."""
        residual = self.distortions.diff(dim=0) - self.slope.unsqueeze(1) * self.rates.diff(dim=0)
        return _error(residual) / self.rate.diff().abs()


def rate_distortion(
    train: Callable[[float], Any],
    betas: Iterable[float],
    x: Tensor,
    *c: Tensor,
    num_draws: int = 100,
    seed: int = 0,
) -> RateDistortion:
    """Return R = mean KL(q(z|x) || p(z)) and D = -mean E_q[log p(x|z)] of models of several betas.

    Alemi et al. (2018), section 2: -ELBO = R + D, so models of one ELBO may lie anywhere on a line
    from all rate to none. A beta-VAE minimises D + beta R (Higgins et al. 2017); on the curve of
    the best (R, D) dD/dR = -beta. A slope between neighbours that is not between -beta and -beta',
    by more than its error, means a model that is not at its optimum, on these data.

    Args:
        train: from a beta to (model, guide), trained at it; a third entry and any more are modules
            that the two hold in their closures.
        betas: each positive, in the order of the curve.
        x: data (N, ...), N >= 2: held-out, to judge the models; training data, to judge the
            optimum.
        *c: context, N rows each.
        num_draws: draws of z a datum; memory does not grow with it.
        seed: of the draws.

    Returns:
        RateDistortion.

    Raises:
        ValueError: betas that are not positive, or none, something else than a pair from `train`, a
            pair that is not valid, fewer than two data, or no positive number of draws.

    Example:
        >>> from pyrovae import build
        >>> def train(beta):
        ...     vae = build(data_shape=(4,), latent_dim=2)  # `fit(..., beta=beta)` goes here
        ...     return vae.model, vae.guide
        >>> rate_distortion(train, [0.5, 1.0, 2.0], torch.ones(5, 4)).rate.shape
        torch.Size([3])
    """
    check_whole("num_draws", num_draws, 1)
    values = [float(beta) for beta in betas]
    if not values or not all(0 < beta < math.inf for beta in values):
        raise ValueError(f"expected betas to be positive numbers, at least one; got {values}")
    if len(x) < 2:
        raise ValueError(f"expected at least two data; got {len(x)}")
    rates, distortions = [], []
    for beta in values:
        model, guide, modules = _pair(train(beta), beta)
        rate, distortion = torch.zeros(2, len(x), dtype=torch.float64)
        for block, start in enumerate(range(0, num_draws, BLOCK)):
            with torch.no_grad():
                terms = log_terms(
                    model, guide, x, *c, num_particles=min(BLOCK, num_draws - start),
                    seed=seed * 1_000_003 + block, modules=modules,
                )  # fmt: skip
            excess = (terms.log_guide - terms.log_prior).double().sum(0)
            rate = rate.to(excess) + excess / num_draws
            distortion = distortion.to(excess) - terms.log_likelihood.double().sum(0) / num_draws
        rates.append(rate)
        distortions.append(distortion)
    return RateDistortion(
        torch.tensor(values, dtype=torch.float64), torch.stack(rates), torch.stack(distortions)
    )


def _pair(trained: Any, beta: float) -> tuple[Callable, Callable, list[nn.Module]]:
    """Return what `train` gave as model, guide and modules."""
    parts = list(trained) if isinstance(trained, tuple | list) else []
    model, guide, *modules = parts if len(parts) >= 2 else (None, None)
    if not (callable(model) and callable(guide)) or not all(
        isinstance(m, nn.Module) for m in modules
    ):
        raise ValueError(
            f"expected train({beta}) to return (model, guide), and after them modules if they hold "
            f"any; got {type(trained).__name__}: of a VAE return (vae.model, vae.guide)"
        )
    return model, guide, modules


def _error(values: Tensor) -> Tensor:
    """Return the standard error of the means of values (B, N), (B,)."""
    return values.std(1) / math.sqrt(values.shape[1])
