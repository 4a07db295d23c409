"""Data as batches (x, *c): tensors, arrays, tuples of them, a torch Dataset, or a stream."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyrovae.data.streams import Iterated, Stream, stream
from pyrovae.distributions import mixed
from pyrovae.importance import batched
from pyrovae.training.streams import Passes, Streamed

Batch = tuple[Tensor, ...]
Transform = Callable[[Any, torch.Generator], Any]

EVALUATION_ROWS = 1024  # rows of one pass without gradients


class Source(Protocol):
    """Rows of data that can be gone through in batches, in order or shuffled.

    Attributes:
        streamed: are the rows read as they come? Then they are checked as they come too: going
            through all of them at the start would take an epoch's time.
    """

    streamed: bool

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def order(
        self, size: int, generator: torch.Generator | None = None, skip: int = 0
    ) -> Iterator[Tensor]:
        """Yield the row numbers of the batches that `batches` yields; nothing is read."""
        ...

    def batches(
        self, size: int, generator: torch.Generator | None = None, skip: int = 0
    ) -> Iterator[Batch]:
        """Yield batches of `size` rows but the first `skip` of them, the last one short.

        Shuffled where there is a generator. What is skipped is not read.
        """
        ...


class Indexed:
    """Rows that are had by their numbers, shuffled all of them."""

    streamed = False

    def __len__(self) -> int:
        raise NotImplementedError

    def order(
        self, size: int, generator: torch.Generator | None = None, skip: int = 0
    ) -> Iterator[Tensor]:
        """Yield the row numbers of the batches that `batches` yields."""
        n = len(self)
        numbers = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        return iter(numbers.split(size)[skip:])


class InMemory(Indexed):
    """Tensors that are indexed whole batches at a time, never row by row."""

    def __init__(self, tensors: Batch) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batches(
        self, size: int, generator: torch.Generator | None = None, skip: int = 0
    ) -> Iterator[Batch]:
        """Yield batches of `size` rows but the first `skip` of them, the last one short.

        Shuffled where there is a generator.
        """
        if generator is None:
            yield from islice(zip(*(t.split(size) for t in self.tensors), strict=True), skip, None)
            return
        for rows in self.order(size, generator, skip):
            there = rows.to(self.tensors[0].device)
            yield tuple(t[there] for t in self.tensors)


class FromDataset(Indexed):
    """A torch Dataset, read row by row through a DataLoader."""

    def __init__(self, dataset: Dataset, modules: Sequence[nn.Module]) -> None:
        self.dataset, self.modules = dataset, modules

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batches(
        self, size: int, generator: torch.Generator | None = None, skip: int = 0
    ) -> Iterator[Batch]:
        """Yield batches of `size` rows but the first `skip` of them, the last one short.

        Shuffled where there is a generator. What is skipped is not read.
        """
        rows = [numbers.tolist() for numbers in self.order(size, generator, skip)]
        for batch in DataLoader(self.dataset, batch_sampler=rows):
            x, *c = batch if isinstance(batch, tuple | list) else (batch,)
            yield _tensors(x, c, self.modules)


def source(data: Any, modules: Sequence[nn.Module]) -> Source:
    """Return rows of data ready to train the modules on.

    Args:
        data: a tensor or array x (N, ...), a tuple (x, *c) of them, or a torch Dataset whose items
            are x or (x, *c). What `data.stream` returns, with context or without, an `np.memmap`, a
            tuple with one and an IterableDataset are read as they are wanted, never all in memory.
        modules: the pair's, for device and dtype.

    Raises:
        ValueError: no rows, values that are not finite, or rows that differ in number.
    """
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, tuple) and not data:
        raise ValueError("expected x, (x, *c) or a Dataset; got an empty tuple")
    if isinstance(data, tuple) and isinstance(data[0], Stream):
        data = data[0].beside(*data[1:])
    if isinstance(data, np.memmap | IterableDataset) or (
        isinstance(data, tuple) and any(isinstance(part, np.memmap) for part in data)
    ):
        data = stream(data)
    if isinstance(data, Stream):
        return Streamed(data, modules)
    if isinstance(data, Iterated):
        return Passes(data, modules)
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
    """Training rows, transformed afresh each epoch, each batch by a generator of its own.

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

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the epoch's batches, shuffled, but the first `skip` of them.

        Each depends on the seed, the epoch and its own number alone.
        """
        batches = self.rows.batches(self.batch_size, self._generator(epoch, 0), skip)
        for i, batch in enumerate(batches, skip):
            yield self._transformed(batch, epoch, i + 1)

    def in_order(self) -> Iterator[Batch]:
        """Yield large batches in order, transformed."""
        for i, batch in enumerate(self.rows.batches(EVALUATION_ROWS)):
            yield self._transformed(batch, 0, i + 1, 1)

    def row(self, epoch: int, batch: int, place: int) -> int:
        """Return which row of the data stands at a place of a batch of an epoch."""
        order = self.rows.order(self.batch_size, self._generator(epoch, 0), skip=batch)
        return int(next(order)[place])

    def _generator(self, *numbers: int) -> torch.Generator:
        """Return a generator of one's own for (epoch, 0), its order, or (epoch, batch from 1)."""
        return torch.Generator().manual_seed(mixed(self.seed, *numbers))

    def _transformed(self, batch: Batch, *numbers: int) -> Batch:
        if self.transform is None:
            return batch
        generator = self._generator(*numbers)
        new = self.transform(batch if len(batch) > 1 else batch[0], generator)
        return tuple(new) if isinstance(new, tuple | list) else (new,)
