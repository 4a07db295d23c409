"""Priors on the unit sphere."""

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae import distributions
from pyrovae.distributions.sphere import SPHERE, check_sphere, von_mises_fisher
from pyrovae.priors.base import Prior


class VonMisesFisher(Prior):
    """p(z) = vMF(z; m, k) on the unit sphere, uniform (k = 0) unless m and k are learnt.

    Davidson et al. (2018). Learnt, m starts in a random direction and k at log 2. It ignores
    context.

    Args:
        latent_dim: length of z, at least 2: the sphere has one dimension less.
        learnt: learn m and k?

    Raises:
        ValueError: latent_dim is 1.

    Example:
        >>> VonMisesFisher(latent_dim=2)().log_prob(torch.tensor([0.0, 1.0]))  # -log 2 pi
        tensor(-1.8379)
    """

    space = SPHERE
    direction: Tensor
    concentration: Tensor

    def __init__(self, latent_dim: int, learnt: bool = False) -> None:
        super().__init__(latent_dim)
        check_sphere(latent_dim)
        self.learnt = learnt
        if learnt:
            self.direction = nn.Parameter(torch.randn(latent_dim))
            self.raw_concentration = nn.Parameter(torch.zeros(()))  # its softplus is k
        else:
            self.register_buffer("direction", torch.eye(1, latent_dim).squeeze(0))
            self.register_buffer("concentration", torch.zeros(()))

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return vMF(m, k)."""
        if self.learnt:
            return von_mises_fisher(self.direction, self.raw_concentration)
        return distributions.VonMisesFisher(self.direction, self.concentration)
