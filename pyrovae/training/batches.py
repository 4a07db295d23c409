"""Data as batches (x, *c): tensors, arrays, tuples of them, or a torch Dataset."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyrovae.importance import batched

Batch = tuple[Tensor, ...]
Transform = Callable[[Any, torch.Generator], Any]

EVALUATION_ROWS = 1024  # rows of one pass without gradients


class Source(Protocol):
    """Rows of data that can be gone through in batches, in order or shuffled."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield batches of `size` rows, the last one short; shuffled where there is a generator."""
        ...


class InMemory:
    """Tensors that are indexed whole batches at a time, never row by row."""

    def __init__(self, tensors: Batch) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield batches of `size` rows, the last one short; shuffled where there is a generator."""
        if generator is None:
            yield from zip(*(t.split(size) for t in self.tensors), strict=True)
            return
        order = torch.randperm(len(self), generator=generator).to(self.tensors[0].device)
        for rows in order.split(size):
            yield tuple(t[rows] for t in self.tensors)


class FromDataset:
    """A torch Dataset, read row by row through a DataLoader."""

    def __init__(self, dataset: Dataset, modules: Sequence[nn.Module]) -> None:
        self.dataset, self.modules = dataset, modules

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield batches of `size` rows, the last one short; shuffled where there is a generator."""
        loader = DataLoader(self.dataset, size, shuffle=generator is not None, generator=generator)
        for batch in loader:
            x, *c = batch if isinstance(batch, tuple | list) else (batch,)
            yield _tensors(x, c, self.modules)


def source(data: Any, modules: Sequence[nn.Module]) -> Source:
    """Return rows of data ready to train the modules on.

    Args:
        data: a tensor or array x (N, ...), a tuple (x, *c) of them, or a torch Dataset whose items
            are x or (x, *c).
        modules: the pair's, for device and dtype.

    Raises:
        ValueError: no rows, values that are not finite, or rows that differ in number.
    """
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, IterableDataset) or (isinstance(data, tuple) and not data):
        raise ValueError(
            f"expected x, (x, *c) or a Dataset with a length; got {type(data).__name__} without one"
        )
    if isinstance(data, Dataset):
        if len(data) == 0:  # type: ignore[arg-type]
            raise ValueError("expected a Dataset with at least one item; got an empty one")
        return FromDataset(data, modules)
    x, *c = data if isinstance(data, tuple) else (data,)
    return InMemory(_tensors(x, c, modules))


def _tensors(x: Any, c: Sequence[Any], modules: Sequence[nn.Module]) -> Batch:
    tensor, context = batched(x, c, modules)
    return (tensor, *context)


class Epochs:
    """Training rows, transformed afresh each epoch by that epoch's own generator.

    Args:
        rows: the data.
        transform: of a batch, with a generator; None to leave them as they are.
        seed: of the order and of `transform`.
        batch_size: rows of a batch; the last one of an epoch may have fewer.
    """

    def __init__(
        self, rows: Source, transform: Transform | None, seed: int, batch_size: int
    ) -> None:
        self.rows, self.transform, self.seed = rows, transform, seed
        self.batch_size = min(batch_size, len(rows))

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the epoch's batches, shuffled."""
        generator = self._generator(epoch)
        for batch in self.rows.batches(self.batch_size, generator):
            yield self._transformed(batch, generator)

    def in_order(self) -> Iterator[Batch]:
        """Yield large batches in order, transformed."""
        generator = self._generator(0)
        for batch in self.rows.batches(EVALUATION_ROWS):
            yield self._transformed(batch, generator)

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)

    def _transformed(self, batch: Batch, generator: torch.Generator) -> Batch:
        if self.transform is None:
            return batch
        new = self.transform(batch if len(batch) > 1 else batch[0], generator)
        return tuple(new) if isinstance(new, tuple | list) else (new,)
