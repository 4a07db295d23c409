"""Data on disk against data in memory: training throughput, and what is resident.

    pip install '.[dev]'
    PYTHONPATH=tests python -m benchmarks.streams          # --batch 128 512, --rounds 7, --cold
    PYTHONPATH=tests python -m benchmarks.streams --large  # --gigabytes 20, --steps 200

A 784-400-20 VAE with Bernoulli pixels, trained by the compiled step of `fit` and fused Adam; every
source gives batches of the same 65,536 rows, epoch after epoch, in orders of its own. Sources take
turns, a round of 12,800 rows each, in one process. What is printed are median, least and most of a
round, the ratio to memory's of the round beside it, and the ratio of the rates over all rounds.

    memory     a float32 tensor
    npy        the same in a .npy file, `data.stream(path)`
    bytes      the same as uint8, `data.stream(path, levels=2)`
    memmap     `np.load(path, mmap_mode="r")`
    shards     a folder of eight .npy files
    parquet    a table of 784 float columns, row groups of 4,096 rows
    iterable   a torch IterableDataset that yields row by row
    dataset    a torch Dataset, read row by row: in memory, no stream, for comparison

With `--cold` the system's cache of the files is dropped before each round, so that all are read
from the disk. `--large` writes an array of so many GB of float32 pixels to a temporary folder (8 MB
of random ones over and over, all of them written), trains on its memory map by `fit` for so many
steps, prints the peak of what was resident (VmHWM of /proc) before and after, and deletes it.
"""

import argparse
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from benchmarks.evidence import HIDDEN, LATENT, PIXELS, peak, spread, use
from pyrovae import build, data, fit
from pyrovae.objectives import with_beta
from pyrovae.optimise import adam
from pyrovae.training.batches import Epochs, source
from pyrovae.training.compiled import CompiledStep

ROWS = 65_536
TURN = 12_800  # rows a round
SHARDS = 8
GROUP = 4096
TILE = 2**23  # bytes that are written over and over


class Iterated(IterableDataset):
    """Rows one after another."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x)


class ByRow(Dataset):
    """Rows one by one, by number."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Tensor:
        return self.x[i]


def sources(folder: Path, n: int = ROWS) -> dict[str, Any]:
    """Write the same rows in every form, and return what `fit` takes as `train`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    x = (torch.rand(n, PIXELS, generator=torch.Generator().manual_seed(1)) < 0.2).float()
    np.save(folder / "x.npy", x.numpy())
    np.save(folder / "bytes.npy", x.numpy().astype(np.uint8))
    (folder / "shards").mkdir()
    for i, part in enumerate(x.chunk(SHARDS)):
        np.save(folder / "shards" / f"{i}.npy", part.numpy())
    table = pa.table({str(i): column for i, column in enumerate(x.numpy().T)})
    pq.write_table(table, folder / "x.parquet", row_group_size=GROUP)
    return {
        "memory": x,
        "npy": data.stream(folder / "x.npy"),
        "bytes": data.stream(folder / "bytes.npy", levels=2),
        "memmap": np.load(folder / "x.npy", mmap_mode="r"),
        "shards": data.stream(folder / "shards"),
        "parquet": data.stream(folder / "x.parquet"),
        "iterable": Iterated(x),
        "dataset": ByRow(x),
    }


def trainer(train: Any, batch: int) -> Callable[[int], None]:
    """Return a function that trains on so many batches, and goes on from there."""
    vae = build(data_shape=(PIXELS,), latent_dim=LATENT, hidden=(HIDDEN,))
    objective, parameters = TraceMeanField_ELBO(), list(vae.parameters())

    def loss(beta: Tensor, x: tuple[Tensor, ...]) -> Tensor:
        model, guide = with_beta(vae.model, beta), with_beta(vae.guide, beta)
        return objective.differentiable_loss(model, guide, *x) / len(x[0])

    epochs = Epochs(source(train, [vae]), None, 0, batch)
    step = CompiledStep(loss, objective, parameters, next(epochs.epoch(0)))
    optimizer = adam(parameters, lr=1e-3)
    batches = itertools.chain.from_iterable(map(epochs.epoch, itertools.count()))

    def run(steps: int) -> None:
        for x in itertools.islice(batches, steps):
            step(1.0, x)
            optimizer.step()

    return run


def cool(folder: Path) -> None:
    """Drop what the system has cached of a folder's files."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def throughput(
    batch: int, rounds: int, cold: bool, n: int = ROWS, names: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return rows a second from each source, and the ratio to memory's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {k: v for k, v in sources(folder, n).items() if not names or k in names}
        trains = {name: trainer(train, batch) for name, train in found.items()}
        steps = TURN // batch
        seconds: dict[str, list[float]] = {name: [] for name in trains}
        for i in range(rounds + 1):
            for name, train in trains.items():
                if cold:
                    cool(folder)
                start = time.perf_counter()
                train(steps)
                if i:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
    memory = seconds["memory"]
    return {
        name: {
            "rows_a_second": spread([steps * batch / t for t in found]),
            "ratio_to_memory": spread([b / a for a, b in zip(found, memory, strict=True)]),
            "of_all_rounds": sum(memory) / sum(found),
        }
        for name, found in seconds.items()
    }


def write_large(path: Path, size: int) -> int:
    """Write float32 rows of about `size` bytes in all, and return how many."""
    tile = TILE // (4 * PIXELS)
    rows = size // (4 * PIXELS)
    x = (np.random.default_rng(1).random((tile, PIXELS)) < 0.2).astype(np.float32)
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, PIXELS)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, tile):
            file.write(x[: min(tile, rows - start)].data)
    return rows


class Enough(Exception):
    """So many steps were taken."""


def large(gigabytes: float, steps: int, batch: int) -> dict[str, Any]:
    """Train on an array of that size on disk for some steps; return what was resident, in MB."""
    size = int(gigabytes * 1e9)
    with tempfile.TemporaryDirectory() as folder:
        free = shutil.disk_usage(folder).free
        if free < 1.1 * size:
            raise SystemExit(f"expected {1.1 * size:.3g} bytes free in {folder}; got {free:.3g}")
        start = time.perf_counter()
        rows = write_large(Path(folder) / "x.npy", size)
        wrote, before = time.perf_counter() - start, peak()
        x = np.load(Path(folder) / "x.npy", mmap_mode="r")
        vae = build(data_shape=(PIXELS,), latent_dim=LATENT, hidden=(HIDDEN,))
        start, left = time.perf_counter(), steps + 1  # one batch is drawn before the first step

        def counted(x: Any, generator: torch.Generator) -> Any:
            """Stop after so many batches of training; those of the checks are larger."""
            nonlocal left
            if left == 0:
                raise Enough
            left -= len(x) == batch
            return x

        try:
            fit(vae.model, vae.guide, x, epochs=1, batch_size=batch, transform=counted)
        except Enough:
            pass
        seconds = time.perf_counter() - start
    return {
        "gigabytes": size / 1e9, "rows": rows, "batch": batch, "steps": steps - left,
        "seconds": seconds, "seconds_to_write": wrote, "peak_mb_before": before,
        "peak_mb": peak(),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--sources", nargs="+", default=())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    use(options.threads)
    if options.large:
        found = large(options.gigabytes, options.steps, options.batch[0])
        if options.json:
            print(json.dumps(found))
            return
        for name, value in found.items():
            print(f"{name:18}{value:,.6g}")
        return
    measured = {
        batch: throughput(batch, options.rounds, options.cold, options.rows, options.sources)
        for batch in options.batch
    }
    if options.json:
        print(json.dumps(measured))
        return
    print(f"torch {torch.__version__}, {options.threads} threads of {os.cpu_count()}")
    for batch, figures in measured.items():
        print(f"batch {batch}\n{'':10}{'rows a second':>30}{'of memory':>24}{'of all':>8}")
        for name, row in figures.items():
            (rate, low, high), (ratio, least, most) = row["rows_a_second"], row["ratio_to_memory"]
            print(f"{name:10}{rate:12,.0f} ({low:,.0f}, {high:,.0f})".ljust(42), end="")
            print(f"{ratio:8.3f} ({least:.3f}, {most:.3f}){row['of_all_rounds']:8.3f}")


if __name__ == "__main__":
    main()
