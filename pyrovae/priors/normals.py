"""Normal priors."""

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrovae.distributions import diagonal_normal
from pyrovae.priors.base import Prior


class StandardNormal(Prior):
    """p(z) = N(0, I). Kingma & Welling (2014). It ignores context.

    Args:
        latent_dim: length of z.

    Example:
        >>> StandardNormal(latent_dim=2)().log_prob(torch.zeros(2))  # -log 2 pi
        tensor(-1.8379)
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("loc", torch.zeros(latent_dim))
        self.register_buffer("scale", torch.ones(latent_dim))

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return N(0, I)."""
        return diagonal_normal(self.loc, self.scale)
