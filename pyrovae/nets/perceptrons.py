"""Perceptrons: a datum as one vector."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from pyrovae.nets.base import Net, NetFactory, Shape
from pyrovae.nets.choices import activation_class, check_hidden, check_weight_init, initialise


class MLP(Net):
    """A multilayer perceptron (..., *in_shape) -> (..., *out_shape).

    Args:
        in_shape: shape of one input; flattened inside.
        out_shape: shape of one output.
        hidden: width of each hidden layer; empty for a linear map.
        activation: the nonlinearity's class.
        gates: linear maps that each hidden unit takes: 1, or 2 for `nn.GLU`.
        weight_init: a key of `WEIGHT_INITS` (biases are then zero), or "torch" for its own default.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden: Sequence[int],
        activation: type[nn.Module],
        gates: int,
        weight_init: str,
    ) -> None:
        super().__init__(in_shape, out_shape)
        widths = [math.prod(in_shape), *hidden]
        self.hidden = nn.Sequential()
        for before, after in pairwise(widths):
            self.hidden.append(nn.Linear(before, gates * after))
            self.hidden.append(activation())
        self.output = nn.Linear(widths[-1], math.prod(out_shape))
        for layer in self.hidden:
            if isinstance(layer, nn.Linear):
                initialise(layer, weight_init, gates)
        initialise(self.output, weight_init)

    def rows(self, x: Tensor) -> Tensor:
        """Map (N, *in_shape) to (N, prod(out_shape))."""
        return self.output(self.hidden(x.reshape(len(x), math.prod(self.in_shape))))


def mlp(
    hidden: Sequence[int] = (400,), activation: str = "relu", weight_init: str = "torch"
) -> NetFactory:
    """Return a factory of multilayer perceptrons: h = activation(W h + b), then a linear output.

    Rumelhart et al. (1986).

    Args:
        hidden: width of each hidden layer; empty for a linear map.
        activation: a key of `ACTIVATIONS`.
        weight_init: "torch" (its default), or a key of `WEIGHT_INITS`, with zero biases.

    Raises:
        ValueError: an unknown name, or a width that is no positive whole number.

    Example:
        >>> import torch
        >>> mlp(hidden=(8,))((28, 28), (2, 3))(torch.zeros(5, 28, 28)).shape
        torch.Size([5, 2, 3])
    """
    return partial(
        MLP,
        hidden=check_hidden(hidden),
        activation=activation_class(activation),
        gates=1,
        weight_init=check_weight_init(weight_init),
    )


def gated_mlp(hidden: Sequence[int] = (300, 300), weight_init: str = "he-normal") -> NetFactory:
    """Return a factory of gated perceptrons: h = (W h + b) * sigmoid(V h + c), then a linear map.

    Args:
        hidden: width of each hidden layer.
        weight_init: "torch" (its default), or a key of `WEIGHT_INITS`, with zero biases.

    Raises:
        ValueError: an unknown name, or a width that is no positive whole number.

    Source: Dauphin et al. (2017); with these widths and weights, Tomczak & Welling (2018).
    """
    return partial(
        MLP, hidden=check_hidden(hidden), activation=nn.GLU, gates=2,
        weight_init=check_weight_init(weight_init),
    )  # fmt: skip
