"""Rows larger than memory as batches: read a window at a time, the next one meanwhile."""

import mmap
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from pyrovae.data.streams import Iterated, Stream
from pyrovae.distributions import mixed
from pyrovae.importance import batched

Batch = tuple[Tensor, ...]

AHEAD = 8  # in order, an eighth of a window is read at once: often the first rows are enough


class RowsRefused(ValueError):
    """Rows that came and are no good: a mistake in the data, whenever it is found."""


@dataclass(frozen=True)
class Window:
    """Rows that are in memory together.

    Attributes:
        start: how many rows of the epoch come before.
        spans: the rows (first, end), in the order in which they are read.
        seed: of their order, None for that in which they are read.
    """

    start: int
    spans: tuple[tuple[int, int], ...]
    seed: int | None

    def __len__(self) -> int:
        return sum(b - a for a, b in self.spans)

    @property
    def stop(self) -> int:
        """How many rows of the epoch have come at its end."""
        return self.start + len(self)

    def order(self) -> Tensor:
        """Return the places, among the rows as read, of the rows as they are to come."""
        if self.seed is None:
            return torch.arange(len(self))
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed))

    def numbers(self) -> Tensor:
        """Return which row of the data each of the rows as read is."""
        return torch.cat([torch.arange(a, b) for a, b in self.spans])


class Windowed:
    """Rows that come a window at a time, and are checked as they come.

    Args:
        n: how many rows there are.
        first: the first of them, as a batch.
        modules: the pair's, for device and dtype.
        levels: how many values x takes, which are scaled to [0, 1]; None to leave x alone.
    """

    streamed = True

    def __init__(
        self, n: int, first: Batch, modules: Sequence[nn.Module], levels: int | None = None
    ) -> None:
        self.n, self.levels = n, levels
        x, c = batched(first[0], first[1:], modules)
        self.like = [(t.dtype, t.device) for t in (x, *c)]
        self.missing = any(getattr(m, "missing", False) for part in modules for m in part.modules())

    def __len__(self) -> int:
        return self.n

    def order(
        self, size: int, generator: torch.Generator | None = None, skip: int = 0
    ) -> Iterator[Tensor]:
        """Yield the row numbers of the batches that `batches` yields; nothing is read."""
        windows = ((w, w.numbers()) for w in self._windows(generator) if w.stop > skip * size)
        pieces = self._pieces(windows, size, skip, lambda _, numbers, places: (numbers[places],))
        return (numbers for (numbers,) in pieces)

    def batches(
        self, size: int, generator: torch.Generator | None = None, skip: int = 0
    ) -> Iterator[Batch]:
        """Yield batches of `size` rows but the first `skip` of them, the last one short.

        Shuffled within windows where there is a generator: see `data.stream`.

        Raises:
            RowsRefused: values that are not finite, or no levels, by row and column.
        """
        windows = (w for w in self._windows(generator) if w.stop > skip * size)
        return self._pieces(self._read(windows), size, skip, self._checked)

    def _windows(self, generator: torch.Generator | None) -> Iterator[Window]:
        raise NotImplementedError

    def _read(self, windows: Iterator[Window]) -> Iterator[tuple[Window, Any]]:
        """Yield each window with its rows."""
        raise NotImplementedError

    def _gather(self, rows: Any, places: Tensor) -> Batch:
        """Return some of a window's rows."""
        raise NotImplementedError

    def _pieces(
        self,
        windows: Iterator[tuple[Window, Any]],
        size: int,
        skip: int,
        piece: Callable[[Window, Any, Tensor], Batch],
    ) -> Iterator[Batch]:
        """Cut what comes in windows into batches, each made of one piece of a window or more."""
        held: list[Batch] = []
        at = skip * size
        for window, rows in windows:
            order = window.order()
            while at < window.stop:
                end = min(window.stop, (at // size + 1) * size)
                held.append(piece(window, rows, order[at - window.start : end - window.start]))
                at = end
                if at % size == 0 or at == self.n:
                    yield held[0] if len(held) == 1 else _joined(held)
                    held = []

    def _checked(self, window: Window, rows: Any, places: Tensor) -> Batch:
        """Return a window's rows in the pair's dtype, once they are seen to be good."""
        batch = []
        for i, (t, (dtype, device)) in enumerate(
            zip(self._gather(rows, places), self.like, strict=True)
        ):
            name = "x" if i == 0 else f"context {i}"
            if i == 0 and self.levels is not None:
                self._refuse(
                    (t < 0) | (t >= self.levels) if _beyond(t, self.levels) else None,
                    t, window, places, f"{name} to be whole numbers 0, ..., {self.levels - 1}",
                    "name as many levels as there are",
                )  # fmt: skip
            found = t.to(dtype=dtype, device=device)
            # a sum is finite if its terms are, up to overflow, and is the faster to see
            if found.is_floating_point() and not bool(found.sum().isfinite()):
                bad = found.isinf() if self.missing and i == 0 else ~found.isfinite()
                self._refuse(
                    bad, found, window, places, f"{name} to be finite",
                    "drop the rows, fill the values in, or take likelihoods.Masked, which "
                    "integrates out what is NaN",
                )  # fmt: skip
            batch.append(found / (self.levels - 1) if i == 0 and self.levels else found)
        return tuple(batch)

    def _refuse(
        self, bad: Tensor | None, t: Tensor, window: Window, places: Tensor, what: str, remedy: str
    ) -> None:
        if bad is None or not bool(bad.any()):
            return
        numbers = window.numbers()[places]
        rows = bad.cpu().reshape(len(bad), -1).any(-1).nonzero().flatten()
        i = int(rows[numbers[rows].argmin()])
        place = bad[i].nonzero()[0].tolist()
        raise RowsRefused(
            f"expected {what}; got {int(bad.sum())} bad values in a batch, the first "
            f"{float(t[i, *place]):.6g} at index {(int(numbers[i]), *place)}: {remedy}"
        )


def _joined(pieces: list[Batch]) -> Batch:
    return tuple(torch.cat(tensors) for tensors in zip(*pieces, strict=True))


def _beyond(t: Tensor, levels: int) -> bool:
    if t.dtype in (torch.uint8, torch.bool) and levels >= 256:
        return False
    low, high = t.aminmax()
    return bool(low < 0) or bool(high >= levels)


class Streamed(Windowed):
    """Rows of arrays that are read by slices: see `data.stream`."""

    def __init__(self, rows: Stream, modules: Sequence[nn.Module]) -> None:
        self.parts, self.window, self.edges = rows.parts, rows.window, rows.edges
        first = tuple(self._part(part, ((0, 1),)) for part in self.parts)
        super().__init__(len(rows), first, modules, rows.levels)

    def _windows(self, generator: torch.Generator | None) -> Iterator[Window]:
        n, size, seed = len(self.edges) - 1, self.window, None
        if generator is None:
            order, size = np.arange(n), max(1, size // AHEAD)
        else:
            order = torch.randperm(n, generator=generator).numpy()
            seed = int(torch.randint(2**62, (), generator=generator))
        ends = np.diff(self.edges)[order].cumsum()
        # a block belongs to the window that its last row falls in
        _, firsts = np.unique((ends - 1) // size, return_index=True)
        for i, (a, b) in enumerate(zip(firsts, [*firsts[1:], n], strict=True)):
            spans = tuple((int(self.edges[k]), int(self.edges[k + 1])) for k in order[a:b])
            start = int(ends[a - 1]) if a else 0
            yield Window(start, spans, None if seed is None else mixed(seed, i))

    def _read(self, windows: Iterator[Window]) -> Iterator[tuple[Window, Batch]]:
        with ThreadPoolExecutor(1) as pool:
            coming: deque[tuple[Window, Future[Batch]]] = deque()
            for window in windows:
                coming.append((window, pool.submit(self._rows, window)))
                if len(coming) > 1:
                    ready, rows = coming.popleft()
                    yield ready, rows.result()
            for ready, rows in coming:
                yield ready, rows.result()

    def _rows(self, window: Window) -> Batch:
        return tuple(self._part(part, window.spans) for part in self.parts)

    @staticmethod
    def _part(part: Any, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Read spans of rows, in a dtype that torch has."""
        dtype = np.dtype(part.dtype)
        if dtype.kind == "u" and dtype.itemsize > 1:
            dtype = np.promote_types(dtype, np.int8)
        dtype = np.dtype(np.float64) if dtype.itemsize > 8 else dtype.newbyteorder("=")
        out = np.empty((sum(b - a for a, b in spans), *part.shape[1:]), dtype)
        at = 0
        for a, b in spans:
            out[at : at + b - a] = part[a:b]
            at += b - a
            _release(part)
        return torch.from_numpy(out)

    def _gather(self, rows: Batch, places: Tensor) -> Batch:
        return tuple(t.index_select(0, places) for t in rows)


def _release(array: Any) -> None:
    """Let go of the pages of a mapped file, which would count as resident: they stay in its cache.

    Those of a mapping that is written to without its file (mode "c") are the only copy, and stay.
    """
    if not isinstance(array, np.memmap) or array.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


class Passes(Windowed):
    """Rows of an IterableDataset, each epoch a pass: see `data.stream`."""

    def __init__(self, rows: Iterated, modules: Sequence[nn.Module]) -> None:
        self.dataset, self.window = rows.dataset, rows.window
        first = next(iter(self.dataset), None)
        if first is None:
            raise ValueError("expected an IterableDataset with at least one item; got none")
        length = getattr(self.dataset, "__len__", lambda: sum(1 for _ in self.dataset))
        n = length()
        super().__init__(n, self._gather([first], torch.tensor([0])), modules)

    def _windows(self, generator: torch.Generator | None) -> Iterator[Window]:
        seed = None if generator is None else int(torch.randint(2**62, (), generator=generator))
        for i, start in enumerate(range(0, self.n, self.window)):
            span = (start, min(self.n, start + self.window))
            yield Window(start, (span,), None if seed is None else mixed(seed, i))

    def _read(self, windows: Iterator[Window]) -> Iterator[tuple[Window, list]]:
        items, at = iter(self.dataset), 0
        for window in windows:
            ((start, stop),) = window.spans
            rows = list(islice(items, start - at, stop - at))
            at = stop
            if len(rows) < stop - start:
                raise ValueError(self._differs(f"{start + len(rows)} at the most"))
            yield window, rows
        if at == self.n and next(items, None) is not None:
            raise ValueError(self._differs("more"))

    def _differs(self, got: str) -> str:
        return (
            f"expected {self.n} items in every pass through the IterableDataset; got {got}: give "
            "it the same items each time, and a __len__ that is their number, or none"
        )

    def _gather(self, rows: list, places: Tensor) -> Batch:
        batch = default_collate([rows[i] for i in places.tolist()])
        return tuple(batch) if isinstance(batch, tuple | list) else (batch,)
