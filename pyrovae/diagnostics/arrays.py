"""Arrays that a user hands in, as rows of numbers; and whole numbers in their range."""

from typing import Any

import torch
from torch import Tensor


def as_rows(name: str, values: Any, least: int = 1) -> Tensor:
    """Return an array (N, ...) as rows (N, D) in float64.

    Args:
        name: of the argument, for the error.
        values: a tensor or array of numbers.
        least: how many rows there must be.

    Raises:
        ValueError: no such array, too few rows, no number a row, or values that are not finite.
    """
    try:
        rows = torch.as_tensor(values).detach().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"expected {name} to be an array of numbers; got {error}") from None
    if rows.dim() == 0 or len(rows) < least or rows.numel() == 0:
        raise ValueError(
            f"expected {name} to have at least {least} row{'s' * (least > 1)}; got shape "
            f"{tuple(rows.shape)}"
        )
    rows = rows.reshape(len(rows), -1)
    bad = ~rows.isfinite()
    if bool(bad.any()):
        raise ValueError(
            f"expected {name} to be finite; got {int(bad.sum())} bad values, the first in row "
            f"{int(bad.nonzero()[0, 0])}: drop these rows"
        )
    return rows


def as_column(name: str, values: Any, least: int = 1) -> Tensor:
    """Return an array (N,) of one number a datum in float64; errors as those of `as_rows`."""
    rows = as_rows(name, values, least)
    if rows.shape[1] != 1 or torch.as_tensor(values).dim() != 1:
        raise ValueError(
            f"expected {name} to be of shape (N,), one number a datum; got "
            f"{tuple(torch.as_tensor(values).shape)}"
        )
    return rows[:, 0]


def check_widths(**arrays: Tensor) -> None:
    """Refuse rows (N, D) of different lengths D."""
    if len({rows.shape[1] for rows in arrays.values()}) > 1:
        shapes = {name: tuple(rows.shape) for name, rows in arrays.items()}
        raise ValueError(f"expected data of one shape; got, each datum as a row, {shapes}")


def check_whole(name: str, value: Any, least: int, most: int | None = None, why: str = "") -> None:
    """Refuse what is no whole number from `least` to `most`."""
    if not isinstance(value, int) or value < least or (most is not None and value > most):
        bounds = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"expected {name} to be a whole number {bounds}{why}; got {value!r}")
