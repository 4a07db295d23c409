"""What a data set is: three splits, and what was done to them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.streams import OnDisk

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Data:
    """Three splits of a data set.

    Attributes:
        name: the data set's.
        train: training data (N, ...); a `Stream`, see `data.stream`, where they stay on disk.
        validation: validation data, N = 0 if there are none.
        test: test data.
        labels: for each split its labels (N,), or none at all; never given to a model unasked.
        levels: how many values x takes, if x is whole numbers 0, ..., levels - 1 or such levels
            scaled to [0, 1] or dequantised; None for real values.
        scaled: do those levels lie in [0, 1]?
        dequantized: was noise added to those levels, so that a density bounds their probability?
        transform: what `fit(transform=...)` applies to each training batch, if anything.
        loc: what was subtracted of each column, (D,), float64; None unless standardised.
        scale: what each column was then divided by, (D,), float64; None unless standardised.
        record: what determined the splits, as JSON-able data.
    """

    name: str
    train: Any  # Tensor, or Stream
    validation: Tensor
    test: Tensor
    labels: dict[str, Tensor] = field(default_factory=dict)
    levels: int | None = None
    scaled: bool = False
    dequantized: bool = False
    transform: Callable[[Any, torch.Generator], Any] | None = None
    loc: Tensor | None = None
    scale: Tensor | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.train.shape[1:])

    def split(self, name: str) -> Tensor:
        """Return the data of a split by its name.

        Raises:
            ValueError: no such split, or one without rows.
        """
        if name not in SPLITS:
            raise ValueError(f"expected split to be one of {', '.join(SPLITS)}; got {name!r}")
        x: Tensor = getattr(self, name)
        if len(x) == 0:
            raise ValueError(f"expected a split with rows; {name} of {self.name} has none")
        return x

    def original(self, x: Tensor) -> Tensor:
        """Return values in original units: `scale` x + `loc` of standardised data, else x itself.

        Args:
            x: data or draws (..., D).
        """
        return original(x, self.loc, self.scale)

    def log_jacobian(self, x: Tensor) -> Tensor:
        """Return what log p(x) gains in original units: -sum_i log scale_i over what is observed.

        Args:
            x: data (N, ...), NaN where an entry is missing.

        Returns:
            Tensor (N,), in nats, float64; zeros unless the data are standardised.
        """
        if self.scale is None:
            return torch.zeros(len(x), dtype=torch.float64)
        return -torch.where(x.isnan(), 0.0, self.scale.log()).sum(-1)


def original(x: Tensor, loc: Tensor | None, scale: Tensor | None) -> Tensor:
    """Return scale x + loc in float64, or x itself where there is no scale."""
    return x if loc is None or scale is None else x.double() * scale + loc


def digest(x: Tensor) -> str:
    """Return a fingerprint of data, taken in float32: results compare only on the same."""
    rows = x.float().contiguous()
    return hashlib.sha256(repr(tuple(rows.shape)).encode() + rows.numpy().tobytes()).hexdigest()


@dataclass
class Raw:
    """Arrays as they were found.

    Attributes:
        name: the data set's.
        source: a name or a path.
        arrays: by split, or all under "all".
        labels: the same, or nothing.
        levels: how many values there are, if the values are whole numbers from 0.
        held: rows of the test split, and by default of the validation split, where all are under
            "all"; None for a tenth.
    """

    name: str
    source: str
    arrays: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    levels: int | None
    held: int | None = None
    streamed: OnDisk | None = None
