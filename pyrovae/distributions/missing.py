"""Which entries of a datum are observed."""

import math

from torch import Tensor

from pyrovae.nets import Shape


def observed(
    x: Tensor, c: tuple[Tensor, ...], data_shape: Shape, context_dim: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return where x is observed, and the context that is left.

    An entry is missing where x is NaN, or where the mask is 0. The mask is the last context tensor,
    (N, *data_shape), if the context holds prod(data_shape) numbers a datum more than `context_dim`.

    Args:
        x: data (..., N, *data_shape).
        c: context, N rows each.
        data_shape: shape of one datum.
        context_dim: numbers of context a datum, the mask aside.

    Returns:
        A boolean tensor like x, and c without the mask.
    """
    seen = ~x.isnan()
    mask, rest = split_mask(c, data_shape, context_dim)
    return (seen if mask is None else seen & mask), rest


def split_mask(
    c: tuple[Tensor, ...], data_shape: Shape, context_dim: int
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Return the mask at the end of the context as booleans, if there is one, and the rest of it.

    Arguments: see `observed`.
    """
    numbers = sum(math.prod(t.shape[1:]) for t in c)
    if c and numbers == context_dim + math.prod(data_shape):
        return c[-1].reshape(-1, *data_shape) != 0, c[:-1]
    return None, c
