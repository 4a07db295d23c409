"""Objectives of the aggregate posterior q(z) = E_x q(z|x), estimated within a batch."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrovae.distributions import factors, kind
from pyrovae.importance import Latent, Particles
from pyrovae.objectives.base import Estimate, Objective, check_count, check_range
from pyrovae.objectives.divided import counted, divided_kl, one_draw
from pyrovae.objectives.joined import joined, own

INFINITY = float("inf")


def _one_latent(found: Particles, objective: str) -> Latent:
    """Return the one latent site of data that count alike."""
    if len(found.latents) != 1:
        raise ValueError(
            f"{objective} expected one latent site; got {[s.name for s in found.latents]}: the "
            "aggregate posterior of several needs their joint density"
        )
    latent = found.latents[0]
    if any(isinstance(s, Tensor) and s.numel() > 1 for s in (found.scale, latent.scale)):
        raise ValueError(
            f"{objective} expected one scale for all data, whose q(z) is of data that count alike; "
            "got one a datum: take poutine.scale with a number, or draw the data by their weights"
        )
    return latent


def _rows(latent: Latent) -> Any:
    """Return an index of the data that have the latent, by its mask."""
    return slice(None) if latent.mask is None else counted(latent).nonzero()[:, 0]


def _every(t: Tensor, objective: str) -> Tensor:
    """Return a batch's rows, of all processes where several share it: two at least."""
    found = joined(t)
    if len(found) < 2:
        raise ValueError(
            f"{objective} expected at least two data in a batch; got one: take another batch_size, "
            "which leaves no single datum for the last batch"
        )
    return found


class BetaTC(Objective):
    """L = E_q[log p(x|z)] - alpha I(n; z) - beta KL(q(z) || prod_i q(z_i)) - gamma sum_i KL_i.

    Chen et al. (2018), section 3, KL_i = KL(q(z_i) || p(z_i)); of a prior that is no product, the
    last is KL(prod_i q(z_i) || p(z)), of p(z|c) the mean of log prod_i q(z_i) / p(z|c). It is the
    ELBO where all factors are 1, whatever the estimate of q(z), and of q(z_i) alike, by the B data
    of the batch, of N in all:

        "weighted":    q(z) ~ (1/(N B)) sum_j q(z|x_j)
        "stratified":  q(z) ~ (1/N) q(z|x_n) + ((N-1)/(N (B-1))) sum_{j != n} q(z|x_j),  z of x_n

    "weighted" is (3) of the paper and a constant away from the batch's own mixture: with d latent
    numbers, log N is added to I, (d-1) log N to the total correlation, and d log N taken from the
    KL_i, so that the loss moves with N, its gradient does not. "stratified" is the paper's appendix
    C.2, in the mean over which of the others has the smaller weight there: q(z) has no bias and
    less variance, its logarithm a bias that fades as B grows. With B = N both are q(z) itself.

    Args:
        beta: of the total correlation, >= 0.
        alpha: of the mutual information, >= 0.
        gamma: of the dimension-wise KL, >= 0.
        estimator: "weighted" or "stratified".
        num_data: N; None for the number that `fit` trains on, or else for the plate's size.

    Raises:
        ValueError: an argument out of its range; on use, several latent sites, a guide that
            is no product over the latent numbers or whose draws have no gradient, a scale a datum,
            a batch of one, or of more than num_data.
    """

    couples_batch = True
    least_rows = 2

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
        if num_data is not None:
            check_count(num_data=num_data)
        super().__init__()
        # not `beta`, which is the factor of the whole KL wherever an objective has it
        self.factors = alpha, beta, gamma
        self.estimator, self.num_data = estimator, num_data

    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return the objective by datum. Arguments and errors: see `Objective`."""
        found = one_draw("BetaTC", model, guide, x, *c)
        latent = _one_latent(found, "BetaTC")
        terms = self.decomposed(found)
        penalty = sum(f * t for f, t in zip(self.factors, terms, strict=True))
        value = found.log_likelihood[0].clone()
        value[_rows(latent)] -= latent.scale * penalty
        return Estimate(value, value, found.scale)

    def decomposed(self, found: Particles) -> tuple[Tensor, Tensor, Tensor]:
        """Return log q(z|x)/q(z), log q(z)/prod_i q(z_i) and log prod_i q(z_i)/p(z), (B,) each.

        Their means estimate the mutual information, the total correlation and the dimension-wise
        KL, in nats. Masked data are left out.

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
        rows, n = _rows(latent), len(z)
        log_own = q.log_prob(z).reshape(n, -1).sum(-1)[rows]
        log_prior = latent.model.log_prob(z).reshape(n)[rows]
        every, ours = _every(z[rows], "BetaTC"), own(log_own)
        log_q = q.log_prob(every.unsqueeze(1)).reshape(len(every), n, -1)[:, rows]
        log_q = joined(log_q.transpose(0, 1)).transpose(0, 1)[ours]  # z of row i under q of row j
        b = len(every)
        weight = self._log_weights(b, round(self.num_data or b * found.plate_scale)).to(log_q)[ours]
        log_joint = (weight + log_q.sum(-1)).logsumexp(1)
        log_product = (weight.unsqueeze(-1) + log_q).logsumexp(1).sum(-1)
        return log_own - log_joint, log_joint - log_product, log_product - log_prior

    def _log_weights(self, b: int, n: int) -> Tensor:
        """Return the logarithms of the weights of q(z_i|x_j) in the estimate of q(z_i), (B, B)."""
        if n < b:
            raise ValueError(f"expected num_data >= {b}, the batch's data; got {n}")
        if self.estimator == "weighted" and n > b:
            return torch.full((b, b), -math.log(n * b), dtype=torch.float64)
        others = (n - 1) / (n * (b - 1))  # 1/n where all the data are there
        own = torch.eye(b, dtype=torch.float64)
        return (own / n + (1 - own) * others).log()


class InfoVAE(Objective):
    """L = E_q[log p(x|z)] - (1 - alpha) KL(q(z|x) || p(z)) - (alpha + weight - 1) MMD^2(q, p).

    Zhao et al. (2019): the aggregate posterior is held to the prior by the maximum mean discrepancy
    of the batch's draws and as many of the prior, by the unbiased estimate with the kernel
    k(z, z') = exp(-|z - z'|^2 / (2 h^2)). Its mean does not depend on the batch's size, its noise
    does. Of p(z|c), the draws are of the batch's c, and it is q(z) and p(z) = E_c p(z|c) that are
    compared. Draws of a prior that have no gradient (mixtures) leave it to the KL to train it.

    Args:
        alpha: <= 1; 1 leaves the KL out.
        weight: lambda, with alpha + weight >= 1.
        bandwidth: h; None for sqrt(d), so that k is 1/e at the mean squared distance of two draws
            of N(0, I).

    Raises:
        ValueError: an argument out of its range; on use, several latent sites, draws of the guide
            without a gradient, a scale a datum, or a batch of one.
    """

    couples_batch = True
    least_rows = 2
    analytic_kl = True

    def __init__(
        self, alpha: float = 0.0, weight: float = 10.0, bandwidth: float | None = None
    ) -> None:
        check_range("alpha", alpha, -INFINITY, 1)
        check_range("weight", weight, -INFINITY, INFINITY)
        if alpha + weight < 1:
            raise ValueError(f"expected alpha + weight >= 1; got {alpha!r} + {weight!r}")
        if bandwidth is not None and not 0 < bandwidth < INFINITY:
            raise ValueError(f"expected bandwidth to be positive and finite; got {bandwidth!r}")
        super().__init__()
        self.alpha, self.weight, self.bandwidth = alpha, weight, bandwidth

    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return the objective by datum. Arguments and errors: see `Objective`."""
        name = type(self).__name__
        found = one_draw(name, model, guide, x, *c)
        latent = _one_latent(found, name)
        rows = _rows(latent)
        z, prior = (
            _every(t[rows].flatten(1), name) for t in (latent.value, _prior_draws(latent.model))
        )
        mmd = mmd2(z, prior, self.bandwidth, paired=bool(c))  # two of one c are no two at random
        value = found.log_likelihood[0].clone()
        value[rows] -= (self.alpha + self.weight - 1) * latent.scale * mmd
        if self.alpha < 1:
            value = value - (1 - self.alpha) * divided_kl(latent, "site")[:, 0]
        return Estimate(value, value, found.scale)


class MMD(InfoVAE):
    """L = E_q[log p(x|z)] - weight MMD^2(q(z), p(z)), no KL: `InfoVAE` at alpha = 1.

    Zhao et al. (2019), "MMD-VAE"; a Wasserstein autoencoder with a random encoder (Tolstikhin et
    al. (2018)). No bound of log p(x). A prior whose draws have no gradient (a mixture) stays as it
    is: nothing trains it.

    Args:
        weight: lambda, >= 0.
        bandwidth: as in `InfoVAE`.
    """

    def __init__(self, weight: float = 10.0, bandwidth: float | None = None) -> None:
        super().__init__(1.0, weight, bandwidth)


def _prior_draws(p: Any) -> Tensor:
    """Return a draw of p(z), or of p(z|c_n), a row, with its gradient where it has one."""
    draws: Tensor = p.rsample() if p.has_rsample else p.sample()
    return draws


def mmd2(x: Tensor, y: Tensor, bandwidth: float | None = None, paired: bool = False) -> Tensor:
    """Return the unbiased estimate of MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y).

    Gretton et al. (2012), lemma 6, k(x, y) = exp(-|x - y|^2 / (2 h^2)).

    Args:
        x: draws (n, d), n >= 2.
        y: draws (m, d), m >= 2.
        bandwidth: h; None for sqrt(d).
        paired: may x_i and y_i depend on each other? Then n = m and k(x_i, y_i) are left out.

    Raises:
        ValueError: fewer than two draws in either.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"MMD expected at least two draws in each sample; got {n} and {m}")
    h2 = x.shape[1] if bandwidth is None else bandwidth**2

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-(a - b).square().sum(-1) / (2 * h2)).exp()

    def others(a: Tensor, b: Tensor) -> Tensor:  # the mean of k(a_i, b_j), i != j
        return (kernel(a.unsqueeze(1), b).sum() - kernel(a, b).sum()) / (len(a) * (len(a) - 1))

    between = others(x, y) if paired else kernel(x.unsqueeze(1), y).mean()
    return others(x, x) + others(y, y) - 2 * between
