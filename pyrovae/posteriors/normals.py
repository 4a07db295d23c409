"""Normal posteriors."""

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrovae.distributions import diagonal_normal
from pyrovae.nets import Shape
from pyrovae.posteriors.base import Posterior


class MeanFieldNormal(Posterior):
    """q(z|x) = N(mu(x), diag(sigma(x)^2)); the network gives (mu, log sigma^2).

    Kingma & Welling (2014), eq. 9. Arguments: see `Posterior`.

    Example:
        >>> q = MeanFieldNormal(data_shape=(28, 28), latent_dim=20)
        >>> q(torch.zeros(5, 28, 28)).rsample().shape
        torch.Size([5, 20])
    """

    @property
    def param_shape(self) -> Shape:
        """(2, latent_dim): mean and log variance."""
        return (2, *self.event_shape)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return N(mu, diag(sigma^2)) for params (..., 2, latent_dim)."""
        loc, log_variance = params.unbind(-2)
        return diagonal_normal(loc, (0.5 * log_variance).exp())


class FullRankNormal(Posterior):
    """q(z|x) = N(mu(x), L(x) L(x)'), L lower triangular with a positive diagonal.

    The network gives mu, the logarithms of L's diagonal, and the entries below it, row by row.
    Arguments: see `Posterior`.

    Example:
        >>> q = FullRankNormal(data_shape=(28, 28), latent_dim=3)
        >>> q(torch.zeros(5, 28, 28)).scale_tril.shape
        torch.Size([5, 3, 3])
    """

    @property
    def param_shape(self) -> Shape:
        """(d + d (d + 1) / 2,)."""
        (d,) = self.event_shape
        return (d + d * (d + 1) // 2,)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return N(mu, L L') for params (..., d + d (d + 1) / 2)."""
        (d,) = self.event_shape
        loc, log_diagonal, below = params.split([d, d, d * (d - 1) // 2], -1)
        i, j = torch.tril_indices(d, d, -1, device=params.device)
        scale_tril = torch.diag_embed(log_diagonal.exp())
        scale_tril[..., i, j] = below
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)
