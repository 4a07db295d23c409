"""Posteriors that are mixtures."""

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import PathwiseMixture
from pyrovae.nets import NetFactory, Shape, mlp
from pyrovae.posteriors.base import Posterior


class MixtureOfNormals(Posterior):
    """q(z|x) = sum_k w_k(x) N(z; m_k(x), diag(s_k(x)^2)), with pathwise gradients.

    Figurnov et al. (2018), Graves (2016): draws are differentiated through their distribution
    functions, weights included, so no score function enters; these gradients vary much where
    components stand some ten standard deviations apart. The KL is sampled. The network gives (m,
    log s^2, logit of w); a random constant is added to each m_k, or all components would start as
    one.

    Args:
        data_shape: shape of one datum.
        latent_dim: length of z.
        net: factory of the network, or the network, data_shape -> (K, 2 latent_dim + 1).
        context_dim: numbers of context a datum; 0 for none.
        input_scale: x is multiplied by this before it enters the network.
        missing: may entries of x be missing?
        num_components: number K of components.

    Raises:
        ValueError: num_components is not positive.

    Example:
        >>> q = MixtureOfNormals(data_shape=(28, 28), latent_dim=3, num_components=5)
        >>> q(torch.zeros(4, 28, 28)).rsample().shape
        torch.Size([4, 3])
    """

    start: Tensor

    def __init__(
        self,
        data_shape: Shape,
        latent_dim: int,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        input_scale: float = 1.0,
        missing: bool = False,
        num_components: int = 5,
    ) -> None:
        if not isinstance(num_components, int) or num_components < 1:
            raise ValueError(
                f"expected num_components to be a positive whole number; got {num_components!r}"
            )
        self.num_components = num_components  # `param_shape` asks for it
        super().__init__(data_shape, latent_dim, net, context_dim, input_scale, missing)
        self.register_buffer("start", torch.randn(num_components, latent_dim))

    @property
    def param_shape(self) -> Shape:
        """(K, 2 latent_dim + 1): means, log variances and a logit."""
        return (self.num_components, 2 * self.latent_dim + 1)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return the mixture for params (..., K, 2 latent_dim + 1)."""
        d = self.latent_dim
        loc, log_variance, logits = params.split([d, d, 1], -1)
        return PathwiseMixture(self.start + loc, (0.5 * log_variance).exp(), logits.squeeze(-1))
