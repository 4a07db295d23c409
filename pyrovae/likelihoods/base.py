"""What every likelihood is."""

import math

import torch
from torch import Tensor, nn

from pyrovae.distributions import Conditional
from pyrovae.nets import NetFactory, Shape, mlp


class Likelihood(Conditional):
    """p(x|z): z (..., latent_dim) gives batch shape (...) and event shape `data_shape`.

    `Conditional` says how to write a new one; `params_of_data` lets decoding start at the data's
    mean.

    Args:
        latent_dim: length of z.
        data_shape: shape of one datum.
        net: factory of the network, or the network, (latent_dim,) -> param_shape.
        context_dim: numbers of context a datum; 0 for none.
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
    ) -> None:
        super().__init__((latent_dim,), data_shape, net, context_dim)
        self.latent_dim, self.data_shape = latent_dim, self.event_shape

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return parameters (*param_shape) under which E[x|z] is the data's mean, whatever z.

        Args:
            x: data (N, *data_shape).
        """
        raise ValueError(f"{type(self).__name__} has no rule from data to its parameters")

    def start_at_mean(self, x: Tensor) -> None:
        """Set the network's output bias so that decoding starts at the data's mean.

        For a Bernoulli the bias is the logit of each pixel's training mean, clipped to
        [0.001, 0.999], as in Burda et al. (2016).

        Args:
            x: training data (N, *data_shape).

        Raises:
            ValueError: the network has no `output.bias` (those of `nets` have), x has another
                shape or no rows, or the likelihood has no such rule.
        """
        bias = getattr(getattr(self.net, "output", None), "bias", None)
        if not isinstance(bias, Tensor) or bias.numel() != math.prod(self.param_shape):
            raise ValueError(
                "start_at_mean expected a network whose last linear map is its attribute `output`; "
                f"got {type(self.net).__name__}"
            )
        if len(x) == 0 or tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(
                f"expected data of shape (N, {', '.join(map(str, self.data_shape))}) with N > 0; "
                f"got {tuple(x.shape)}"
            )
        with torch.no_grad():
            bias.copy_(self.params_of_data(x.to(bias)).reshape(-1))


def logit(p: Tensor) -> Tensor:
    """Return the logit of a mean, clipped to [0.001, 0.999]."""
    return p.clamp(1e-3, 1 - 1e-3).logit()
