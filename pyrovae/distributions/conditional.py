"""What likelihoods and posteriors are made of."""

import math
from abc import ABC, abstractmethod

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.nets import NetFactory, Shape, connect


class Conditional(nn.Module, ABC):
    """p(y | x) whose parameters a network computes from x: what likelihoods and posteriors are.

    To write a new one, subclass `likelihoods.Likelihood` or `posteriors.Posterior` and give

    - `distribution(params)`: from the network's output (..., *param_shape) to a Pyro distribution
      of batch shape (...) and event shape `event_shape` (so end it with `.to_event`);
    - `param_shape`, if it is not the event's shape;
    - `params(x, *c)`, if the network's output is not all that the parameters depend on.

    Calling it takes any number of left dimensions: x (..., *in_shape) gives batch shape (...).
    Shapes and dtype are checked here, once.

    Args:
        in_shape: shape of one x.
        event_shape: shape of one y.
        net: factory of the network, or the network, (..., *in_shape) -> (..., *param_shape). With
            a context it takes (..., prod(in_shape) + context_dim).
        context_dim: how many numbers of context each datum brings, over all context tensors; 0
            for a part that takes none.
    """

    def __init__(
        self, in_shape: Shape, event_shape: Shape, net: nn.Module | NetFactory, context_dim: int = 0
    ) -> None:
        super().__init__()
        self.in_shape, self.event_shape = tuple(in_shape), tuple(event_shape)
        self.context_dim = context_dim
        net_in = (math.prod(in_shape) + context_dim,) if context_dim else self.in_shape
        self.net = connect(net, net_in, self.param_shape)

    @property
    def param_shape(self) -> Shape:
        """Shape of the network's output for one datum."""
        return self.event_shape

    @abstractmethod
    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return the distribution of y for parameters (..., *param_shape)."""

    def forward(self, x: Tensor, *c: Tensor) -> TorchDistribution:
        """Return p(y | x, c) of batch shape x.shape[:-len(in_shape)], event shape `event_shape`.

        Raises:
            ValueError: x, c, or what `distribution` returns, of another shape or dtype.
        """
        params = self.params(x, *c)
        y = self.distribution(params)
        batch = params.shape[: params.dim() - len(self.param_shape)]
        if y.batch_shape != batch or tuple(y.event_shape) != self.event_shape:
            raise ValueError(
                f"{type(self).__name__}.distribution: expected batch_shape {tuple(batch)} and "
                f"event_shape {self.event_shape}; got {tuple(y.batch_shape)} and "
                f"{tuple(y.event_shape)}: declare the {len(self.event_shape)} event dimension(s) "
                "with .to_event"
            )
        return y

    def params(self, x: Tensor, *c: Tensor) -> Tensor:
        """Return the parameters (..., *param_shape) for x (..., *in_shape).

        Raises:
            ValueError: x or c of another shape or dtype.
        """
        name = type(self).__name__
        n = x.dim() - len(self.in_shape)
        if n < 0 or tuple(x.shape[n:]) != self.in_shape:
            raise ValueError(
                f"{name} expected an input of shape (..., {', '.join(map(str, self.in_shape))}); "
                f"got {tuple(x.shape)}"
            )
        batch = x.shape[:n]
        like = next(self.parameters(), x)
        if x.dtype != like.dtype:
            raise ValueError(
                f"{name} expected {like.dtype}, the dtype of its parameters; got {x.dtype}: "
                f"convert the data with x.to({like.dtype})"
            )
        given = self._with_context(x, batch, c)
        rows = given.reshape(math.prod(batch), *given.shape[n:])  # nets know one left dimension
        return self.net(rows).reshape(*batch, *self.param_shape)

    def _with_context(self, x: Tensor, batch: torch.Size, c: tuple[Tensor, ...]) -> Tensor:
        if not self.context_dim and not c:
            return x
        flat = [t.reshape(len(t), -1).to(x.dtype) for t in c]
        got = sum(t.shape[-1] for t in flat)
        if got != self.context_dim:
            raise ValueError(
                f"{type(self).__name__} expected context tensors with {self.context_dim} numbers a "
                f"datum in all; got {got} from shapes {[tuple(t.shape) for t in c]}: build the "
                "part with context_dim=..., or pass no context"
            )
        return torch.cat([x.flatten(len(batch)), *(t.expand(*batch, -1) for t in flat)], -1)
