"""The data of a run, loaded as it was trained on them; and new data, treated as those."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import data as datasets
from pyrovae.data.files import read_file
from pyrovae.data.transforms import dequantize_unit
from pyrovae.importance import batched, check_support, inspect
from pyrovae.nets.naming import hyphenated
from pyrovae.pairs.base import Pair
from pyrovae.training import rundir
from pyrovae.training.batches import Batch

if TYPE_CHECKING:
    import pandas as pd

SPLIT = "test"  # whose treatment new data get, and where they are in their `Data`
ROWS = 1024  # checked at once


@dataclass(frozen=True)
class Rows:
    """Data that a run is asked about.

    Attributes:
        data: where they are from, standardised as the run's.
        split: of `data`.
        x: as the pair takes them (N, *data_shape).
        c: its context, N rows each, see `context_of`.
        sha256: fingerprint of x in original units.
    """

    data: datasets.Data
    split: str
    x: Tensor
    c: Batch
    sha256: str


def context_of(pair: Pair, data: datasets.Data, split: str) -> Batch:
    """Return what a pair is given beside each datum of a split.

    Where its prior is `indexed`, the datum's index among the training data, -1 for what is not
    trained on; where the pair `takes_labels`, what its `context` makes of the labels.

    Args:
        pair: the pair.
        data: the data.
        split: of them.

    Returns:
        Tensors of whole numbers (N,), or none.

    Raises:
        ValueError: the pair takes labels, and the data have none.
    """
    n = len(getattr(data, split))
    context = []
    if getattr(pair.prior, "indexed", False):
        context.append(torch.arange(n) if split == "train" else torch.full((n,), -1))
    if pair.takes_labels:
        if split not in data.labels:
            raise ValueError(
                f"expected data with labels, which are the context of pair "
                f"{hyphenated(type(pair).__name__)}; {data.name} has none: name data that have, "
                "such as digits or mnist, or a pair without context, such as vae"
            )
        context.append(pair.context(data.labels[split].long(), train=split == "train"))
    return tuple(context)


def classes(data: datasets.Data) -> int | None:
    """Return how many classes 0, 1, ... the training labels show, None without labels."""
    return int(data.labels["train"].max()) + 1 if "train" in data.labels else None


def context_to_sample(pair: Pair, number: int | None, n: int) -> Batch:
    """Return the context of n samples: labels 0, 1, ... in turn, where the pair takes labels.

    Args:
        pair: the pair.
        number: of classes; None to leave the context to the pair.
        n: how many samples.
    """
    return (torch.arange(n) % number,) if pair.takes_labels and number is not None else ()


def context_of_samples(run: Path, pair: Pair, n: int) -> Batch:
    """Return the context of n samples of a run: see `context_to_sample`."""
    number = rundir.read_config(run).get("record", {}).get("classes")
    return context_to_sample(pair, number, n)


def rows_of(
    run: Path,
    vae: Pair,
    *,
    split: str | None = None,
    new: Path | None = None,
    limit: int | None = None,
    data_dir: Path | None = None,
    seed: int = 0,
) -> Rows:
    """Return rows of a run's own data, or of new data.

    Args:
        run: the directory.
        vae: its pair.
        split: of the run's own data; None for test.
        new: a file of new data in place of them, all of which is meant: see `load_new`.
        limit: the first so many alone.
        data_dir: where named data sets lie, if not where the run found them.
        seed: of what is drawn afresh for each epoch of training.

    Raises:
        ValueError: both a split and new data, new data for a pair that takes labels, data that are
            not as the run's or off the support of its likelihood, or a limit that is no positive
            whole number.
        FileNotFoundError: data that are not there.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"expected limit to be a positive whole number; got {limit}")
    if new is not None and split is not None:
        raise ValueError(
            f"expected a split of the run's own data, or new data; got both, {split} and {new}: "
            "all rows of a file are meant"
        )
    if new is not None and vae.takes_labels:
        raise ValueError(
            "expected a split of the run's own data, whose labels are the context of pair "
            f"{hyphenated(type(vae).__name__)}; got {new}, and files hold none: leave --data out"
        )
    name = split or SPLIT
    raw = raw_data(run, data_dir) if new is None else load_new(run, new, data_dir)
    rows = raw.split(name)[:limit]
    if raw.transform is not None and name == "train":
        rows = raw.transform(rows, torch.Generator().manual_seed(seed))
    data = as_kept(run, raw)
    x = data.split(name)[:limit] if data.scale is not None else rows
    context = tuple(t[:limit] for t in context_of(vae, data, name))
    if new is not None:
        _check(vae, x, context, new)
    return Rows(data, name, x, context, datasets.digest(rows))


def load_data(run: Path, data_dir: Path | None = None) -> datasets.Data:
    """Load the data of a run again, standardised as they were for it.

    Raises:
        ValueError: the run's record is damaged, or the test data are not those of the run.
        FileNotFoundError: no such run, or its data are not there.
    """
    return as_kept(run, raw_data(run, data_dir))


def load_source(
    source: Mapping[str, Any], data_dir: Path | None, download: bool = False
) -> datasets.Data:
    """Load data from arguments of `data.load`; those of a file in float64.

    A column such as a date may vary in digits that float32 does not hold.
    """
    dtype = _dtype(source)
    return datasets.load(**source, data_dir=data_dir, download=download, dtype=dtype)


def traits(
    source: Mapping[str, Any], loaded: datasets.Data, data_dir: Path | None
) -> dict[str, Any]:
    """Return what new data are held against, as JSON-able data, for a run's record.

    Args:
        source: arguments of `data.load`.
        loaded: what it returned.
        data_dir: where named data sets lie.

    Returns:
        `levels`, how many values the data took before they were scaled or binarised, None for real
        values; `columns`, their names, None for those of no table or without names; and `classes`,
        see `classes`.
    """
    binarized = source["binarize"] != "none"
    plain = load_source({**source, "binarize": "none"}, data_dir) if binarized else loaded
    table = _named(Path(source["source"]))
    columns = None if table is None else [str(name) for name in table.columns]
    return {"levels": plain.levels, "columns": columns, "classes": classes(loaded)}


def raw_data(run: Path, data_dir: Path | None = None) -> datasets.Data:
    """Load the data of a run again, in original units; errors as those of `load_data`."""
    config = _config(run)
    source = dict(config["data"])
    kept_dir = source.pop("data_dir", None)
    loaded = load_source(source, data_dir or kept_dir)
    if loaded.record["sha256"] != config["record"]["sha256"]:
        raise ValueError(
            f"expected the data that {run} was trained on; {source['source']} has changed since"
        )
    return loaded


def load_new(run: Path, path: Path, data_dir: Path | None = None) -> datasets.Data:
    """Load a file of new data, and treat it as the test data of a run were, but for `as_kept`.

    Levels are scaled as the run's were; what was binarised or dequantised is, by the one draw with
    a fixed seed that the test data had. Nothing is split: an archive of several splits is joined,
    train, validation and test. Where the run and the file both name columns, these are taken by
    name, in the run's order. An image may be a flat row, its lines one after another.

    Args:
        run: the directory.
        path: .csv, .parquet, .npy or .npz, as `data.load` reads them.
        data_dir: where named data sets lie: a run of an older version does not record the levels
            of its data, which are then loaded to see.

    Returns:
        Data whose test split has all the rows, the others none.

    Raises:
        ValueError: a file that holds no such array, other columns, another shape or other values.
        FileNotFoundError: no such run, or no such file.
    """
    config = _config(run)
    source, record = config["data"], config["record"]
    if path.suffix not in datasets.FILES:
        raise ValueError(
            f"expected a file of new data, {', '.join(datasets.FILES)}; got '{path}': the run's "
            "own data are had without --data"
        )
    order = _order(run, path, record.get("columns"))
    raw = read_file(path, source.get("missing", False))
    array = np.concatenate([raw.arrays[s] for s in ("all", *datasets.SPLITS) if s in raw.arrays])
    shape = tuple(config["build"]["data_shape"])
    if array.shape[1:] == (math.prod(shape),):
        array = array.reshape(-1, *shape)
    if array.shape[1:] != shape:
        raise ValueError(
            f"expected data {_shape(shape)}, as those of {run}; {path} holds "
            f"{_shape(array.shape[1:])}: reshape them"
        )
    array = array if order is None else array[:, order]
    x = torch.from_numpy(array.astype(np.float64, order="C")).to(_dtype(source))
    levels = record["levels"] if "levels" in record else _levels(run, source, data_dir)
    scaled = levels is not None and source["values"] == "unit"
    if levels is not None:
        _check_levels(x, levels, scaled, path)
        x = x / (levels - 1) if scaled else x
    x = _drawn(x, source, levels)
    binarized = source["binarize"] != "none"
    return datasets.Data(
        name=path.stem, train=x[:0], validation=x[:0], test=x, levels=2 if binarized else levels,
        scaled=scaled and not binarized, dequantized=source.get("dequantize", False),
    )  # fmt: skip


def kept(run: Path) -> tuple[Tensor | None, Tensor | None]:
    """Return loc and scale of a run whose table was standardised."""
    record = rundir.read_config(run).get("record", {})
    if "scale" not in record:
        return None, None
    try:
        loc, scale = (torch.tensor(record[k], dtype=torch.float64) for k in ("loc", "scale"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{Path(run) / 'config.json'} is damaged: {error!r}") from None
    return loc, scale


def as_kept(run: Path, raw: datasets.Data) -> datasets.Data:
    """Return data standardised by the loc and scale that a run kept, if it did."""
    loc, scale = kept(run)
    return raw if loc is None or scale is None else datasets.rescale(raw, loc, scale)


def _config(run: Path) -> dict[str, Any]:
    config = rundir.read_config(run)
    if "source" not in config.get("data", {}) or "sha256" not in config.get("record", {}):
        raise ValueError(
            f"expected {run}/config.json to name the data; it does not: the run was made by "
            "fit(run=...), so use pyrovae.load and evidence.iwae on data of your own"
        )
    return config


def _dtype(source: Mapping[str, Any]) -> torch.dtype:
    of_file = Path(source["source"]).suffix in datasets.FILES
    return torch.float64 if of_file else torch.float32


def _levels(run: Path, source: Mapping[str, Any], data_dir: Path | None) -> int | None:
    """Return how many values a run's own data take, from the data themselves."""
    raw_data(run, data_dir)  # refuses what has changed
    plain = {k: v for k, v in source.items() if k != "data_dir"} | {"binarize": "none"}
    return load_source(plain, data_dir or source.get("data_dir")).levels


def _named(path: Path) -> "pd.DataFrame | None":
    """Return the first rows at least of a table on disk whose columns have names, if it is one.

    A file that cannot be read is none here: `data.load` says why it cannot.
    """
    import pandas as pd
    from pandas.api.types import is_numeric_dtype

    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq  # type: ignore[import-untyped]

            with pq.ParquetFile(path) as file:
                batch = next(file.iter_batches(1), file.schema_arrow.empty_table())
                return batch.to_pandas()
        if path.suffix == ".csv":
            first = pd.read_csv(path, header=None, nrows=1)
            if not all(is_numeric_dtype(dtype) for dtype in first.dtypes):
                return pd.read_csv(path, nrows=1)
    except (ValueError, OSError, ImportError):
        pass
    return None


def _order(run: Path, path: Path, wanted: list[str] | None) -> list[int] | None:
    """Return where in a file each of the run's columns is, where both have names."""
    table = _named(path)
    if table is None or wanted is None:
        return None
    names = [str(name) for name in table.columns]
    missing = [name for name in wanted if name not in names]
    unknown = [name for name in names if name not in wanted]
    if missing or unknown or len(names) != len(wanted):
        raise ValueError(
            f"expected the columns of {run} in {path}: {', '.join(wanted)}; missing: "
            f"{', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    if len(table) == 0:
        raise ValueError(f"expected at least one row in {path}; it has the names of columns alone")
    return [names.index(name) for name in wanted]


def _shape(shape: tuple[int, ...]) -> str:
    return f"(N, {', '.join(map(str, shape))})"


def _check_levels(x: Tensor, levels: int, scaled: bool, path: Path) -> None:
    """Refuse what are no levels, or levels of another scale."""
    seen = x[~x.isnan()]
    top = levels - 1
    asked = f"expected whole numbers 0, ..., {top} in {path}, as the run's own data are"
    good = (seen == seen.round()) & (seen >= 0) & (seen <= top)
    if not bool(good.all()):
        raise ValueError(
            f"{asked} before anything is done to them; got {int((~good).sum())} of {len(seen)} "
            f"that are not, the first {float(seen[~good][0]):.6g}: undo any scaling"
        )
    if scaled and top > 1 and len(seen) and float(seen.max()) == 1:
        raise ValueError(
            f"{asked}; got 0 and 1 alone, as if scaled already: multiply them by {top} if 1 is "
            "their full value"
        )


def _drawn(x: Tensor, source: Mapping[str, Any], levels: int | None) -> Tensor:
    """Binarise or dequantise as the test data of a run were."""
    generator = torch.Generator().manual_seed(datasets.STATIC_SEED + datasets.SPLITS.index(SPLIT))
    if source.get("dequantize") and levels is not None:
        noisy: Tensor = dequantize_unit(x, generator, levels=levels)
        return noisy
    if source["binarize"] == "threshold":
        return torch.where(x.isnan(), x, (x > 0.5).to(x.dtype))
    if source["binarize"] in ("static", "dynamic"):
        drawn: Tensor = datasets.binarize(x, generator)
        return drawn
    return x


def check_rows(vae: Pair, x: Tensor, c: Batch) -> None:
    """Refuse data off the support of the likelihood, or that are not finite.

    Raises:
        ValueError: naming the first of them.
    """
    chunks = zip(*(t.split(ROWS) for t in (x, *c)), strict=True)
    for start, (rows, *context) in zip(range(0, len(x), ROWS), chunks, strict=True):
        rows, given = batched(rows, context, [vae])
        datum = inspect(vae.model, vae.guide, rows, *given).datum
        if datum is not None:
            check_support(datum, rows, start)


def _check(vae: Pair, x: Tensor, c: Batch, path: Path) -> None:
    """Refuse new data that are not like the run's."""
    try:
        check_rows(vae, x, c)
    except ValueError as error:
        raise ValueError(
            f"expected data like the run's, in its units, in {path}; got others: {error}"
        ) from None
