"""Objectives of the aggregate posterior q(z) = E_x q(z|x), estimated within a batch."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrovae.distributions import factors, kind
from pyrovae.importance import Latent, Particles, particles
from pyrovae.objectives.base import Estimate, Objective, check_range
from pyrovae.objectives.divided import kl_by_group

INFINITY = float("inf")


def _one_latent(found: Particles, objective: str) -> Latent:
    if len(found.latents) != 1:
        raise ValueError(
            f"{objective} expected one latent site; got {[s.name for s in found.latents]}: the "
            "aggregate posterior of several needs their joint density"
        )
    return found.latents[0]


class BetaTC(Objective):
    """E_q[log p(x|z)] - alpha I(n; z) - beta KL(q(z) || prod_i q(z_i)) - gamma sum_i KL_i.

    Chen et al. (2018), eq. 4, KL_i = KL(q(z_i) || p(z_i)); of a prior that is no product, the last
    is KL(prod_i q(z_i) || p(z)). It is the ELBO where all factors are 1. The
    densities of the aggregate posterior q(z) are estimated from the B data of the batch (their
    section 3.1 and appendix C), as one of N in all:

        "weighted":    q(z) ~ (1/(N B)) sum_j q(z|x_j)
        "stratified":  q(z) ~ (1/N) q(z|x_n) + ((N-M)/(N M)) q(z|x_n') + (1/M) sum_j q(z|x_j),
                       M = B - 1, n' one other of the batch, the sum over the rest

    Within the logarithm both are biased, "weighted" by up to log N, and depend on B; the
    decomposition's sum does not.

    Args:
        beta: of the total correlation, >= 0.
        alpha: of the mutual information, >= 0.
        gamma: of the dimension-wise KL, >= 0.
        estimator: "weighted" or "stratified".
        num_data: N; None for the number that `fit` trains on, or else for the plate's size.

    Raises:
        ValueError: an argument out of its range; on use, several latent sites, a guide that
            is no product over the latent numbers, or a batch of one.
    """

    couples_batch = True

    def __init__(
        self,
        beta: float = 6.0,
        alpha: float = 1.0,
        gamma: float = 1.0,
        estimator: str = "weighted",
        num_data: int | None = None,
    ) -> None:
        for name, value in {"beta": beta, "alpha": alpha, "gamma": gamma}.items():
            check_range(name, value, 0, INFINITY)
        if estimator not in ("weighted", "stratified"):
            raise ValueError(
                f"expected estimator to be 'weighted' or 'stratified'; got {estimator!r}"
            )
        if num_data is not None and (not isinstance(num_data, int) or num_data < 2):
            raise ValueError(f"expected num_data to be a whole number >= 2; got {num_data!r}")
        super().__init__()
        # not `beta`, which is the factor of the whole KL wherever an objective has it
        self.factors = alpha, beta, gamma
        self.estimator, self.num_data = estimator, num_data

    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return the objective by datum. Arguments and errors: see `Objective`."""
        found = particles(model, guide, x, *c)
        terms = self.decomposed(found)
        penalty = sum(f * t for f, t in zip(self.factors, terms, strict=True))
        value = found.log_likelihood[0] - _one_latent(found, "BetaTC").scale * penalty
        return Estimate(value.reshape(len(x)), value.reshape(len(x)), found.scale)

    def decomposed(self, found: Particles) -> tuple[Tensor, Tensor, Tensor]:
        """Return log q(z|x)/q(z), log q(z)/prod_i q(z_i) and log prod_i q(z_i)/p(z), (N,) each.

        Their means estimate the mutual information, the total correlation and the dimension-wise
        KL.

        Args:
            found: of one draw a datum, from `importance.particles`.
        """
        latent = _one_latent(found, "BetaTC")
        q, z = factors(latent.guide), latent.value
        if q is None:
            raise ValueError(
                f"site {latent.name!r}: expected a guide that is a product of univariate "
                f"distributions, .to_event; got {kind(latent.guide)}: take InfoVAE, which needs "
                "draws alone"
            )
        n = len(z)
        if n < 2:
            raise ValueError("BetaTC expected at least two data in a batch; got one")
        log_q = q.log_prob(z.unsqueeze(1)).reshape(n, n, -1)  # z of row i under q of row j
        log_own = q.log_prob(z).reshape(n, -1).sum(-1)
        log_prior = latent.model.log_prob(z).reshape(n)
        weight = self._log_weights(n, round(self.num_data or n * found.plate_scale)).to(log_q)
        log_joint = (weight + log_q.sum(-1)).logsumexp(1)
        log_product = (weight.unsqueeze(-1) + log_q).logsumexp(1).sum(-1)
        return log_own - log_joint, log_joint - log_product, log_product - log_prior

    def _log_weights(self, b: int, n: int) -> Tensor:
        """Return the logarithms of the weights of q(z_i|x_j) in the estimate of q(z_i), (B, B)."""
        if n < b:
            raise ValueError(f"expected num_data >= {b}, the batch's data; got {n}")
        if n == b:  # all the data are there: q(z) itself
            return torch.full((b, b), -math.log(n))
        if self.estimator == "weighted":
            return torch.full((b, b), -math.log(n * b))
        m, i = b - 1, torch.arange(b)
        weights = torch.full((b, b), 1 / m)
        weights[i, i] = 1 / n
        weights[i, (i + 1) % b] = (n - m) / (n * m)
        return weights.log()


class InfoVAE(Objective):
    """E_q[log p(x|z)] - (1 - alpha) KL(q(z|x) || p(z)) - (alpha + weight - 1) MMD^2(q(z), p(z)).

    Zhao et al. (2019), eq. 6: the aggregate posterior is held to the prior by the maximum mean
    discrepancy of the batch's draws and as many of the prior, by the unbiased estimate with the
    kernel k(z, z') = exp(-|z - z'|^2 / (2 h^2)). Its mean does not depend on the batch's size, its
    noise does.

    Args:
        alpha: <= 1; 1 leaves the KL out.
        weight: lambda, with alpha + weight >= 1.
        bandwidth: h; None for sqrt(d), so that k is 1/e on average at p(z) = N(0, I).

    Raises:
        ValueError: an argument out of its range; on use, several latent sites, draws of the guide
            without a gradient, or a batch of one.
    """

    couples_batch = True
    analytic_kl = True

    def __init__(
        self, alpha: float = 0.0, weight: float = 10.0, bandwidth: float | None = None
    ) -> None:
        check_range("alpha", alpha, -INFINITY, 1)
        check_range("weight", weight, 1 - alpha, INFINITY)
        if bandwidth is not None and not 0 < bandwidth < INFINITY:
            raise ValueError(f"expected bandwidth to be positive and finite; got {bandwidth!r}")
        super().__init__()
        self.alpha, self.weight, self.bandwidth = alpha, weight, bandwidth

    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return the objective by datum. Arguments and errors: see `Objective`."""
        found = particles(model, guide, x, *c)
        latent = _one_latent(found, type(self).__name__)
        if not latent.guide.has_rsample:
            raise ValueError(
                f"site {latent.name!r}: {type(self).__name__} expected draws with a gradient "
                f"(rsample); got {kind(latent.guide)}"
            )
        z = latent.value.flatten(1)
        mmd = mmd2(z, _prior_draws(latent.model, len(x)).flatten(1), self.bandwidth)
        value = found.log_likelihood[0]
        if self.alpha < 1:
            value = value - (1 - self.alpha) * kl_by_group(latent, "site", len(x))[:, 0]
        value = value - (self.alpha + self.weight - 1) * latent.scale * mmd
        return Estimate(value.reshape(len(x)), value.reshape(len(x)), found.scale)


class MMD(InfoVAE):
    """E_q[log p(x|z)] - weight MMD^2(q(z), p(z)), no KL: `InfoVAE` at alpha = 1.

    Zhao et al. (2019), section 4.3; a Wasserstein autoencoder with a random encoder (Tolstikhin et
    al. (2018)). No bound of log p(x).

    Args:
        weight: lambda, >= 0.
        bandwidth: as in `InfoVAE`.
    """

    def __init__(self, weight: float = 10.0, bandwidth: float | None = None) -> None:
        super().__init__(1.0, weight, bandwidth)


def _prior_draws(p: Any, n: int) -> Tensor:
    """Return n draws of p(z), or one of each p(z|c_n), with their gradient where they have one."""
    shape = () if p.batch_shape else (n,)
    return p.rsample(shape) if p.has_rsample else p.sample(shape)


def mmd2(x: Tensor, y: Tensor, bandwidth: float | None = None) -> Tensor:
    """Return the unbiased estimate of MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y).

    Gretton et al. (2012), lemma 6, k(x, y) = exp(-|x - y|^2 / (2 h^2)).

    Args:
        x: draws (n, d), n >= 2.
        y: draws (m, d), m >= 2.
        bandwidth: h; None for sqrt(d).

    Raises:
        ValueError: fewer than two draws in either.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError("MMD expected at least two data in a batch; got one")
    h2 = x.shape[1] if bandwidth is None else bandwidth**2

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = (a.unsqueeze(1) - b.unsqueeze(0)).square().sum(-1)
        return (-squared / (2 * h2)).exp()

    # the diagonals of the first two are 1 each, and no pair
    own = (kernel(x, x).sum() - n) / (n * (n - 1)) + (kernel(y, y).sum() - m) / (m * (m - 1))
    return own - 2 * kernel(x, y).mean()
