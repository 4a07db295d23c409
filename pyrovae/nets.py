"""Networks: tensors to tensors. They know no probability.

A part takes the *factory* of its network, a callable `(in_shape, out_shape) -> nn.Module`, so that
swapping a part never means resizing a layer by hand. The functions exported here make factories.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["gated_mlp", "mlp"]

Shape = tuple[int, ...]
NetFactory = Callable[[Shape, Shape], nn.Module]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}

WEIGHT_INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "glorot-normal": nn.init.xavier_normal_,
    "glorot-uniform": nn.init.xavier_uniform_,
    "he-normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "he-uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
}


class MLP(nn.Module):
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
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        widths = [math.prod(in_shape), *hidden]
        self.hidden = nn.Sequential()
        for before, after in pairwise(widths):
            self.hidden.append(nn.Linear(before, gates * after))
            self.hidden.append(activation())
        self.output = nn.Linear(widths[-1], math.prod(out_shape))
        if weight_init != "torch":
            for layer in self.hidden:
                if isinstance(layer, nn.Linear):
                    _initialise(layer, WEIGHT_INITS[weight_init], gates)
            _initialise(self.output, WEIGHT_INITS[weight_init], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., *in_shape) to (..., *out_shape)."""
        batch = x.shape[: x.dim() - len(self.in_shape)]
        h = self.hidden(x.reshape(*batch, math.prod(self.in_shape)))
        return self.output(h).reshape(*batch, *self.out_shape)


def _initialise(layer: nn.Linear, init: Callable[[Tensor], Tensor], gates: int) -> None:
    for weight in layer.weight.chunk(gates):  # each gate is a linear map with its own fan-out
        init(weight)
    nn.init.zeros_(layer.bias)


def _checked(hidden: Sequence[int], weight_init: str) -> tuple[int, ...]:
    if any(not isinstance(width, int) or width < 1 for width in hidden):
        raise ValueError(f"expected hidden to hold positive whole numbers; got {tuple(hidden)}")
    if weight_init not in {"torch", *WEIGHT_INITS}:
        raise ValueError(
            f"expected weight_init to be one of torch, {', '.join(WEIGHT_INITS)}; "
            f"got {weight_init!r}"
        )
    return tuple(hidden)


def mlp(
    hidden: Sequence[int] = (400,), activation: str = "relu", weight_init: str = "torch"
) -> NetFactory:
    """Return a factory of multilayer perceptrons: h = activation(W h + b), then a linear output.

    Args:
        hidden: width of each hidden layer; empty for a linear map.
        activation: a key of `ACTIVATIONS`.
        weight_init: "torch" (its default), or a key of `WEIGHT_INITS`, with zero biases.

    Raises:
        ValueError: an unknown name, or a width that is no positive whole number.

    Example:
        >>> mlp(hidden=(8,))((28, 28), (2, 3))(torch.zeros(5, 28, 28)).shape
        torch.Size([5, 2, 3])
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"expected activation to be one of {', '.join(ACTIVATIONS)}; got {activation!r}"
        )
    return partial(
        MLP,
        hidden=_checked(hidden, weight_init),
        activation=ACTIVATIONS[activation],
        gates=1,
        weight_init=weight_init,
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
        MLP, hidden=_checked(hidden, weight_init), activation=nn.GLU, gates=2,
        weight_init=weight_init,
    )  # fmt: skip


def connect(net: nn.Module | NetFactory, in_shape: Shape, out_shape: Shape) -> nn.Module:
    """Return the network (..., *in_shape) -> (..., *out_shape) that `net` is or makes, checked.

    Args:
        net: a factory, or a ready module.
        in_shape: shape of one input.
        out_shape: shape of one output.

    Raises:
        ValueError: the network does not give (2, *out_shape) for an input of (2, *in_shape).
    """
    module = net if isinstance(net, nn.Module) else net(in_shape, out_shape)
    if not isinstance(module, nn.Module):
        raise ValueError(
            "expected net to be an nn.Module or a factory (in_shape, out_shape) -> nn.Module, such "
            f"as nets.mlp(); got {net!r}, which made a {type(module).__name__}"
        )
    like = next(module.parameters(), torch.zeros(()))
    probe = torch.zeros(2, *in_shape, dtype=like.dtype, device=like.device)
    with torch.no_grad(), evaluating(module):
        try:
            got = tuple(module(probe).shape)
        except RuntimeError as error:
            raise ValueError(
                f"expected a network that takes (N, {_inner(in_shape)}); "
                f"{type(module).__name__} refused it: {error}"
            ) from error
    if got != (2, *out_shape):
        raise ValueError(
            f"expected the network to map (2, {_inner(in_shape)}) to (2, {_inner(out_shape)}); "
            f"got {got} from {type(module).__name__}"
        )
    return module


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Set modules to evaluation mode inside the block, and each submodule back to its own after."""
    modes = {m: m.training for module in modules for m in module.modules()}
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


@contextlib.contextmanager
def in_double(*modules: nn.Module) -> Iterator[None]:
    """Compute in float64 inside the block: floating parameters and buffers, back to theirs after.

    The parameters stay the same objects, and float32 values come back bit by bit.
    """
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]
    dtypes = [(t, t.dtype) for t in tensors]
    try:
        for t in tensors:
            t.data = t.data.double()
        yield
    finally:
        for t, dtype in dtypes:
            t.data = t.data.to(dtype)


def _inner(shape: Shape) -> str:
    return ", ".join(map(str, shape))
