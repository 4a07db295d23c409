"""What may be done to data before a model sees them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrovae.data.dataset import SPLITS, Data

Draw = Callable[[Any, torch.Generator], Any]


def binarize(x: Any, generator: torch.Generator | None = None) -> Any:
    """Draw each value as Bernoulli(x): grey values in [0, 1] become 0 or 1.

    As a transform of `fit` this is dynamic binarisation, a fresh draw each time (Salakhutdinov &
    Murray 2008).

    Args:
        x: probabilities in [0, 1], any shape; a missing one, NaN, stays so. Of a batch (x, *c) the
            context is left as it is.
        generator: of the draws; None for the global one.

    Raises:
        ValueError: a value outside [0, 1].

    Example:
        >>> binarize(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """
    if isinstance(x, tuple):
        return binarize(x[0], generator), *x[1:]
    missing = x.isnan()
    if not bool((((x >= 0) & (x <= 1)) | missing).all()):
        raise ValueError(f"expected values in [0, 1] to binarise; got {_range(x)}: rescale them")
    return torch.where(missing, x, (_noise(x, generator) < x).to(x.dtype))


def dequantize(x: Any, generator: torch.Generator | None = None, *, levels: int = 256) -> Any:
    """Return (x + u) / levels with u ~ U(0, 1), for x in 0, ..., levels - 1.

    The mean log-density of the result, less log(levels) a dimension, bounds the log-probability of
    the levels from below (Theis et al. 2016); a density at the lattice points bounds nothing.

    Args:
        x: whole numbers 0, ..., levels - 1; of a batch (x, *c) the context is left as it is.
        generator: of the draws; None for the global one.
        levels: how many values x takes.

    Raises:
        ValueError: a value that is no such whole number.
    """
    if isinstance(x, tuple):
        return dequantize(x[0], generator, levels=levels), *x[1:]
    if x.numel() and not bool(((x == x.round()) & (x >= 0) & (x < levels)).all()):
        raise ValueError(
            f"expected whole numbers 0, ..., {levels - 1} to dequantise; got {_range(x)}: use "
            "data.load(values='levels')"
        )
    below_one = 1 - torch.finfo(x.dtype).eps / 2  # x + u may round up to `levels`
    return ((x + _noise(x, generator)) / levels).clamp(max=below_one)


def dequantize_unit(x: Any, generator: torch.Generator | None = None, *, levels: int = 256) -> Any:
    """Do as `dequantize` does to levels that were scaled to [0, 1]: a transform of `fit`."""
    if isinstance(x, tuple):
        return dequantize_unit(x[0], generator, levels=levels), *x[1:]
    return dequantize((x * (levels - 1)).round(), generator, levels=levels)


def standardize(data: Data, columns: Sequence[int] | None = None) -> Data:
    """Return a table with columns (x - mean) / sd, both of the training rows.

    Missing entries, NaN, stay so and count in neither. log p(x) in original units is that of the
    result plus `Data.log_jacobian`.

    Args:
        data: a table of real values, (N, D) in each split.
        columns: which; None for all. The others are left alone: loc 0, scale 1.

    Returns:
        Data with `loc` and `scale`; a column whose training rows are all equal, or all missing, has
        scale 1.

    Raises:
        ValueError: data of another shape, of levels or already standardised, or no such column.

    Example:
        >>> table = torch.tensor([[0.0, 7.0], [2.0, 7.0]])
        >>> standardize(Data("table", table, table[:0], table + 1)).test
        tensor([[0., 1.],
                [2., 1.]])
    """
    if len(data.data_shape) != 1 or data.levels is not None or data.scale is not None:
        raise ValueError(
            "expected a table (N, D) of real values to standardise, once; got data shape "
            f"{data.data_shape}, levels {data.levels}, scale {data.scale}"
        )
    (d,) = data.data_shape
    chosen = list(range(d) if columns is None else columns)
    if not all(isinstance(i, int) and 0 <= i < d for i in chosen):
        raise ValueError(f"expected columns to be among 0, ..., {d - 1}; got {chosen}")
    loc = torch.zeros(d, dtype=torch.float64)
    scale = torch.ones(d, dtype=torch.float64)
    for i in chosen:
        column = data.train[:, i].double()
        column = column[~column.isnan()]
        if len(column):
            loc[i] = column[0]
            if bool((column != column[0]).any()):  # else rounding may leave an sd of 1e-17
                loc[i], scale[i] = column.mean(), column.std(correction=0)
    return rescale(data, loc, scale)


def rescale(data: Data, loc: Tensor, scale: Tensor) -> Data:
    """Return a table with columns (x - loc) / scale, computed in float64, of the same dtype.

    Args:
        data: a table.
        loc: (D,).
        scale: (D,), positive.

    Raises:
        ValueError: loc or scale of another shape, or a scale that is not positive and finite.
    """
    if not (loc.shape == scale.shape == data.data_shape):
        raise ValueError(
            f"expected loc and scale of shape {data.data_shape}, one a column; got "
            f"{tuple(loc.shape)} and {tuple(scale.shape)}"
        )
    loc, scale = loc.double(), scale.double()
    if not bool(((scale > 0) & (scale.isfinite()) & loc.isfinite()).all()):
        raise ValueError(
            f"expected columns of finite mean and spread; got loc {loc.tolist()}, scale "
            f"{scale.tolist()}"
        )
    splits = {
        split: ((x.double() - loc) / scale).to(x.dtype)
        for split in SPLITS
        for x in (getattr(data, split),)
    }
    record = data.record | {"loc": loc.tolist(), "scale": scale.tolist()}
    return replace(data, **splits, loc=loc, scale=scale, record=record)


def _noise(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw U(0, 1) like x, on the generator's device."""
    device = x.device if generator is None else generator.device
    return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


def _range(x: Tensor) -> str:
    seen = x[~x.isnan()] if bool((~x.isnan()).any()) else x
    return f"values from {float(seen.min()):.6g} to {float(seen.max()):.6g}"
