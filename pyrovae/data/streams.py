"""Rows that are read as they are wanted: arrays and tables larger than memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

WINDOW_BYTES = 2**25  # of the rows that are shuffled with one another, where no window is given
WINDOW_ROWS = 10_000  # the same of a dataset, whose rows are of unknown size
BLOCKS = 64  # places of an array that a window's rows come from
SAMPLED = 10_000  # rows that stand for all of them


class OnDisk(Protocol):
    """An array whose rows are had by slices: `np.memmap`, an h5py dataset, `Shards`, `Parquet`.

    It may have `edges`, the rows that a read best begins at, with the number of rows at their end.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, and the shape of each."""
        ...

    @property
    def dtype(self) -> Any:
        """Of numpy, or its name."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


class Shards:
    """Arrays (N_i, ...) in `.npy` files, as one array of all their rows, in the files' order.

    Nothing is mapped or kept open: what is resident is what was asked for.

    Args:
        paths: of the files, at least one.

    Raises:
        ValueError: a file that holds no such array, or files of differing shape or dtype.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        headers = [_header(path) for path in self.paths]
        first = headers[0]
        for path, header in zip(self.paths, headers, strict=True):
            if (header.shape[1:], header.dtype) != (first.shape[1:], first.dtype):
                raise ValueError(
                    f"expected shards of one shape and dtype; got rows {first.shape[1:]} of "
                    f"{first.dtype} in {self.paths[0]}, {header.shape[1:]} of {header.dtype} in "
                    f"{path}: save them alike, or move what is no shard elsewhere"
                )
        self.ends = np.cumsum([h.shape[0] for h in headers])
        self.offsets = [h.offset for h in headers]
        self.shape = (int(self.ends[-1]), *first.shape[1:])
        self.dtype = first.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        first = int(np.searchsorted(self.ends, start, side="right"))
        parts = []
        while start < stop:
            end = min(stop, int(self.ends[first]))
            parts.append(self._read(first, start, end))
            start, first = end, first + 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, *self.shape[1:]), self.dtype)

    def _read(self, i: int, start: int, stop: int) -> np.ndarray:
        size = int(np.prod(self.shape[1:]))
        row = start - (int(self.ends[i - 1]) if i else 0)
        offset = self.offsets[i] + row * size * self.dtype.itemsize
        try:
            found = np.fromfile(self.paths[i], self.dtype, (stop - start) * size, offset=offset)
            return found.reshape(stop - start, *self.shape[1:])
        except (OSError, ValueError) as error:
            raise ValueError(
                f"expected rows {row} to {row + stop - start - 1} in {self.paths[i]}; it has "
                f"changed since it was opened: {error}"
            ) from None


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int


def _header(path: Path) -> _Header:
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of data at {path}; there is none")
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"expected an array of numbers, of at least one row, in {path}; it cannot be read: "
            f"{error}"
        ) from None
    check_kind(mapped, str(path))
    if not mapped.flags.c_contiguous:
        raise ValueError(
            f"expected rows that follow one another in {path}; got columns that do (Fortran order):"
            " save numpy.ascontiguousarray of it"
        )
    return _Header(mapped.shape, mapped.dtype, mapped.offset)


def check_kind(array: OnDisk, where: str) -> None:
    """Refuse what is no array (N, ...) of numbers with at least one.

    Raises:
        ValueError: naming `where` it is.
    """
    if np.dtype(array.dtype).kind not in "biuf":
        raise ValueError(f"expected numbers in {where}; got dtype {array.dtype}")
    if len(array.shape) < 2:
        raise ValueError(
            f"expected an array (N, ...) with a row a datum in {where}; got shape {array.shape}"
        )
    if 0 in array.shape:
        raise ValueError(f"expected at least one row in {where}; got shape {array.shape}")


class Parquet:
    """A `.parquet` table of numbers as an array (N, columns), read a row group at a time.

    It is of float32 or of uint8 where all columns are, else of float64. Missing numbers are NaN. A
    row group is the least that can be read, so memory holds at least two: write the table with a
    `row_group_size` of some MB.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ImportError: pyarrow is not there.
        ValueError: no table, one without rows, or columns that are no numbers.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet as pq  # type: ignore[import-untyped]
        except ImportError:
            raise ImportError(
                f"expected pyarrow to read {path}; it is not installed: pip install "
                "'pyrovae[parquet]'"
            ) from None
        if not path.is_file():
            raise FileNotFoundError(f"expected a file of data at {path}; there is none")
        self.path = path
        try:
            with pq.ParquetFile(path) as file:
                schema, self.metadata = file.schema_arrow, file.metadata
        except (ValueError, OSError) as error:
            raise ValueError(
                f"expected a table of numbers in {path}; it cannot be read: {error}"
            ) from None
        index = (schema.pandas_metadata or {}).get("index_columns", [])
        fields = [field for field in schema if field.name not in index]
        kinds = {field.name: str(field.type) for field in fields}
        words = [n for n, kind in kinds.items() if kind.rstrip("0123456789") not in NUMBERS]
        if words:
            raise ValueError(
                f"expected numbers in {path}; columns {', '.join(words)} are none: drop or encode "
                "them"
            )
        self.columns = list(kinds)
        found = set(kinds.values())
        alike = {"uint8": np.uint8, "float": np.float32}
        self.dtype = np.dtype(alike.get(found.pop(), np.float64) if len(found) == 1 else np.float64)
        groups = range(self.metadata.num_row_groups)
        sizes = [self.metadata.row_group(i).num_rows for i in groups]
        self.edges = np.cumsum([0, *sizes])
        self.shape = (int(self.edges[-1]), len(self.columns))
        check_kind(self, str(path))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        import pyarrow as pa
        import pyarrow.parquet as pq

        start, stop, _ = rows.indices(len(self))
        out = np.empty((max(0, stop - start), self.shape[1]), self.dtype)
        schema = pa.schema([(name, pa.from_numpy_dtype(self.dtype)) for name in self.columns])
        with pq.ParquetFile(self.path, metadata=self.metadata) as file:
            for i in range(len(self.edges) - 1):
                first, end = self.edges[i], self.edges[i + 1]
                lo, hi = max(start, int(first)), min(stop, int(end))
                if lo >= hi:
                    continue
                table = file.read_row_group(i, columns=self.columns, use_threads=False)
                table = table.slice(lo - int(first), hi - lo)
                if table.schema.types != schema.types:
                    table = table.cast(schema, safe=False)
                self._refuse_missing(table, lo, hi)
                (batch,) = table.combine_chunks().to_batches()
                found = batch.to_tensor(null_to_nan=self.dtype != np.uint8)
                out[lo - start : hi - start] = found.to_numpy()
        return out

    def _refuse_missing(self, table: Any, lo: int, hi: int) -> None:
        if self.dtype != np.uint8:
            return
        for name in self.columns:
            if table.column(name).null_count:
                raise ValueError(
                    f"expected levels 0, ..., 255 in {self.path}; column {name} has missing ones "
                    f"in rows {lo} to {hi - 1}: fill them in, or write floats"
                )


NUMBERS = ("float", "double", "halffloat", "int", "uint", "bool")  # pyarrow's, without their bits


class Without:
    """An array on disk without some of its rows.

    Args:
        rows: the array.
        held: the rows to leave out, sorted.
    """

    def __init__(self, rows: OnDisk, held: np.ndarray) -> None:
        self.rows, self.held = rows, held
        self.shape = (len(rows) - len(held), *rows.shape[1:])
        self.dtype = rows.dtype
        self.before = held - np.arange(len(held))  # rows kept before each
        edges = getattr(rows, "edges", None)
        if edges is not None:
            self.edges = np.unique(edges - np.searchsorted(held, edges))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        if stop <= start:
            return np.empty((0, *self.shape[1:]), self.dtype)
        a, b = self.row(start), self.row(stop - 1) + 1
        gone = self.held[np.searchsorted(self.held, a) : np.searchsorted(self.held, b)]
        return np.delete(np.asarray(self.rows[a:b]), gone - a, axis=0)

    def row(self, kept: int) -> int:
        """Return which row of the whole array a kept one is."""
        return kept + int(np.searchsorted(self.before, kept, side="right"))


def take(rows: OnDisk, chosen: np.ndarray) -> np.ndarray:
    """Return some rows, in the order that is asked for, read one by one or by the array's blocks.

    Args:
        rows: the array.
        chosen: numbers of rows.
    """
    out = np.empty((len(chosen), *rows.shape[1:]), np.dtype(rows.dtype).newbyteorder("="))
    order = np.argsort(chosen)
    ranked = chosen[order]
    edges = getattr(rows, "edges", np.append(ranked, len(rows)))
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        lo, hi = np.searchsorted(ranked, (a, b))
        if lo < hi:
            found = ranked[lo:hi]
            first = int(found[0])
            out[order[lo:hi]] = np.asarray(rows[first : int(found[-1]) + 1])[found - first]
    return out


class Stream:
    """Rows (x, *c) that are read as they are wanted: see `stream`.

    Attributes:
        parts: x and its context, arrays of N rows each.
        window: rows that are shuffled with one another.
        levels: how many values x takes, which are scaled to [0, 1]; None to leave x alone.
        edges: rows at which the blocks begin, and N.
    """

    def __init__(self, parts: Sequence[OnDisk], window: int | None, levels: int | None) -> None:
        self.parts, self.levels = tuple(parts), levels
        x = self.parts[0]
        row = int(np.prod(x.shape[1:])) * np.dtype(x.dtype).itemsize
        self.window = max(1, WINDOW_BYTES // row) if window is None else window
        n = len(x)
        blocks = np.append(np.arange(0, n, max(1, self.window // BLOCKS)), n)
        self.edges: np.ndarray = getattr(x, "edges", blocks)

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of x, (N, ...)."""
        return tuple(self.parts[0].shape)

    def __getitem__(self, rows: slice) -> Tensor:
        return self._scaled(np.asarray(self.parts[0][rows]))

    def beside(self, *c: Any) -> "Stream":
        """Return the same rows with more context, arrays of N rows each."""
        return Stream(_checked((*self.parts, *c)), self.window, self.levels)

    def take(self, chosen: np.ndarray) -> Tensor:
        """Return the rows of x of those numbers."""
        return self._scaled(take(self.parts[0], chosen))

    def _scaled(self, x: np.ndarray) -> Tensor:
        found = torch.from_numpy(x.astype(np.result_type(x.dtype, np.float32)))
        return found if self.levels is None else found / (self.levels - 1)


def sample(x: Tensor | Stream, n: int = SAMPLED) -> Tensor:
    """Return what stands for all of x: n rows of a stream at random, any other x itself.

    Args:
        x: data (N, ...).
        n: how many rows of a stream, the same every time; all of them where there are no more.
    """
    if isinstance(x, Tensor):
        return x
    return x.take(np.random.default_rng(0).choice(len(x), min(n, len(x)), replace=False))


@dataclass(frozen=True)
class Iterated:
    """Rows that are had one after another alone: see `stream`.

    Attributes:
        dataset: what gives them.
        window: rows that are shuffled with one another.
    """

    dataset: IterableDataset
    window: int = WINDOW_ROWS


def stream(
    source: Any, *, window: int | None = None, levels: int | None = None
) -> Stream | Iterated:
    """Return rows for `fit` that are read as they are wanted, and never all in memory.

    An epoch goes through every row once, shuffled within a window. An array is cut into blocks of
    consecutive rows, 64 to a window (a table's own row groups are its blocks); the blocks are
    visited in a random order, and the rows of each window of them in a random order again: rows
    that are neighbours on disk are spread over a window, and a window is drawn from all over the
    array. With no more than `window` rows that is a full shuffle. Of an IterableDataset, which has
    no order but its own, a window is so many consecutive rows: sorted data should be shuffled
    before. Up to three windows are in memory.

    Values are checked as they come, each batch before it is used: nothing reads all of it at once.

    Args:
        source: a `.npy` file (N, ...), a folder of such shards of one shape and dtype (in the order
            of their names), a `.parquet` table; an array whose rows are had by slices, such as
            `np.load(path, mmap_mode="r")` or an h5py dataset; a tuple (x, *c) of such; or a torch
            IterableDataset of items x or (x, *c), the same in every pass. Without `__len__` its
            rows are counted by a pass of their own.
        window: rows that are shuffled with one another; by default 32 MB of x, and 10,000 items of
            an IterableDataset.
        levels: whole numbers x = 0, ..., levels - 1 are scaled to [0, 1] as they come; None leaves
            x as it is.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a `.parquet` table without pyarrow.
        ValueError: what holds no such array, shards that differ, rows that differ in number, or an
            argument out of its range.

    Example:
        >>> rows = stream(np.arange(6, dtype=np.uint8).reshape(3, 2), levels=256)
        >>> len(rows), rows[:1]
        (3, tensor([[0.0000, 0.0039]]))
    """
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(f"expected window to be a positive whole number; got {window!r}")
    if isinstance(source, IterableDataset):
        if levels is not None:
            raise ValueError("expected no levels with an IterableDataset: scale its items")
        return Iterated(source, WINDOW_ROWS if window is None else window)
    parts = _checked(source if isinstance(source, tuple) else (source,))
    if levels is not None:
        if not isinstance(levels, int) or levels < 2:
            raise ValueError(f"expected levels to be a whole number, 2 or more; got {levels!r}")
        if np.dtype(parts[0].dtype).kind not in "biu":
            raise ValueError(
                f"expected x of whole numbers with levels; got {parts[0].dtype}: leave levels out"
            )
    return Stream(parts, window, levels)


def _checked(given: tuple[Any, ...]) -> list[OnDisk]:
    """Return x and its context as arrays of N rows each."""
    parts = [
        on_disk(Path(part))
        if isinstance(part, str | Path)
        else part.numpy(force=True)
        if isinstance(part, Tensor)
        else part
        for part in given
    ]
    for i, part in enumerate(parts):
        name = "x" if i == 0 else f"context {i}"
        if not all(hasattr(part, a) for a in ("shape", "dtype", "__getitem__")):
            raise ValueError(
                f"expected {name} to be a path, or an array with shape, dtype and slices; got "
                f"{type(part).__name__}"
            )
        if not len(part.shape) or 0 in part.shape:
            raise ValueError(
                f"expected {name} to have at least one row; got shape {tuple(part.shape)}"
            )
        if len(part) != len(parts[0]):
            raise ValueError(
                f"expected {name} to have as many rows as x; got {len(part)}, x has {len(parts[0])}"
            )
    return parts


def on_disk(path: Path) -> Shards | Parquet:
    """Open a `.npy` file, a folder of them, or a `.parquet` table; errors as those of `stream`."""
    if path.is_dir():
        shards = sorted(path.glob("*.npy"))
        if not shards:
            raise ValueError(
                f"expected .npy files in folder {path}; there are none: save each shard of rows "
                "with numpy.save"
            )
        return Shards(shards)
    if path.suffix == ".npy":
        return Shards([path])
    if path.suffix == ".parquet":
        return Parquet(path)
    raise ValueError(
        f"expected a .npy file, a folder of them or a .parquet table to read row by row; got "
        f"'{path}'"
    )
