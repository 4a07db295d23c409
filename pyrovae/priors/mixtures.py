"""Mixtures: with parameters of their own, or of the posterior at pseudo-inputs."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, Normal

from pyrovae import distributions
from pyrovae.priors.base import OfPosterior, Prior, check_components


class MixtureOfNormals(Prior):
    """p(z) = sum_k w_k N(z; m_k, diag(s_k^2)), with weights, means and scales learnt.

    Tomczak & Welling (2018), section 2. The means start as draws of N(0, I), the scales at 1, the
    weights equal. It ignores context.

    Args:
        latent_dim: length of z.
        num_components: number K of components.

    Raises:
        ValueError: num_components is not positive.
    """

    def __init__(self, latent_dim: int, num_components: int = 10) -> None:
        super().__init__(latent_dim)
        check_components(num_components)
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))
        self.logits = nn.Parameter(torch.zeros(num_components))

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return the mixture."""
        return distributions.MixtureOfNormals(self.loc, self.log_scale.exp(), self.logits)


class VampPrior(OfPosterior):
    """p(z) = (1/K) sum_k q(z | u_k): the posterior's mixture over K learnt pseudo-inputs u_k.

    Tomczak & Welling (2018), eq. 9. The posterior may be any that scores a given z and takes no
    context; z lives where the posterior's does. Normals and their mixtures are scored by matrix
    products; of others q(z | u_k) is computed for all k, much work where it is a flow that is slow
    to invert. The posterior is held by reference: see `OfPosterior`. It ignores context.

    Args:
        latent_dim: length of z.
        posterior: the part q(z|x) that the VAE uses.
        num_components: number K of pseudo-inputs.
        init: mean and standard deviation of the pseudo-inputs' initial normal draws, in units of x.
        clamp: range that the pseudo-inputs are clamped to, in units of x; None for no clamp.

    Raises:
        ValueError: num_components is not positive, the latent dimensions differ, the posterior
            takes context, or the clamp's range is empty.
    """

    def __init__(
        self,
        latent_dim: int,
        posterior: nn.Module,
        num_components: int = 500,
        init: tuple[float, float] = (0.05, 0.01),
        clamp: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        super().__init__(latent_dim, posterior)
        check_components(num_components)
        if clamp is not None and not clamp[0] < clamp[1]:
            raise ValueError(f"expected clamp=(low, high) with low < high; got {clamp}")
        self.space = getattr(posterior, "space", self.space)
        self.clamp = clamp
        if len(init) != 2:
            raise ValueError(f"expected init=(mean, standard deviation); got {init}")
        mean, sd = init
        self.pseudo_inputs = nn.Parameter(
            mean + sd * torch.randn(num_components, *posterior.data_shape)  # type: ignore[misc]
        )

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return the mixture of q(z | u_k)."""
        u = self.pseudo_inputs if self.clamp is None else self.pseudo_inputs.clamp(*self.clamp)
        q: Any = self.posterior_of(u)
        zeros = u.new_zeros(len(u))
        if isinstance(q, MultivariateNormal | LowRankMultivariateNormal):
            return distributions.MixtureOfNormals(q.loc, q.scale_tril, zeros)
        if isinstance(getattr(q, "base_dist", None), Normal):
            return distributions.MixtureOfNormals(q.base_dist.loc, q.base_dist.scale, zeros)
        if isinstance(q, distributions.PathwiseMixture):
            loc, scale = q.loc.flatten(0, 1), q.scale.flatten(0, 1)
            return distributions.MixtureOfNormals(loc, scale, q.logits.log_softmax(-1).flatten())
        return dist.MixtureSameFamily(dist.Categorical(logits=zeros), q)
