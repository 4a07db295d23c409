"""What every posterior is."""

import torch
from torch import Tensor, nn

from pyrovae.distributions import Conditional, observed
from pyrovae.nets import NetFactory, Shape, mlp


class Posterior(Conditional):
    """q(z|x): x (..., *data_shape) gives batch shape (...) and event shape (latent_dim,).

    `Conditional` says how to write a new one. `space` names where z lives, as that of `Prior` does.

    Args:
        data_shape: shape of one datum.
        latent_dim: length of z.
        net: factory of the network, or the network, data_shape -> param_shape.
        context_dim: numbers of context a datum; 0 for none.
        input_scale: x is multiplied by this before it enters the network (1/255 for pixel levels).
        missing: may entries of x be missing, NaN or 0 in a mask that is the last context tensor?
            The network then takes (2, *data_shape): x with zeros for them, and the mask.
    """

    space = "real"

    def __init__(
        self,
        data_shape: Shape,
        latent_dim: int,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        input_scale: float = 1.0,
        missing: bool = False,
    ) -> None:
        self.missing, self.latent_dim = missing, latent_dim
        in_shape = (2, *data_shape) if missing else tuple(data_shape)
        super().__init__(in_shape, (latent_dim,), net, context_dim)
        self.data_shape = tuple(data_shape)
        self.input_scale = input_scale

    def params(self, x: Tensor, *c: Tensor) -> Tensor:
        """Return the parameters (..., *param_shape) for x (..., *data_shape)."""
        scaled = x if self.input_scale == 1.0 else x * self.input_scale
        if self.missing:
            seen, c = observed(x, c, self.data_shape, self.context_dim)
            filled = torch.where(seen, scaled, 0.0)
            scaled = torch.stack([filled, seen.to(x.dtype)], -1 - len(self.data_shape))
        return super().params(scaled, *c)
