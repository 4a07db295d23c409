"""The KL of a batch divided by latent number or by site; free bits."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.distributions import factors, kind
from pyrovae.importance import Latent, particles
from pyrovae.importance.differentiable import Scale
from pyrovae.objectives.base import Estimate, Objective, check_range


def mean_kl(
    model: Callable, guide: Callable, x: Tensor, c: Sequence[Tensor], per: str
) -> tuple[Tensor, Tensor, Scale]:
    """Return log p(x|z) by datum (N,), the batch's mean KL by group (G,), and the data's scale.

    A group is a latent number, or a site with all its numbers. The KL is closed where one is
    registered, and log q(z|x) - log p(z) at the draw otherwise; the site's scale (beta) and mask
    are in it.

    Raises:
        ValueError: no valid pair, or by number where q or p is no product.
    """
    found = particles(model, guide, x, *c)
    groups = torch.cat([kl_by_group(latent, per, len(x)).mean(0) for latent in found.latents])
    return found.log_likelihood[0], groups, found.scale


def kl_by_group(latent: Latent, per: str, n: int) -> Tensor:
    """Return the KL of a site's groups, (N, G)."""
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
    kl = kl.reshape(n, -1)
    if latent.mask is not None:
        kl = torch.where(torch.as_tensor(latent.mask).reshape(-1, 1), kl, 0.0)
    scale = latent.scale
    return kl * (scale.reshape(-1, 1) if isinstance(scale, Tensor) and scale.dim() else scale)


class FreeBits(Objective):
    """E_q[log p(x|z)] - sum_g max(nats, KL_g), KL_g the batch's mean KL of group g.

    Kingma et al. (2016), eq. 15: what a group tells of its datum is free up to so many nats, and
    has no gradient there, so that none collapses at the start. By Jensen's inequality the mean of
    max over batches is no less than the max over all data: the smaller the batch, the larger the
    penalty.

    Args:
        nats: lambda, of each group, >= 0; at 0 this is the ELBO (KLs in closed form are >= 0).
        per: "dimension", each latent number a group, where q and p are products; or "site".
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
        likelihood, kl, scale = mean_kl(model, guide, x, c, self.per)
        value = likelihood - kl.clamp(min=self.nats).sum()
        return Estimate(value, value, scale)
