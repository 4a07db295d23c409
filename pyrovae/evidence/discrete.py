"""The evidence of discrete latents, by enumeration."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyrovae.evidence.latents import Problem, problem
from pyrovae.evidence.results import ExactEvidence
from pyrovae.importance import enumerate_latents

MAX_VALUES = 100_000


def values(work: Problem) -> Tensor:
    """Return every joint value z of the latents, (S, dim).

    Raises:
        ValueError: a latent that is not discrete and finite, or more than 100,000 joint values.
    """
    sites = enumerate_latents(work.model, work.x, *work.c, modules=work.modules)
    z = work.flat(sites)
    if len(z) > MAX_VALUES:
        raise ValueError(
            f"expected at most {MAX_VALUES:,} joint values of the latents; got {len(z):,}: use "
            "evidence.iwae"
        )
    return z


def solve(work: Problem) -> ExactEvidence:
    """Sum p(x, z) over every z."""
    z = values(work)
    log_p = work.log_joint(z[:, None].expand(-1, len(work.x), -1))
    log_evidence = log_p.logsumexp(0)
    weights = (log_p - log_evidence).exp()
    mean = torch.einsum("sn,sd->nd", weights, z)
    off = z[:, None] - mean
    covariance = torch.einsum("sn,snd,sne->nde", weights, off, off)
    rounding = torch.finfo(log_p.dtype).eps * (1 + log_evidence.abs()) * 10
    return ExactEvidence(
        log_evidence, rounding, "enumeration", mean, covariance,
        work.log_joint_of_sites,
    )  # fmt: skip


def enumeration(
    model: Callable, guide: Callable, x: Tensor, *c: Tensor, modules: Sequence[nn.Module] = ()
) -> ExactEvidence:
    """Return log p(x) = log sum_z p(x, z) over every joint value of discrete latents.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c); only its sites matter.
        x: data (N, ...).
        *c: context, N rows each.
        modules: those that the functions hold in their closures.

    Raises:
        ValueError: a latent that is not discrete and finite, too many values, or no valid pair.
    """
    with problem(model, guide, x, c, modules) as work:
        return solve(work)
