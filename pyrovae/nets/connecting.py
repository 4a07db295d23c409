"""From a factory, or a ready module, to the network that a part asks for."""

import torch
from torch import nn

from pyrovae.nets.base import NetFactory, Shape
from pyrovae.nets.modes import evaluating


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


def _inner(shape: Shape) -> str:
    return ", ".join(map(str, shape))
