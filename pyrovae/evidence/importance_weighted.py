"""The evidence from importance weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrovae.evidence.pareto import khat
from pyrovae.evidence.results import Evidence
from pyrovae.importance import log_terms

BLOCK = 1000  # particles a datum whose weights are held at once


@dataclass(frozen=True)
class Summary:
    """The bound, its terms and the evidence, one entry a datum, in nats.

    Attributes:
        reconstruction: E_q[log p(x|z)], (N,).
        kl: KL(q(z|x) || p(z)), (N,), a mean over the draws.
        elbo: reconstruction - kl, (N,).
        evidence: the estimate of log p(x) from the same draws.
        khat: Pareto k-hat of the weights, (N,), if it was asked for.
    """

    reconstruction: Tensor
    kl: Tensor
    elbo: Tensor
    evidence: Evidence
    khat: Tensor | None = None


def iwae(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_particles: int = 1000,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
) -> Evidence:
    """Return log (1/K) sum_k w_k, w_k = p(x, z_k) / q(z_k|x): a lower bound of log p(x) on average.

    Burda et al. (2016), eq. 8. The standard error is the delta method's, sd(w) / (mean(w) sqrt K);
    it is to be trusted only where the effective sample size is large. Memory does not grow with K.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        num_particles: number K of draws a datum.
        seed: of the draws.
        modules: those that the functions hold in their closures.

    Returns:
        Evidence.

    Raises:
        ValueError: no valid pair, bad data, or num_particles that is no positive whole number.

    Example:
        >>> import torch
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> iwae(vae.model, vae.guide, torch.ones(3, 4), num_particles=100).log_evidence.shape
        torch.Size([3])
    """
    return summarise(
        model, guide, x, *c, num_particles=num_particles, seed=seed, modules=modules
    ).evidence


def summarise(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_particles: int = 1000,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
    with_khat: bool = False,
) -> Summary:
    """Return the ELBO, its terms and `iwae`'s evidence, all from the same draws z ~ q(z|x).

    Arguments and errors: see `iwae`; `with_khat` keeps all K x N weights for Pareto k-hat.
    """
    if not isinstance(num_particles, int) or num_particles < 1:
        raise ValueError(
            f"expected num_particles to be a positive whole number; got {num_particles!r}"
        )
    n, k = len(x), num_particles
    reconstruction, kl = torch.zeros(n), torch.zeros(n)
    log_sum, log_sum_squares = torch.full((n,), -math.inf), torch.full((n,), -math.inf)
    kept: list[Tensor] = []
    for block, start in enumerate(range(0, k, BLOCK)):
        with torch.no_grad():
            terms = log_terms(
                model, guide, x, *c,
                num_particles=min(BLOCK, k - start), seed=seed * 1_000_003 + block, modules=modules,
            )  # fmt: skip
        reconstruction = reconstruction.to(terms.log_prior) + terms.log_likelihood.sum(0) / k
        kl = kl.to(terms.log_prior) + (terms.log_guide - terms.log_prior).sum(0) / k
        log_w = terms.log_weight
        if with_khat:
            kept.append(log_w)
        log_sum = log_sum.to(log_w).logaddexp(log_w.logsumexp(0))
        log_sum_squares = log_sum_squares.to(log_w).logaddexp((2 * log_w).logsumexp(0))
    log_evidence = log_sum - math.log(k)
    ess = (2 * log_sum - log_sum_squares).exp()
    # var(w) / mean(w)^2 = K / ess - 1, and the variance of the mean of K is 1 / (K - 1) of that
    error = (
        ((k / ess - 1).clamp(min=0) / (k - 1)).sqrt() if k > 1 else torch.full_like(ess, math.inf)
    )
    evidence = Evidence(log_evidence, error, log_evidence, ess)
    shape = khat(torch.cat(kept)) if with_khat else None
    return Summary(reconstruction, kl, reconstruction - kl, evidence, shape)
