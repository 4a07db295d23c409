"""What the latents tell of the data: active units, and the ELBO's KL taken apart."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrovae.distributions import seeded
from pyrovae.importance import (
    batched,
    find_modules,
    guide_distributions,
    inspect,
    simulate,
    site_log_probs,
)
from pyrovae.nets import evaluating

ACTIVE = 0.01  # variance above which a unit is active (Burda et al. 2016)
PAIRS = 2**20  # of draws and data whose densities are held at once


@dataclass(frozen=True)
class ActiveUnits:
    """How much the guide's mean of each latent number moves with the data.

    Attributes:
        variance: Cov_x(E_q[z_i|x]) of each, (d,), estimated without bias, so perhaps below 0.
        active: variance > threshold, (d,), bool.
        threshold: what counts as active.
    """

    variance: Tensor
    active: Tensor
    threshold: float

    @property
    def count(self) -> int:
        """How many are active."""
        return int(self.active.sum())


def active_units(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_draws: int = 20,
    threshold: float = ACTIVE,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
) -> ActiveUnits:
    """Return which latent numbers the guide uses: those with Cov_x(E_q[z_i|x]) > 0.01.

    Burda et al. (2016), section 5.1. The means are of draws; the covariance of the means of two
    independent halves of them is that of the means themselves, with no bias from their noise.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c), with real latents.
        x: data (N, ...), N >= 2.
        *c: context, N rows each.
        num_draws: draws of z a datum, an even number.
        threshold: the variance above which a unit is active.
        seed: of the draws.
        modules: those that the functions hold in their closures.

    Raises:
        ValueError: no valid pair, fewer than two data, or num_draws that is not even.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> active_units(vae.model, vae.guide, torch.rand(9, 4).round()).variance.shape
        torch.Size([2])
    """
    if not isinstance(num_draws, int) or num_draws < 2 or num_draws % 2:
        raise ValueError(f"expected num_draws to be an even whole number >= 2; got {num_draws!r}")
    if len(x) < 2:
        raise ValueError(f"expected at least two data; got {len(x)}")
    inspect(model, guide, x[:2], *(t[:2] for t in c), modules=modules).check()
    halves = [torch.zeros(()), torch.zeros(())]
    for i in range(num_draws):
        drawn = simulate(guide, x, *c, seed=seed * 1_000_003 + i, modules=modules)
        z = torch.cat([t.reshape(len(x), -1).double() for t in drawn.values()], -1)
        halves[i % 2] = halves[i % 2] + z / (num_draws // 2)
    first, second = (half - half.mean(0) for half in halves)
    variance = (first * second).sum(0) / (len(x) - 1)
    return ActiveUnits(variance, variance > threshold, threshold)


@dataclass(frozen=True)
class Surgery:
    """The ELBO's KL taken apart, means in nats a datum, each with its standard error.

    Attributes:
        kl: mean_n KL(q(z|x_n) || p(z)).
        kl_se: its standard error.
        mutual_information: of n and z, mean_n KL(q(z|x_n) || q(z)), at most log N.
        mutual_information_se: its standard error.
        aggregate_kl: KL(q(z) || p(z)), q(z) = (1/N) sum_n q(z|x_n): what a better prior would save.
        aggregate_kl_se: its standard error.
        n: N, the data that q(z) is the mixture of.
    """

    kl: float
    kl_se: float
    mutual_information: float
    mutual_information_se: float
    aggregate_kl: float
    aggregate_kl_se: float
    n: int


def elbo_surgery(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_draws: int = 4,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
) -> Surgery:
    """Return mean_n KL(q(z|x_n) || p(z)) = I(n; z) + KL(q(z) || p(z)), and both its terms.

    Hoffman & Johnson (2016), eq. 6: q(z) = (1/N) sum_n q(z|x_n) is the aggregate posterior of these
    N data, every one of which enters it, so nothing is biased by batches; I cannot exceed log N.
    Standard errors are of the draws of z, for these data.

    Args:
        model: Pyro model of x.
        guide: Pyro guide of x, whose one latent site it draws.
        x: data (N, ...), N >= 2.
        *c: context, N rows each; the prior must not depend on it.
        num_draws: draws of z a datum, at least 2.
        seed: of the draws.
        modules: those that the functions hold in their closures.

    Raises:
        ValueError: no valid pair, more than one latent site, fewer than two data or draws.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> found = elbo_surgery(vae.model, vae.guide, torch.rand(9, 4).round())
        >>> abs(found.kl - found.mutual_information - found.aggregate_kl) < 1e-5
        True
    """
    if not isinstance(num_draws, int) or num_draws < 2:
        raise ValueError(f"expected num_draws to be a whole number >= 2; got {num_draws!r}")
    if len(x) < 2:
        raise ValueError(f"expected at least two data; got {len(x)}")
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    structure = inspect(model, guide, x[:2], *(t[:2] for t in c), modules=modules)
    structure.check()
    names = [site.name for site in structure.latents]
    if len(names) != 1:
        raise ValueError(
            f"expected one latent site, to score all draws under all data; got {names}"
        )
    (name,) = names
    with torch.no_grad(), evaluating(*found):
        q = guide_distributions(guide, x, *c, modules=modules)[name]
        with seeded(seed):
            z = q.sample((num_draws,))
        log_q = q.log_prob(z)
        log_p = site_log_probs(model, {name: z}, x, *c, modules=modules)[name]
        flat = z.flatten(0, 1)
        rows = max(1, PAIRS // len(x))
        log_mixture = torch.cat([q.log_prob(t.unsqueeze(1)).logsumexp(1) for t in flat.split(rows)])
    log_aggregate = log_mixture.reshape(log_q.shape) - math.log(len(x))
    kl = _mean_and_error(log_q - log_p)
    information = _mean_and_error(log_q - log_aggregate)
    aggregate = _mean_and_error(log_aggregate - log_p)
    return Surgery(*kl, *information, *aggregate, len(x))


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of values (K, N), and its error from the K draws of each of N data."""
    values = values.double()
    k, n = values.shape
    return float(values.mean()), float((values.var(0) / k).sum().sqrt() / n)
