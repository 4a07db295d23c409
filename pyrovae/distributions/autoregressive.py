"""Images drawn pixel by pixel, each from all that came before it."""

import math
from typing import Protocol

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn import functional


class RasterNet(Protocol):
    """What `Autoregressive` asks of its network: a pass over the rows above, and one across a row.

    The two make its call: net(x, s) = across(x, above(x, s)). Images are (N, 1, H, W).
    """

    def __call__(self, x: Tensor, s: Tensor) -> Tensor:
        """Return logits (N, num_levels, H, W), those of a pixel from the pixels before it."""

    def above(self, x: Tensor, s: Tensor) -> list[Tensor]:
        """Return what row r takes from the rows before r and from s: (N, any, H, W) each."""

    def across(self, x: Tensor, above: list[Tensor]) -> Tensor:
        """Return the logits of rows, each from its own pixels to the left and from `above`."""


class Autoregressive(TorchDistribution):
    """p(x) = prod_i p(x_i | x_1, ..., x_(i-1)), the pixels i in raster order, x_i in 0, ..., L - 1.

    Images are (H, W), or (C, H, W) with the channels of a pixel one after the other. `log_prob`
    runs the network once; `sample` runs its pass over the rows above once a row, the pass across
    the row once a pixel. There is no `mean`: that is a sum over all images.

    Args:
        net: logits of each pixel from those before it and from `condition`.
        condition: (..., K, *event_shape), K maps of what the network is told besides.
        event_dim: 2 for images (H, W), 3 for (C, H, W).
        num_levels: L.
    """

    arg_constraints = {"condition": constraints.real}
    has_rsample = False

    def __init__(
        self,
        net: RasterNet,
        condition: Tensor,
        event_dim: int = 2,
        num_levels: int = 2,
        validate_args: bool | None = None,
    ) -> None:
        self.net, self.condition, self.num_levels = net, condition, num_levels
        batch = condition.shape[: -1 - event_dim]
        super().__init__(batch, condition.shape[-event_dim:], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Whole numbers 0, ..., num_levels - 1."""
        return constraints.independent(
            constraints.integer_interval(0, self.num_levels - 1), len(self.event_shape)
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return sum_i log p(x_i | x_<i), shape the broadcast batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        n = len(self.event_shape)
        batch = torch.broadcast_shapes(value.shape[:-n], self.batch_shape)
        x = _laid_out(value.expand(*batch, *self.event_shape), n)
        x = x.reshape(math.prod(batch), 1, *x.shape[-2:])
        logits = self.net(x, self._rows(batch))
        log_p = -functional.cross_entropy(logits, x.squeeze(1).long(), reduction="none")
        return log_p.sum((1, 2)).reshape(batch)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw pixel after pixel: shape (*sample_shape, *batch_shape, *event_shape)."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            s = self._rows(shape)
            x = s.new_zeros(len(s), 1, *s.shape[-2:])
            for r in range(x.shape[-2]):
                above = self.net.above(x[:, :, : r + 1], s[:, :, : r + 1])
                above = [t[:, :, r:] for t in above]
                for i in range(x.shape[-1]):
                    logits = self.net.across(x[:, :, r : r + 1], above)[:, :, 0, i]
                    x[:, 0, r, i] = logits.softmax(-1).multinomial(1).squeeze(-1).to(x.dtype)
        if len(self.event_shape) == 3:
            c, _, w = self.event_shape
            x = x.squeeze(1).unflatten(-1, (w, c)).movedim(-1, -3).contiguous()
        return x.reshape(shape + self.event_shape)

    def expand(
        self, batch_shape: torch.Size, _instance: "Autoregressive | None" = None
    ) -> "Autoregressive":
        """Return the distribution with its condition expanded to the batch shape."""
        n = len(self.event_shape)
        condition = self.condition.expand(*batch_shape, *self.condition.shape[-1 - n :])
        return type(self)(self.net, condition, n, self.num_levels, self._validate_args)

    def _rows(self, batch: torch.Size) -> Tensor:
        """Return the condition of each image of a batch, (prod(batch), K, H, W)."""
        s = _laid_out(self.condition, len(self.event_shape))
        return s.expand(*batch, *s.shape[-3:]).reshape(math.prod(batch), *s.shape[-3:])


def _laid_out(x: Tensor, event_dim: int) -> Tensor:
    """Return (..., H, W) as it is, and (..., C, H, W) as (..., H, W * C), a pixel's C together."""
    return x.movedim(-3, -1).flatten(-2) if event_dim == 3 else x
