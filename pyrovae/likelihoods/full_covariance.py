"""Real data whose dimensions are correlated given z."""

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae import distributions
from pyrovae.likelihoods.base import Likelihood
from pyrovae.nets import NetFactory, Shape, mlp


class FullCovarianceNormal(Likelihood):
    """p(x|z) = N(x; mu(z), W(z) W(z)' + diag sigma(z)^2), W of `rank` columns.

    A covariance from the decoder, as in Dorta et al. (2018), whose precision is sparse where this
    covariance is of low rank. The network gives mu, log(sigma - min_scale) and W's columns. Where a
    pixel is constant, log p(x) is unbounded without the floor. The distribution scores any part of
    x exactly: `distributions.LowRankNormal.log_prob_of`.

    Args:
        latent_dim: length of z.
        data_shape: shape of one datum.
        net: factory of the network, or the network, (latent_dim,) -> (2 + rank, *data_shape).
        context_dim: numbers of context a datum; 0 for none.
        rank: columns of W, from 1 to the number of dimensions of x.
        min_scale: what sigma exceeds.

    Raises:
        ValueError: rank or min_scale out of its range.

    Example:
        >>> p = FullCovarianceNormal(latent_dim=2, data_shape=(4, 3), rank=2)(torch.zeros(5, 2))
        >>> x, seen = torch.zeros(5, 4, 3), torch.rand(5, 4, 3) < 0.5
        >>> p.log_prob_of(x, seen).shape
        torch.Size([5])
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        rank: int = 1,
        min_scale: float = 0.5 / 255,
    ) -> None:
        d = math.prod(data_shape)
        if not isinstance(rank, int) or not 1 <= rank <= d:
            raise ValueError(
                f"expected rank to be a whole number from 1 to {d}, the dimensions of x; got "
                f"{rank!r}"
            )
        if not 0 < min_scale < math.inf:
            raise ValueError(f"expected min_scale to be a positive number; got {min_scale!r}")
        self.rank, self.min_scale = rank, min_scale  # `param_shape` asks for them
        super().__init__(latent_dim, data_shape, net, context_dim)

    @property
    def param_shape(self) -> Shape:
        """(2 + rank, *data_shape): mean, log of the diagonal's root, and W's columns."""
        return (2 + self.rank, *self.event_shape)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return N(mu, W W' + diag sigma^2) for params (..., 2 + rank, *data_shape)."""
        n = len(self.event_shape)
        columns = params.movedim(-1 - n, -1)
        scale = self.min_scale + columns[..., 1].exp()
        return distributions.LowRankNormal(columns[..., 0], columns[..., 2:], scale, event_dim=n)

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return the mean, with log(sigma - min_scale) = 0 and W = 0."""
        mean = x.mean(0)
        return torch.stack([mean, *(torch.zeros_like(mean) for _ in range(1 + self.rank))])
