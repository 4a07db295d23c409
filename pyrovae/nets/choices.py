"""What every factory of networks offers: activations, and how weights start."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

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


def initialise(layer: nn.Linear | nn.Conv2d, weight_init: str, gates: int = 1) -> None:
    """Start a linear map as `weight_init` says, with zero bias; "torch" leaves it as it is.

    Args:
        layer: the map.
        weight_init: a key of `WEIGHT_INITS`, or "torch".
        gates: how many linear maps it holds; each has a fan-out of its own.
    """
    if weight_init == "torch":
        return
    for weight in layer.weight.chunk(gates):
        WEIGHT_INITS[weight_init](weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def check_hidden(hidden: Sequence[int], at_least: int = 0) -> tuple[int, ...]:
    """Return the widths as a tuple.

    Raises:
        ValueError: one is no positive whole number, or there are fewer than `at_least`.
    """
    if any(not isinstance(width, int) or width < 1 for width in hidden):
        raise ValueError(f"expected hidden to hold positive whole numbers; got {tuple(hidden)}")
    if len(hidden) < at_least:
        raise ValueError(f"expected hidden to hold {at_least} number(s) or more; got none")
    return tuple(hidden)


def check_weight_init(name: str) -> str:
    """Return the name of a way to start weights.

    Raises:
        ValueError: it is unknown.
    """
    if name not in {"torch", *WEIGHT_INITS}:
        raise ValueError(
            f"expected weight_init to be one of torch, {', '.join(WEIGHT_INITS)}; got {name!r}"
        )
    return name


def activation_class(name: str) -> type[nn.Module]:
    """Return the class of an activation.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"expected activation to be one of {', '.join(ACTIVATIONS)}; got {name!r}")
    return ACTIVATIONS[name]
