"""The manual ELBO, which cross-checks Pyro's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.objectives.base import Estimate, Objective, check_count
from pyrovae.pairs.vae import VAE


@dataclass(frozen=True)
class ELBOTerms:
    """The ELBO's terms, one entry a datum, in nats.

    Attributes:
        reconstruction: E_q[log p(x|z)], (N,).
        kl: KL(q(z|x) || p(z)), (N,).
        elbo: reconstruction - beta * kl, (N,).
    """

    reconstruction: Tensor
    kl: Tensor
    elbo: Tensor


class ManualELBO(Objective):
    """The ELBO written from a VAE's parts: -KL(q(z|x) || p(z)) + E_q[log p(x|z)].

    Kingma & Welling (2014), eq. 3. No Pyro tracing: the parts are found through `model.__self__`.
    The expectation is a mean over z = rsample of q; the KL is closed where torch has it registered
    ("analytic"), and otherwise, or with "sampled", the mean of log q(z|x) - log p(z) over the same
    z. As any Pyro ELBO it is summed over the batch, and serves as SVI's loss.

    Args:
        num_particles: draws of z a datum.
        kl: "analytic" or "sampled".
        beta: factor of the KL (Higgins et al. 2017); `fit(beta=...)` sets it.

    Raises:
        ValueError: num_particles or kl out of range; on use, a pair that is not a VAE's own, or a
            posterior without `rsample`.

    Example:
        >>> import torch
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> ManualELBO(num_particles=5).terms(vae.model, vae.guide, torch.ones(3, 4)).kl.shape
        torch.Size([3])
    """

    def __init__(self, num_particles: int = 1, kl: str = "analytic", beta: float = 1.0) -> None:
        check_count(num_particles=num_particles)
        if kl not in ("analytic", "sampled"):
            raise ValueError(f"expected kl to be 'analytic' or 'sampled'; got {kl!r}")
        super().__init__(num_particles=num_particles)
        self.kl, self.beta = kl, beta

    def terms(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> ELBOTerms:
        """Return the ELBO's terms, each (N,).

        Args:
            model: `vae.model`.
            guide: `vae.guide` of the same VAE.
            x: data (N, *data_shape).
            *c: context, N rows each.
        """
        vae = _parts(model, guide)
        vae.register()
        shared = vae.shared(c)
        q, p = vae.posterior(x, *shared), vae.prior(*c)
        if not q.has_rsample:
            raise ValueError(
                f"ManualELBO expected a posterior with rsample; got {type(q).__name__}, whose "
                "gradient needs the score function: use Trace_ELBO"
            )
        z = q.rsample((self.num_particles,))
        p_x = vae.likelihood(z, *shared)
        reconstruction = p_x.log_prob(x).mean(0)
        kl = self._kl(q, p, z)
        return ELBOTerms(reconstruction, kl, reconstruction - self.beta * kl)

    def _kl(self, q: Any, p: Any, z: Tensor) -> Tensor:
        if self.kl == "analytic":
            try:
                return kl_divergence(q, p)
            except NotImplementedError:
                pass  # none is registered: sampled
        return (q.log_prob(z) - p.log_prob(z)).mean(0)

    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return the ELBO of each datum. Arguments and errors: see `terms`."""
        elbo = self.terms(model, guide, x, *c).elbo
        return Estimate(elbo, elbo)


def _parts(model: Any, guide: Any) -> VAE:
    owner = getattr(model, "__self__", None)
    functions = getattr(model, "__func__", None), getattr(guide, "__func__", None)
    same = owner is getattr(guide, "__self__", None)
    if isinstance(owner, VAE) and same and functions == (VAE.model, VAE.guide):
        return owner
    raise ValueError(
        "ManualELBO expected the model and guide of one VAE made of parts (vae.model, vae.guide); "
        f"got {model!r} and {guide!r}: for other pairs use Trace_ELBO or TraceMeanField_ELBO"
    )
