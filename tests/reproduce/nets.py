"""The networks of Tomczak & Welling (2018), where they are not pyrovae's own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyrovae import nets

Shape = tuple[int, ...]
Factory = Callable[[Shape, Shape], nn.Module]

GATED = nets.gated_mlp(hidden=(300, 300), weight_init="he-normal")
UNITS = 300


class Bounded(nn.Module):
    """A network whose output (N, 2, ...) is a location and a clipped logarithm of scale.

    Args:
        net: the network.
        low: of the logarithm, at the least.
        high: at the most.
        squash: is the location sigma(.), inside (0, 1)?
    """

    def __init__(self, net: nn.Module, low: float, high: float, squash: bool = False) -> None:
        super().__init__()
        self.net, self.low, self.high, self.squash = net, low, high, squash

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, *in_shape) to (N, 2, ...)."""
        loc, log_scale = self.net(x).unbind(1)
        loc = loc.sigmoid() if self.squash else loc
        return torch.stack([loc, log_scale.clamp(self.low, self.high)], 1)


def clipped(net: Factory) -> Factory:
    """Return a factory of the same networks with log-variances in [-6, 2]."""
    return lambda in_shape, out_shape: Bounded(net(in_shape, out_shape), -6.0, 2.0)


def logistic(net: Factory) -> Factory:
    """Return the same for pixels: means in (0, 1), log-scales in [-4.5, 0]."""
    return lambda in_shape, out_shape: Bounded(net(in_shape, out_shape), -4.5, 0.0, squash=True)


class Joined(nn.Module):
    """A layer of 300 gated units for each of two inputs, a joint one, and a linear map.

    Args:
        in_shape: (n + second,), the inputs side by side.
        out_shape: of the output.
        second: length of the second input.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape, second: int) -> None:
        super().__init__()
        self.lengths = [in_shape[0] - second, second]
        linear = nets.gated_mlp(hidden=())
        self.first = nn.ModuleList(
            nn.Sequential(linear((n,), (2 * UNITS,)), nn.GLU()) for n in self.lengths
        )
        self.joint = nets.gated_mlp(hidden=(UNITS,))((2 * UNITS,), out_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, *in_shape) to (N, *out_shape)."""
        parts = x.split(self.lengths, -1)
        layers = zip(self.first, parts, strict=True)
        found: Tensor = self.joint(torch.cat([layer(part) for layer, part in layers], -1))
        return found


def joined(second: int) -> Factory:
    """Return a factory of `Joined`."""
    return lambda in_shape, out_shape: Joined(in_shape, out_shape, second)
