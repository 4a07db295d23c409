"""The manual ELBO, which cross-checks Pyro's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.infer
import torch
from pyro.infer.util import torch_item
from pyro.util import warn_if_nan
from torch import Tensor
from torch.distributions import kl_divergence

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


class ManualELBO(pyro.infer.Trace_ELBO):
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
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> ManualELBO(num_particles=5).terms(vae.model, vae.guide, torch.ones(3, 4)).kl.shape
        torch.Size([3])
    """

    def __init__(self, num_particles: int = 1, kl: str = "analytic", beta: float = 1.0) -> None:
        if not isinstance(num_particles, int) or num_particles < 1:
            raise ValueError(
                f"expected num_particles to be a positive whole number; got {num_particles!r}"
            )
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

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Tensor) -> Tensor:
        """Return -sum of the ELBO over the batch."""
        loss = -self.terms(model, guide, *args).elbo.sum()
        warn_if_nan(loss, "loss")
        return loss

    def loss(self, model: Callable, guide: Callable, *args: Tensor) -> float:
        """Return the differentiable loss as a number."""
        with torch.no_grad():
            return torch_item(self.differentiable_loss(model, guide, *args))

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Tensor) -> float:
        """Return the loss as a number, and leave its gradient in the parameters' `.grad`."""
        loss = self.differentiable_loss(model, guide, *args)
        loss.backward(retain_graph=self.retain_graph)
        return torch_item(loss)


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
