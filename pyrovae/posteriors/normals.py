"""Normal posteriors."""

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import diagonal_normal
from pyrovae.nets import NetFactory, Shape, mlp
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

    Kingma & Welling (2019), section 2.5.1. The network gives mu, the logarithms of L's diagonal,
    and the entries below it, row by row.
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


class LowRankNormal(Posterior):
    """q(z|x) = N(mu(x), W(x) W(x)' + diag d(x)), W of `rank` columns.

    Rezende et al. (2014), section 4.3. The network gives mu, log d and W. The diagonal starts near
    1 and W small.

    Args:
        data_shape: shape of one datum.
        latent_dim: length of z.
        net: factory of the network, or the network.
        context_dim: numbers of context a datum; 0 for none.
        input_scale: x is multiplied by this before it enters the network.
        missing: may entries of x be missing?
        rank: columns of W, 1 <= rank <= latent_dim.

    Raises:
        ValueError: rank out of its range.

    Example:
        >>> q = LowRankNormal(data_shape=(4,), latent_dim=3, rank=1)
        >>> q(torch.zeros(5, 4)).cov_factor.shape
        torch.Size([5, 3, 1])
    """

    def __init__(
        self,
        data_shape: Shape,
        latent_dim: int,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        input_scale: float = 1.0,
        missing: bool = False,
        rank: int = 1,
    ) -> None:
        if not isinstance(rank, int) or not 1 <= rank <= latent_dim:
            raise ValueError(
                f"expected rank to be a whole number from 1 to latent_dim {latent_dim}; got "
                f"{rank!r}"
            )
        self.rank = rank  # `param_shape` asks for it
        super().__init__(data_shape, latent_dim, net, context_dim, input_scale, missing)

    @property
    def param_shape(self) -> Shape:
        """(2 + rank, latent_dim): mean, log of the diagonal, and W's columns."""
        return (2 + self.rank, *self.event_shape)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return N(mu, W W' + diag d) for params (..., 2 + rank, latent_dim)."""
        loc, log_diagonal = params[..., 0, :], params[..., 1, :]
        return dist.LowRankMultivariateNormal(loc, params[..., 2:, :].mT, log_diagonal.exp())
