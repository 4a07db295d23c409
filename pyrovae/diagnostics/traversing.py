"""Latent traversals: what the decoder makes of one latent number moved at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.distributions import seeded
from pyrovae.importance import find_modules
from pyrovae.nets import evaluating
from pyrovae.pairs.base import mean_or_draw

NUM, REACH = 7, 2.5  # values by default, and how far from 0 they go


def traversals(
    decode: Callable,
    z: Any,
    *c: Tensor,
    dims: Sequence[int] | None = None,
    values: Any = None,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
) -> Tensor:
    """Return E[x|z] with one latent number moved at a time and the others held where z has them.

    Higgins et al. (2017), figure 1. By default z_i takes 7 evenly spaced values from -2.5 to 2.5,
    where a standard normal prior has its mass. Where the data lie, latents `means` (N, d) of them
    tell: values=means.quantile(torch.linspace(0.05, 0.95, 7), 0).T.

    Args:
        decode: from latents (M, d), and context of M rows, to p(x|z) or to E[x|z] (M, *data_shape):
            `vae.decode`, or a function of one's own. Of a distribution that does not know its mean
            a draw is shown.
        z: the latents that are held, (d,).
        *c: context of that one datum, without the leading dimension of data.
        dims: which numbers are moved, of 0 ... d - 1; None for all.
        values: that they take, (num,) for all alike or (len(dims), num).
        seed: of draws.
        modules: those that `decode` holds in its closure; set to evaluation mode here.

    Returns:
        Tensor (len(dims), num, *data_shape).

    Raises:
        ValueError: z, dims or values of other shapes, or a `decode` that returns other rows.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(8, 8), latent_dim=3)
        >>> traversals(vae.decode, torch.zeros(3), dims=[0, 2]).shape
        torch.Size([2, 7, 8, 8])
    """
    z = torch.as_tensor(z)
    z = z.detach() if z.is_floating_point() else z.to(torch.get_default_dtype())
    if z.dim() != 1 or len(z) == 0:
        raise ValueError(
            f"expected the latents z of one datum, (d,); got {tuple(z.shape)}: take one row"
        )
    moved = list(range(len(z))) if dims is None else list(dims)
    if not moved or not all(isinstance(i, int) and 0 <= i < len(z) for i in moved):
        raise ValueError(f"expected dims to be whole numbers from 0 to {len(z) - 1}; got {dims!r}")
    taken = torch.linspace(-REACH, REACH, NUM) if values is None else torch.as_tensor(values)
    taken = taken.detach().to(z)
    if taken.dim() not in (1, 2) or taken.shape[-1] == 0 or taken.shape[:-1] not in {
        (), (len(moved),)
    }:  # fmt: skip
        raise ValueError(
            f"expected values of shape (num,) or ({len(moved)}, num), a row for each of dims; got "
            f"{tuple(taken.shape)}"
        )
    grid = z.expand(len(moved), taken.shape[-1], -1).clone()
    for row, i in enumerate(moved):
        grid[row, :, i] = taken if taken.dim() == 1 else taken[row]
    rows = grid.flatten(0, 1)
    context = [t.expand(len(rows), *t.shape) for t in map(torch.as_tensor, c)]
    with torch.no_grad(), seeded(seed), evaluating(*find_modules(decode, modules=modules)):
        decoded = decode(rows, *context)
        x = decoded if isinstance(decoded, Tensor) else mean_or_draw(decoded)
    if x.dim() == 0 or len(x) != len(rows):
        raise ValueError(
            f"expected decode to return {len(rows)} rows, one for each of the latents "
            f"{tuple(rows.shape)}; got {tuple(x.shape)}"
        )
    return x.unflatten(0, grid.shape[:2])
