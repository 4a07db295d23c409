"""The ELBO's KL by latent number: which are collapsed, and what they share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.diagnostics.arrays import check_whole
from pyrovae.diagnostics.factors import marginals, one_site, univariate_kl
from pyrovae.diagnostics.latents import PAIRS, _mean_and_error
from pyrovae.distributions import factors, kind, seeded
from pyrovae.importance import batched, find_modules
from pyrovae.nets import evaluating

THRESHOLD = DELTA = 0.01  # nats, and share of the data (Lucas et al. 2019)


@dataclass(frozen=True)
class Collapse:
    """What each latent number tells of its datum, in nats.

    Attributes:
        kl: mean_n KL(q(z_i|x_n) || p(z_i)), (d,).
        kl_se: its standard error over the data, (d,).
        share: of the data, with KL(q(z_i|x_n) || p(z_i)) <= threshold, (d,).
        threshold: epsilon, in nats.
        delta: the share of the data that a collapsed number may still tell something of.
    """

    kl: Tensor
    kl_se: Tensor
    share: Tensor
    threshold: float
    delta: float

    @property
    def collapsed(self) -> Tensor:
        """Is a number collapsed, share >= 1 - delta? (d,), bool."""
        return self.share >= 1 - self.delta

    @property
    def count(self) -> int:
        """How many are collapsed."""
        return int(self.collapsed.sum())


def collapse(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    threshold: float = THRESHOLD,
    delta: float = DELTA,
    modules: Sequence[nn.Module] = (),
) -> Collapse:
    """Return KL(q(z_i|x_n) || p(z_i)) by latent number i: collapsed if small for nearly all n.

    Lucas et al. (2019): i is (epsilon, delta)-collapsed if
    P_x[KL(q(z_i|x) || p(z_i)) <= epsilon] >= 1 - delta. q(z_i|x) and p(z_i) are marginals. They are
    known where the distribution is a product of univariate ones, a normal of any covariance, or, of
    the prior, a mixture of normals (VampPrior); the KL is closed where torch or Pyro has it, and
    otherwise, for a normal q, by quadrature in one dimension. Nothing is sampled: the noise of
    draws would carry a collapsed number over the threshold. So guides that are flows or mixtures
    are refused, and one-hot vectors, whose numbers are no variables of their own.

    If guide and prior are both products, the KLs sum to KL(q(z|x) || p(z)). If not, they leave out
    what the numbers say jointly: all of them collapsed is then no proof that z tells nothing. A
    VampPrior of 500 components takes some 30 seconds for 1,000 data of 40 numbers.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c), of one latent site.
        x: data (N, ...), N >= 2.
        *c: context, N rows each.
        threshold: epsilon, in nats.
        delta: in [0, 1).
        modules: those that the functions hold in their closures.

    Returns:
        Collapse; the numbers of a site of any event shape in a row.

    Raises:
        ValueError: no valid pair, more than one latent site, fewer than two data, distributions
            whose marginals or their KL are not known, or a threshold or delta out of its range.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> collapse(vae.model, vae.guide, torch.rand(9, 4).round()).collapsed.shape
        torch.Size([2])
    """
    if not threshold >= 0 or not 0 <= delta < 1:
        raise ValueError(
            f"expected threshold >= 0 and delta in [0, 1); got threshold={threshold!r} and "
            f"delta={delta!r}"
        )
    if len(x) < 2:
        raise ValueError(f"expected at least two data; got {len(x)}")
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    name, q, p = one_site(model, guide, x, c, modules)
    with torch.no_grad():
        ours, theirs = marginals(q), marginals(p)
        kl = None if ours is None or theirs is None else univariate_kl(ours, theirs)
    if kl is None:
        raise ValueError(
            f"site {name!r}: expected a guide and a prior whose marginals and their KL are known "
            "(products of univariate distributions, normals, a mixture of normals as the prior); "
            f"got q, {kind(q)}, and p, {kind(p)}: use active_units, which needs draws alone, or "
            "elbo_surgery for the KL as a whole"
        )
    kl = kl.reshape(len(x), -1).double()
    share = (kl <= threshold).double().mean(0)
    return Collapse(kl.mean(0), kl.std(0) / math.sqrt(len(x)), share, threshold, delta)


@dataclass(frozen=True)
class TotalCorrelation:
    """The ELBO's KL in three parts that sum to it, in nats a datum, with their standard errors.

    Attributes:
        kl: mean_n KL(q(z|x_n) || p(z)).
        kl_se: its standard error.
        mutual_information: of n and z, mean_n KL(q(z|x_n) || q(z)), at most log N.
        mutual_information_se: its standard error.
        total_correlation: KL(q(z) || prod_i q(z_i)): 0 if the numbers are independent in q(z).
        total_correlation_se: its standard error.
        dimension_wise_kl: sum_i KL(q(z_i) || p(z_i)).
        dimension_wise_kl_se: its standard error.
        kl_by_dimension: KL(q(z_i) || p(z_i)), (d,).
        n: N, the data that q(z) is the mixture of.
    """

    kl: float
    kl_se: float
    mutual_information: float
    mutual_information_se: float
    total_correlation: float
    total_correlation_se: float
    dimension_wise_kl: float
    dimension_wise_kl_se: float
    kl_by_dimension: Tensor
    n: int


def total_correlation(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_draws: int = 4,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
) -> TotalCorrelation:
    """Return mean KL = I(n; z) + KL(q(z) || prod_i q(z_i)) + sum_i KL(q(z_i) || p(z_i)).

    Chen et al. (2018), eq. 2: q(z) = (1/N) sum_n q(z|x_n) and q(z_i) = (1/N) sum_n q(z_i|x_n) are
    mixtures of all N data, not the paper's estimates from minibatches, which are biased. With
    `elbo_surgery` the last two terms are one, KL(q(z) || p(z)). Standard errors are of the draws of
    z, for these data.

    The total correlation is sum_i I(n; z_i) - I(n; z), where I(n; z) <= log N: with few data and
    many numbers it is large however independent these are among more data. Compare it at one N.

    Args:
        model: Pyro model of (x, *c), its prior a product over the latent numbers.
        guide: Pyro guide of (x, *c), of one latent site, a product over its numbers given x.
        x: data (N, ...), N >= 2.
        *c: context, N rows each; the prior must not depend on it.
        num_draws: draws of z a datum, at least 2.
        seed: of the draws.
        modules: those that the functions hold in their closures.

    Raises:
        ValueError: no valid pair, more than one latent site, a guide or a prior that is no product
            of univariate distributions, a prior that depends on c, or fewer than two data or draws.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> found = total_correlation(vae.model, vae.guide, torch.rand(9, 4).round())
        >>> parts = found.mutual_information, found.total_correlation, found.dimension_wise_kl
        >>> abs(found.kl - sum(parts)) < 1e-9
        True
    """
    check_whole("num_draws", num_draws, 2)
    if len(x) < 2:
        raise ValueError(f"expected at least two data; got {len(x)}")
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    name, q, p = one_site(model, guide, x, c, modules)
    ours, theirs = factors(q), factors(p)
    if ours is None or theirs is None:
        raise ValueError(
            f"site {name!r}: expected a guide and a prior that are products of univariate "
            f"distributions, .to_event; got q, {kind(q)}, and p, {kind(p)}: use elbo_surgery, "
            "which needs no such product"
        )
    n = len(x)
    with torch.no_grad(), evaluating(*found):
        with seeded(seed):
            z = q.sample((num_draws,))
        own = _by_number(ours, z)
        prior = _by_number(theirs, z)
        everywhere = _by_number(theirs, z[0, :1].expand(z.shape[1:]).unsqueeze(0))
        if not torch.allclose(everywhere, everywhere[:, :1], rtol=1e-4, atol=1e-4):
            raise ValueError(
                f"site {name!r}: expected one prior p(z) for all data; got one that differs by "
                "row, as p(z|c) does: q(z) has no one prior to be compared to"
            )
        joint, alone = [], []
        for some in z.flatten(0, 1).split(max(1, PAIRS // own[0].numel())):
            log_q = _by_number(ours, some.unsqueeze(1))  # (draws, N, d)
            joint.append(log_q.sum(-1).logsumexp(1) - math.log(n))
            alone.append(log_q.logsumexp(1) - math.log(n))
    log_joint = torch.cat(joint).reshape(num_draws, n)
    log_alone = torch.cat(alone).reshape(num_draws, n, -1)
    log_own, log_product, log_prior = (t.sum(-1) for t in (own, log_alone, prior))
    return TotalCorrelation(
        *_mean_and_error(log_own - log_prior),
        *_mean_and_error(log_own - log_joint),
        *_mean_and_error(log_joint - log_product),
        *_mean_and_error(log_product - log_prior),
        (log_alone - prior).mean((0, 1)),
        n,
    )


def _by_number(d: Any, z: Tensor) -> Tensor:
    """Return log d(z_i) of each latent number: (*leading, N, d) in float64."""
    log_p = d.log_prob(z).double()
    event = len(d.batch_shape) - 1
    return log_p.reshape(*log_p.shape[: log_p.dim() - event], -1)
