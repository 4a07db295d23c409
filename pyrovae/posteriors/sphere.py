"""Posteriors on the unit sphere."""

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions.sphere import SPHERE, check_sphere, von_mises_fisher
from pyrovae.nets import NetFactory, Shape, mlp
from pyrovae.posteriors.base import Posterior


class VonMisesFisher(Posterior):
    """q(z|x) = vMF(z; mu(x), kappa(x)) on the unit sphere.

    Davidson et al. (2018). The network gives a vector, mu times its length, and a number whose
    softplus is kappa. Draws carry gradients: Wood (1994)'s rejection for the angle, differentiated
    implicitly. Arguments: see `Posterior`; latent_dim is at least 2.

    Raises:
        ValueError: latent_dim is 1.

    Example:
        >>> import torch
        >>> q = VonMisesFisher(data_shape=(28, 28), latent_dim=3)
        >>> q(torch.zeros(5, 28, 28)).rsample().shape
        torch.Size([5, 3])
    """

    space = SPHERE

    def __init__(
        self,
        data_shape: Shape,
        latent_dim: int,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        input_scale: float = 1.0,
        missing: bool = False,
    ) -> None:
        check_sphere(latent_dim)
        super().__init__(data_shape, latent_dim, net, context_dim, input_scale, missing)

    @property
    def param_shape(self) -> Shape:
        """(latent_dim + 1,): a direction of any length, and a raw concentration."""
        return (self.latent_dim + 1,)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return vMF(mu, kappa) for params (..., latent_dim + 1)."""
        return von_mises_fisher(params[..., :-1], params[..., -1])
