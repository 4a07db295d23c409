"""What every network is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
NetFactory = Callable[[Shape, Shape], nn.Module]


class Net(nn.Module, ABC):
    """A network (..., *in_shape) -> (..., *out_shape).

    To write a new one, give `rows`, and an attribute `output`, the last map, whose `bias` has one
    entry for each of the result's, in its order: `Likelihood.start_at_mean` sets it. A row of the
    result depends on that row of the input alone.

    Args:
        in_shape: shape of one input.
        out_shape: shape of one output.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)

    @abstractmethod
    def rows(self, x: Tensor) -> Tensor:
        """Map (N, *in_shape) to N rows of prod(out_shape) entries, in any shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., *in_shape) to (..., *out_shape)."""
        batch = x.shape[: x.dim() - len(self.in_shape)]
        rows = self.rows(x.reshape(math.prod(batch), *self.in_shape))
        return rows.reshape(*batch, *self.out_shape)


class Shift(nn.Module):
    """x + b, a learnt b for each entry: the last map of networks whose own maps share theirs.

    Args:
        shape: shape of one x.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.bias = nn.Parameter(torch.zeros(math.prod(shape)))  # flat, as a linear map's

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, *shape) to the same shape."""
        return x + self.bias.reshape(self.shape)
