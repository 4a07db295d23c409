"""`load`: a data set by name, or arrays from a file."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrovae.data import transforms
from pyrovae.data.dataset import SPLITS, Data, Raw, digest
from pyrovae.data.files import check_array, levels_of, read_file
from pyrovae.data.named import known_name, read_named
from pyrovae.data.streams import Stream, Without, on_disk, take

BINARIZE = ("none", "threshold", "static", "dynamic")
HELD = 10_000  # rows to test on, and to validate on, at the most, of data that stay on disk
STATIC_SEED = 0  # of the one draw that static binarisation, validation and test use


def load(
    source: str | Path = "digits",
    *,
    values: str = "unit",
    binarize: str = "none",
    dequantize: bool = False,
    standardize: bool = False,
    missing: bool = False,
    stream: bool = False,
    validation: int | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Data:
    """Load a data set by name, or arrays from a file.

    - "digits": scikit-learn's 1,797 handwritten digits (8, 8) of levels 0..16, offline; split at
      random 80/10/10.
    - "mnist", "fashion-mnist", "kmnist", "emnist" (balanced; or "emnist-letters", "-digits",
      "-mnist", "-byclass", "-bymerge"): through torchvision, (28, 28) of levels 0..255, upright.
    - "omniglot": through torchvision, the ink of drawings averaged to (28, 28), levels 0..255; the
      background alphabets train, those for evaluation test, and labels count within either. (Burda
      et al. 2016 split the same drawings otherwise.)
    - "cifar10", "svhn": through torchvision, (3, 32, 32) of levels 0..255.
    - "frey-faces": from FreyFaces/freyfaces.npy in the data folder, (28, 20) of levels 0..255;
      split at random 1565/200/200.
    - a `.npy` array (N, ...), a `.csv` or `.parquet` table of numbers, or a `.npz` with either one
      array or the arrays train, test and perhaps validation; what is not split yet is split
      80/10/10 at random. Whole numbers of 8 bits are levels 0..255, or 0 and 1; others are taken as
      they are.

    Of what comes split, the last 10,000 training rows validate, or the last sixth if that is less.

    Args:
        source: name or path.
        values: "unit" scales levels to [0, 1]; "levels" leaves them whole numbers.
        binarize: "none"; "threshold" at 1/2; "static", one draw with a fixed seed for all; or
            "dynamic": grey training data with `transform=data.binarize`, validation and test drawn
            once with that fixed seed.
        dequantize: levels x in [0, 1] become (k + u) / levels, u ~ U(0, 1): training data afresh in
            each batch, by `transform`, validation and test once with a fixed seed.
        standardize: columns of a table, (x - mean) / sd of the training rows; see
            `data.standardize`.
        missing: may entries of a file be missing, NaN or empty? They stay NaN.
        stream: leave the training data on disk, to be read as they are wanted: `train` is then a
            `Stream`, see `data.stream`, of a `.npy` file, a folder of such shards or a `.parquet`
            table. Test and validation data, a tenth each but 10,000 rows at the most, are drawn at
            random and in memory. Whether 8 bits are levels 0..255, or 0 and 1, is seen from these.
        validation: rows that validate, taken from the training rows' end; 0 for none.
        data_dir: where named data sets lie; by default the environment variable PYROVAE_DATA, or
            else the user's cache.
        download: may a data set that is not there be downloaded?
        seed: of the random split.
        dtype: of the data, float32 or float64.

    Returns:
        Data, labels apart.

    Raises:
        FileNotFoundError: no such file, or a data set that is not there and must not be downloaded.
        ImportError: a .parquet table without pyarrow.
        ValueError: an unknown name, a file that holds no such array, values that are not finite, no
            rows, or an argument out of its range.

    Example:
        >>> digits = load("digits", values="levels")
        >>> digits.train.shape, float(digits.train.max())
        (torch.Size([1439, 8, 8]), 16.0)
    """
    _check(values, binarize, dequantize, seed, dtype)
    if stream:
        _check_stream(binarize, standardize)
        raw = _held_out(Path(source), missing, validation, seed)
    else:
        name = known_name(str(source))
        if name is None:
            raw = read_file(Path(source), missing)
        else:
            raw = read_named(name, data_dir, download)
        raw = _split(raw, validation, seed)
    scaled = raw.levels is not None and values == "unit"
    top = raw.levels - 1 if raw.levels is not None and scaled else 1
    kind = np.float64 if standardize or dtype == torch.float64 else np.float32
    splits: dict[str, Any] = {
        s: torch.from_numpy(raw.arrays[s].astype(kind, order="C")) / top
        for s in SPLITS
        if s in raw.arrays
    }
    if raw.streamed is not None:
        splits = {"train": Stream([raw.streamed], None, raw.levels if scaled else None), **splits}
    transform: transforms.Draw | None = None
    if dequantize:
        if raw.levels is None:
            raise ValueError(
                f"expected data of levels to dequantise, whole numbers of 8 bits; {raw.source} "
                "holds others: leave dequantize (--dequantize) out"
            )
        noisy = functools.partial(transforms.dequantize_unit, levels=raw.levels)
        splits, transform = _drawn(splits, noisy, but="train"), noisy
    elif binarize == "threshold":
        splits = _drawn(splits, _threshold, but="train" if stream else None)
        transform = _threshold if stream else None
    elif binarize == "static":
        splits = _drawn(splits, transforms.binarize)
    elif binarize == "dynamic":
        splits, transform = _drawn(splits, transforms.binarize, but="train"), transforms.binarize
    found = Data(
        name=raw.name,
        **splits,
        labels={split: torch.as_tensor(y) for split, y in raw.labels.items()},
        levels=raw.levels if binarize == "none" else 2,
        scaled=scaled and binarize == "none",
        dequantized=dequantize,
        transform=transform,
        record={
            "source": raw.source, "values": values, "binarize": binarize,
            "dequantize": dequantize, "missing": missing, "seed": seed, "stream": stream,
            "sizes": {split: len(x) for split, x in splits.items()},
            "sha256": digest(splits["test"]),
        },
    )  # fmt: skip
    if not standardize:
        return found
    found = transforms.standardize(found)
    return replace(found, **{split: getattr(found, split).to(dtype) for split in SPLITS})


def _check(values: str, binarize: str, dequantize: bool, seed: int, dtype: torch.dtype) -> None:
    if values not in ("unit", "levels"):
        raise ValueError(f"expected values to be 'unit' or 'levels'; got {values!r}")
    if binarize not in BINARIZE:
        raise ValueError(f"expected binarize to be one of {', '.join(BINARIZE)}; got {binarize!r}")
    if binarize != "none" and values == "levels":
        raise ValueError(
            f"expected grey values in [0, 1] to binarise by {binarize!r}; got values='levels': "
            "binarised data want a likelihood such as bernoulli, not one of levels"
        )
    if dequantize and (binarize != "none" or values == "levels"):
        raise ValueError(
            "expected values='unit' and binarize='none' to dequantise, which makes real numbers in "
            f"[0, 1); got {values!r} and {binarize!r}"
        )
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"expected seed to fit in 64 bits; got {seed}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"expected dtype to be torch.float32 or torch.float64; got {dtype}")


def _check_stream(binarize: str, standardize: bool) -> None:
    if binarize == "static":
        raise ValueError(
            "expected binarize to be 'none', 'threshold' or 'dynamic' with stream=True; got "
            "'static', one draw of all the data: binarise the file itself"
        )
    if standardize:
        raise ValueError(
            "expected standardize=False with stream=True; got True, which takes the mean of all "
            "the data: standardise the file itself"
        )


def _threshold(x: Any, generator: torch.Generator | None = None) -> Any:
    if isinstance(x, tuple):
        return _threshold(x[0]), *x[1:]
    return torch.where(x.isnan(), x, (x > 0.5).to(x.dtype))


def _drawn(splits: dict[str, Any], draw: transforms.Draw, but: str | None = None) -> dict[str, Any]:
    """Draw each split once, `but` one, from a seed of its own: none depends on another's size."""
    return {
        split: x if split == but else draw(x, torch.Generator().manual_seed(STATIC_SEED + i))
        for i, (split, x) in enumerate(splits.items())
    }


def _held_out(path: Path, missing: bool, validation: int | None, seed: int) -> Raw:
    """Take test and validation data from an array on disk, at random; the rest stays there."""
    rows = on_disk(path)
    n = len(rows)
    if n < 3:
        raise ValueError(f"expected at least 3 rows to split in {path}; got {n}")
    tested = min(HELD, max(1, n // 10))
    held = tested if validation is None else validation
    if not 0 <= held < n - tested:
        raise ValueError(
            f"expected validation to be between 0 and {n - tested - 1}, fewer than the training "
            f"rows; got {held}"
        )
    chosen = np.random.default_rng(seed % 2**64).choice(n, tested + held, replace=False)
    found = take(rows, chosen)
    check_array(found, f"what is held out of {path}", missing)
    arrays = {"validation": found[tested:], "test": found[:tested]}
    name = path.stem if path.is_file() else path.name
    kept = Without(rows, np.sort(chosen))
    return Raw(name, str(path), arrays, {}, levels_of(found), streamed=kept)


def _split(raw: Raw, validation: int | None, seed: int) -> Raw:
    """Give every array a split, at random where there is none; then take validation."""
    arrays, labels = dict(raw.arrays), dict(raw.labels)
    if "all" in arrays:
        n = len(arrays["all"])
        if n < 3:
            raise ValueError(f"expected at least 3 rows to split in {raw.source}; got {n}")
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
        default = max(1, n // 10) if raw.held is None else raw.held
        rows = {"train": order[: n - default], "test": order[n - default :]}
        arrays = {split: arrays["all"][r] for split, r in rows.items()}
        labels = {split: raw.labels["all"][r] for split, r in rows.items()} if labels else {}
    else:
        default = min(10_000, len(arrays["train"]) // 6)
    if "validation" in arrays:
        if validation is not None:
            raise ValueError(f"expected no --validation: {raw.source} has a validation split")
    else:
        held = default if validation is None else validation
        n = len(arrays["train"])
        if not 0 <= held < n:
            raise ValueError(
                f"expected validation to be between 0 and {n - 1}, fewer than the training rows; "
                f"got {held}"
            )
        for part in (arrays, labels):
            if part:
                part["validation"] = part["train"][n - held :]
                part["train"] = part["train"][: n - held]
    return Raw(raw.name, raw.source, arrays, labels, raw.levels)
