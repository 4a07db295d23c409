"""Rows that tell their number, in every form that `fit` takes them in."""

import itertools

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from pyrovae import data
from pyrovae.data.streams import Without, on_disk

N, D = 1003, 3
SIZE = 16  # of a batch
WINDOW = 256


def rows(n=N):
    """Rows that tell their number: its digits to the base 100, and a constant."""
    number = np.arange(n)
    return np.stack([number % 100, number // 100, np.full(n, 7)], -1).astype(np.uint8)


def numbers(found):
    """The rows' numbers, batch by batch."""
    return [(b[0][:, 0] + 100 * b[0][:, 1]).long().tolist() for b in found]


class Iterated(IterableDataset):
    """Items one after another; `lengths` of its passes, in turn."""

    def __init__(self, *tensors, lengths=(N,)):
        self.tensors, self.lengths = (
            tensors,
            itertools.chain(lengths, itertools.repeat(lengths[-1])),
        )

    def __iter__(self):
        items = list(zip(*self.tensors, strict=True))[: next(self.lengths)]
        return iter(items if len(self.tensors) > 1 else [x for (x,) in items])


class Sized(Iterated):
    def __len__(self):
        return N


class ByRow(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


def write_parquet(path, x, **options):
    import pandas as pd

    pd.DataFrame(x).to_parquet(path, **options)


def npy(folder, x):
    np.save(folder / "x.npy", x)
    return data.stream(folder / "x.npy", window=WINDOW)


def shards(folder, x):
    for i, part in enumerate(np.split(x, [1, 500, 720])):
        np.save(folder / f"{i}.npy", part)
    return data.stream(folder, window=WINDOW)


def memmap(folder, x):
    np.save(folder / "x.npy", x)
    return data.stream(np.load(folder / "x.npy", mmap_mode="r"), window=WINDOW)


def parquet(folder, x):
    write_parquet(folder / "x.parquet", x, row_group_size=30)
    return data.stream(str(folder / "x.parquet"), window=WINDOW)


def without(folder, x):
    more = np.insert(x, [0, 0, 500, len(x)], np.uint8(99), axis=0)
    write_parquet(folder / "x.parquet", more, row_group_size=30)
    held = np.array([0, 1, 502, len(x) + 3])
    return data.stream(Without(on_disk(folder / "x.parquet"), held), window=WINDOW)


SOURCES = {
    "memory": lambda _, x: x,
    "dataset": lambda _, x: ByRow(torch.from_numpy(x)),
    "npy": npy,
    "shards": shards,
    "memmap": memmap,
    "parquet": parquet,
    "without": without,
    "iterable": lambda _, x: data.stream(Iterated(torch.from_numpy(x)), window=WINDOW),
    "sized": lambda _, x: data.stream(Sized(torch.from_numpy(x)), window=WINDOW),
}
STREAMED = ("npy", "shards", "memmap", "parquet", "without")


def once_each(found):
    return sorted(itertools.chain(*found)) == list(range(N))
