"""The KL of a batch divided by latent number or by site; free bits."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.distributions import factors, kind
from pyrovae.importance import Latent, Particles, particles
from pyrovae.importance.differentiable import Scale
from pyrovae.objectives.base import Estimate, Objective, check_range
from pyrovae.objectives.joined import batch_sum


def one_draw(objective: str, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Particles:
    """Draw z ~ q(z|x) once a datum, with its gradient; arguments as of `importance.particles`.

    Raises:
        ValueError: no valid pair; no latents; draws without a gradient; latents of the guide alone.
    """
    found = particles(model, guide, x, *c)
    if not found.crossed:
        raise ValueError(f"{objective} expected a latent site; got a guide without any")
    if found.log_score is not None:
        raise ValueError(
            f"{objective} expected draws with a gradient (rsample) at every site; got one without: "
            "take Trace_ELBO (--objective trace) or IWAE, which have the score function's, or a "
            "guide such as straight-through or gumbel-softmax"
        )
    if len(found.crossed) != len(found.latents):
        raise ValueError(
            f"{objective} expected every latent of the guide in the model too; got auxiliary ones, "
            "which no KL divides by: take Trace_ELBO or IWAE"
        )
    return found


def counted(latent: Latent) -> Tensor:
    """Return whether a datum has the latent, by its mask, (N,), bool."""
    mask = True if latent.mask is None else latent.mask
    return torch.as_tensor(mask, device=latent.value.device).expand(len(latent.value))


def divided_kl(latent: Latent, per: str) -> Tensor:
    """Return KL(q(z|x) || p(z)) of a site by datum and group, (N, G), 0 where it is masked.

    A group is a latent number ("dimension"), or all of them ("site"). The KL is closed where one is
    registered, and log q(z|x) - log p(z) at the draw otherwise; the site's scale (beta) is in it.

    Raises:
        ValueError: by number, where q or p is no product.
    """
    q, p = latent.guide, latent.model
    if per == "dimension":
        q, p = factors(q), factors(p)
        if q is None or p is None:
            raise ValueError(
                f"site {latent.name!r}: expected products of univariate distributions, .to_event, "
                f"for the KL of each number; got q, {kind(latent.guide)}, and p, "
                f"{kind(latent.model)}: take per='site'"
            )
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        kl = q.log_prob(latent.value) - p.log_prob(latent.value)
    kl = kl.reshape(len(latent.value), -1) * _column(latent.scale, kl)
    return kl if latent.mask is None else torch.where(counted(latent).unsqueeze(1), kl, 0.0)


def batch_mean(kl: Tensor, counts: Tensor, scale: Scale) -> Tensor:
    """Return the mean over the data that count, each as much as its scale, (N, G) -> (G,).

    Those of all processes, where several share a batch.
    """
    weight = counts * _column(scale, kl)
    total, of = batch_sum((weight * kl).sum(0)), batch_sum(weight.sum(0))
    return total / of.clamp(min=torch.finfo(kl.dtype).tiny)


def _column(scale: Scale, like: Tensor) -> Tensor:
    """Return a scale as (N, 1), or (1, 1) where it is one for all."""
    return torch.as_tensor(scale, dtype=like.dtype, device=like.device).reshape(-1, 1)


class FreeBits(Objective):
    """L = E_q[log p(x|z)] - sum_g max(nats, KL_g), KL_g the batch's mean KL of group g.

    Kingma et al. (2016), eq. 15: what a group tells of its datum is free up to so many nats, and
    has no gradient there, so that none collapses at the start. By Jensen's inequality the mean of
    max over batches is no less than the max over all data: the smaller the batch, the larger the
    penalty.

    The mean is over the data that have the group (masks), each as much as its scale, and the
    penalty is theirs alone. The KL is closed where one is registered, and then must not move with
    what the guide draws later, bottom-up: `fit` refuses such a pair, Pyro's SVI does not.

    Args:
        nats: lambda, of each group, >= 0; at 0 this is the ELBO (KLs in closed form are >= 0).
        per: "dimension", each latent number a group, where q and p are products; or "site".

    Raises:
        ValueError: an argument out of its range; on use, draws of the guide without a gradient,
            latents of the guide alone, or a group by number of what is no product.
    """

    couples_batch = True
    analytic_kl = True

    def __init__(self, nats: float = 0.1, per: str = "dimension") -> None:
        check_range("nats", nats, 0, float("inf"))
        if per not in ("dimension", "site"):
            raise ValueError(f"expected per to be 'dimension' or 'site'; got {per!r}")
        super().__init__()
        self.nats, self.per = nats, per

    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return the objective by datum. Arguments and errors: see `Objective`."""
        found = one_draw("FreeBits", model, guide, x, *c)
        value = found.log_likelihood[0]
        for latent in found.latents:
            counts = counted(latent).unsqueeze(1)
            kl = batch_mean(divided_kl(latent, self.per), counts, found.scale)
            value = value - (counts * kl.clamp(min=self.nats)).sum(1)
        return Estimate(value, value, found.scale)
