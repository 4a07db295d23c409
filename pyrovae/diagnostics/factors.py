"""A distribution over several numbers taken apart: each number's own distribution."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor, nn
from torch.distributions import (
    LowRankMultivariateNormal,
    MultivariateNormal,
    kl_divergence,
)

from pyrovae.distributions import MixtureOfNormals, factors
from pyrovae.importance import guide_distributions, inspect

NODES = torch.linspace(-7.0, 7.0, 57, dtype=torch.float64)  # in standard deviations of q


def one_site(
    model: Callable, guide: Callable, x: Tensor, c: Sequence[Tensor], modules: Sequence[nn.Module]
) -> tuple[str, Any, Any]:
    """Return the name of a pair's one latent site, q(z|x_n) and p(z), batch shape (N,).

    Raises:
        ValueError: no valid pair, or another number of latent sites than one.
    """
    structure = inspect(model, guide, x[:2], *(t[:2] for t in c), modules=modules)
    structure.check()
    names = [site.name for site in structure.latents]
    if len(names) != 1:
        raise ValueError(
            f"expected one latent site, whose distributions no other latent moves; got {names}: "
            "use active_units, which serves any number of sites"
        )
    q, p = (guide_distributions(f, x, *c, modules=modules)[names[0]] for f in (guide, model))
    return names[0], q, p


def marginals(d: Any) -> Any:
    """Return each number's marginal under d, or None where it is not known in closed form.

    Of a batch shape that broadcasts with (*d.batch_shape, *d.event_shape).
    """
    if isinstance(d, ExpandedDistribution):
        return marginals(d.base_dist)
    if isinstance(d, MultivariateNormal | LowRankMultivariateNormal):
        return dist.Normal(d.mean, d.variance.sqrt())
    if isinstance(d, MixtureOfNormals):
        scale = d.scale if d.scale.dim() == 2 else d.scale.square().sum(-1).sqrt()
        weights = dist.Categorical(logits=d.logits.expand(len(d.loc.T), -1))
        return dist.MixtureSameFamily(weights, dist.Normal(d.loc.T, scale.T))
    return factors(d)


def univariate_kl(q: Any, p: Any) -> Tensor | None:
    """Return KL(q || p) of univariate distributions, in nats, or None where no way is open.

    In closed form where one is registered; for a normal q by the trapezoid rule on 57 points. Its
    error is of the order of exp(-25 r), where r s is the distance from the real line of the nearest
    singularity of log p, s the standard deviation of q: 1e-11 for r = 1 (Trefethen & Weideman 2014,
    theorem 5.1).
    """
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        pass
    support = getattr(p.support, "base_constraint", p.support)  # a mixture's wraps its parts'
    if not isinstance(q, dist.Normal) or support is not constraints.real:
        return None
    nodes = NODES.to(q.loc)
    weights = (-0.5 * nodes.square()).softmax(0)
    cross = torch.zeros_like(q.loc)  # point by point: a mixture holds all its components for each
    for node, weight in zip(nodes, weights, strict=True):
        cross = cross + weight * p.log_prob(q.loc + node * q.scale)
    return -q.entropy() - cross
