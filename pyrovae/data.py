"""Named data sets, arrays on disk, binarisation."""

import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

__all__ = ["Data", "binarize", "dequantize", "load"]

SPLITS = ("train", "validation", "test")
BINARIZE = ("none", "threshold", "static", "dynamic")
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
FILES = (".csv", ".npy", ".npz")
STATIC_SEED = 0  # of the one draw that static binarisation, validation and test use


@dataclass(frozen=True)
class Data:
    """Three splits of a data set.

    Attributes:
        name: the data set's.
        train: training data (N, ...).
        validation: validation data, N = 0 if there are none.
        test: test data.
        labels: for each split its labels (N,), or none at all; never given to a model unasked.
        levels: how many values x takes, if x is whole numbers 0, ..., levels - 1 or such levels
            scaled to [0, 1]; None for real values.
        scaled: are those levels scaled to [0, 1]?
        transform: what `fit(transform=...)` applies to each training batch, if anything.
        record: what determined the splits, as JSON-able data.
    """

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    labels: dict[str, Tensor] = field(default_factory=dict)
    levels: int | None = None
    scaled: bool = False
    transform: Callable[[Tensor, torch.Generator], Tensor] | None = None
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


def binarize(x: Any, generator: torch.Generator | None = None) -> Any:
    """Draw each value as Bernoulli(x): grey values in [0, 1] become 0 or 1.

    As a transform of `fit` this is dynamic binarisation, a fresh draw each time (Salakhutdinov &
    Murray 2008).

    Args:
        x: probabilities in [0, 1], any shape; of a batch (x, *c) the context is left as it is.
        generator: of the draws; None for the global one.

    Raises:
        ValueError: a value outside [0, 1].

    Example:
        >>> binarize(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """
    if isinstance(x, tuple):
        return binarize(x[0], generator), *x[1:]
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(
            "expected values in [0, 1] to binarise; got values from "
            f"{float(x.min()):.6g} to {float(x.max()):.6g}: rescale them"
        )
    device = x.device if generator is None else generator.device
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=device)
    return (noise.to(x.device) < x).to(x.dtype)


def dequantize(x: Tensor, generator: torch.Generator | None = None, *, levels: int = 256) -> Tensor:
    """Return (x + u) / levels with u ~ U(0, 1), for x in 0, ..., levels - 1.

    The mean log-density of the result, plus log(levels) a dimension, bounds the log-probability of
    the levels from below (Theis et al. 2016); a density at the lattice points bounds nothing.

    Args:
        x: whole numbers 0, ..., levels - 1.
        generator: of the draws; None for the global one.
        levels: how many values x takes.

    Raises:
        ValueError: a value that is no such whole number.
    """
    if x.numel() and not bool(((x == x.round()) & (x >= 0) & (x < levels)).all()):
        raise ValueError(
            f"expected whole numbers 0, ..., {levels - 1} to dequantise; got values from "
            f"{float(x.min()):.6g} to {float(x.max()):.6g}: use data.load(values='levels')"
        )
    device = x.device if generator is None else generator.device
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=device)
    return (x + noise.to(x.device)) / levels


def load(
    source: str | Path = "digits",
    *,
    values: str = "unit",
    binarize: str = "none",
    validation: int | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
) -> Data:
    """Load a data set by name, or arrays from a file.

    - "digits": scikit-learn's 1,797 handwritten digits (8, 8) of levels 0..16, offline; split at
      random 80/10/10.
    - "mnist", "fashion-mnist": through torchvision, (28, 28) of levels 0..255; the last 10,000
      training images validate.
    - a `.npy` array (N, ...), a `.csv` table of numbers, or a `.npz` with either one array or the
      arrays train, test and perhaps validation; what is not split yet is split 80/10/10 at random.
      Whole numbers of 8 bits are levels 0..255, or 0 and 1; others are taken as they are.

    Args:
        source: name or path.
        values: "unit" scales levels to [0, 1]; "levels" leaves them whole numbers.
        binarize: "none"; "threshold" at 1/2; "static", one draw with a fixed seed for all; or
            "dynamic": grey training data with `transform=data.binarize`, validation and test drawn
            once with that fixed seed.
        validation: rows that validate, taken from the training rows' end; 0 for none.
        data_dir: where torchvision's data sets lie; by default the environment variable
            PYROVAE_DATA, or else the user's cache.
        download: may a data set that is not there be downloaded?
        seed: of the random split.

    Returns:
        Data, float32, labels apart.

    Raises:
        FileNotFoundError: no such file, or a data set that is not there and must not be downloaded.
        ValueError: an unknown name, a file that holds no such array, values that are not finite, no
            rows, or an argument out of its range.

    Example:
        >>> digits = load("digits", values="levels")
        >>> digits.train.shape, float(digits.train.max())
        (torch.Size([1439, 8, 8]), 16.0)
    """
    if values not in ("unit", "levels"):
        raise ValueError(f"expected values to be 'unit' or 'levels'; got {values!r}")
    if binarize not in BINARIZE:
        raise ValueError(f"expected binarize to be one of {', '.join(BINARIZE)}; got {binarize!r}")
    if binarize != "none" and values == "levels":
        raise ValueError(
            f"expected grey values in [0, 1] to binarise by {binarize!r}; got values='levels': "
            "binarised data want a likelihood such as bernoulli, not one of levels"
        )
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"expected seed to fit in 64 bits; got {seed}")
    name = str(source).lower().replace("_", "-")
    if name == "digits":
        raw = _digits()
    elif name in TORCHVISION:
        raw = _torchvision(TORCHVISION[name], data_dir, download)
    else:
        raw = _file(Path(source))
    raw = _split(raw, validation, seed)
    scaled = raw.levels is not None and values == "unit"
    parts = {
        split: torch.from_numpy(raw.arrays[split].astype(np.float32)) / (raw.top if scaled else 1)
        for split in SPLITS
    }
    binarized = _binarized(parts, binarize)
    record = {
        "source": raw.source, "values": values, "binarize": binarize, "seed": seed,
        "sizes": {split: len(x) for split, x in parts.items()},
        "sha256": digest(binarized["test"]),
    }  # fmt: skip
    return Data(
        name=raw.name,
        **binarized,
        labels={split: torch.as_tensor(y) for split, y in raw.labels.items()},
        levels=raw.levels if binarize == "none" else 2,
        scaled=scaled and binarize == "none",
        transform=_dynamic if binarize == "dynamic" else None,
        record=record,
    )


_dynamic = binarize  # `load` has an argument of that name


@dataclass
class _Raw:
    name: str
    source: str
    arrays: dict[str, np.ndarray]  # by split, or all under "all"
    labels: dict[str, np.ndarray]
    levels: int | None

    @property
    def top(self) -> int:
        assert self.levels is not None
        return self.levels - 1


def digest(test: Tensor) -> str:
    """Return a fingerprint of test data: results compare only on the same."""
    return hashlib.sha256(repr(tuple(test.shape)).encode() + test.numpy().tobytes()).hexdigest()


def _digits() -> _Raw:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)
    return _Raw("digits", "digits", {"all": images}, {"all": bunch.target}, levels=17)


def _torchvision(class_name: str, data_dir: str | Path | None, download: bool) -> _Raw:
    import torchvision

    name = next(k for k, v in TORCHVISION.items() if v == class_name)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyrovae"
    root = Path(data_dir or os.environ.get("PYROVAE_DATA") or cache)
    sets = {}
    for split in ("train", "test"):
        try:
            sets[split] = getattr(torchvision.datasets, class_name)(
                str(root), train=split == "train", download=download
            )
        except (RuntimeError, OSError) as error:
            if download:
                raise RuntimeError(f"{name} could not be downloaded to {root}: {error}") from error
            raise FileNotFoundError(
                f"expected {name} in {root / class_name / 'raw'}; it is not there: name its folder "
                "with --data-dir or PYROVAE_DATA, or fetch it with --download"
            ) from error
    return _Raw(
        name,
        name,
        {split: s.data.numpy() for split, s in sets.items()},
        {split: s.targets.numpy() for split, s in sets.items()},
        levels=256,
    )


def _file(path: Path) -> _Raw:
    known = ", ".join(["digits", *TORCHVISION])
    if path.suffix not in FILES:
        raise ValueError(
            f"expected data to be one of {known}, or a file {', '.join(FILES)}; got '{path}'"
        )
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of data at {path}; there is none")
    try:
        if path.suffix == ".csv":
            arrays = {"all": _csv(path)}
        else:
            with path.open("rb") as file:  # numpy leaves its own open where an archive is damaged
                loaded = np.load(file, allow_pickle=False)
                arrays = {"all": loaded} if path.suffix == ".npy" else dict(loaded)
    except (ValueError, OSError, EOFError, KeyError, BadZipFile, zlib.error) as error:
        raise ValueError(
            f"expected an array of numbers in {path}; it cannot be read: {error}"
        ) from None
    if set(arrays) - {"train", "validation", "test"}:
        if len(arrays) != 1:
            raise ValueError(
                f"expected {path} to hold one array, or train, test and perhaps validation; got "
                f"{', '.join(arrays)}"
            )
        arrays = {"all": next(iter(arrays.values()))}
    elif not {"train", "test"} <= set(arrays):
        raise ValueError(f"expected both train and test in {path}; got {', '.join(arrays)}")
    for name, array in arrays.items():
        _check_array(array, f"{path} ({name})" if len(arrays) > 1 else str(path))
    if len({a.shape[1:] for a in arrays.values()}) > 1:
        shapes = {name: a.shape for name, a in arrays.items()}
        raise ValueError(f"expected splits of one data shape in {path}; got {shapes}")
    levels = None
    if all(a.dtype == np.uint8 for a in arrays.values()):
        levels = 2 if max(int(a.max()) for a in arrays.values()) <= 1 else 256
    return _Raw(path.stem, str(path), arrays, {}, levels)


def _csv(path: Path) -> np.ndarray:
    import pandas as pd

    table = pd.read_csv(path)
    if all(_is_number(c) for c in table.columns):  # no header: the first row is data
        table = pd.read_csv(path, header=None)
    words = [str(c) for c in table.columns if not pd.api.types.is_numeric_dtype(table[c])]
    if words:
        raise ValueError(f"columns {', '.join(words)} are no numbers: drop or encode them")
    return table.to_numpy()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_array(array: np.ndarray, where: str) -> None:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"expected numbers in {where}; got dtype {array.dtype}")
    if array.ndim < 2:
        raise ValueError(
            f"expected an array (N, ...) with a row a datum in {where}; got shape {array.shape}"
        )
    if array.size == 0:
        raise ValueError(f"expected at least one row in {where}; got shape {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = ~np.isfinite(array)
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"expected finite numbers in {where}; got {int(bad.sum())} that are not, the first "
            f"{array[first]} at index {first}: drop those rows or fill them in"
        )


def _split(raw: _Raw, validation: int | None, seed: int) -> _Raw:
    """Give every array a split: 80/10/10 at random where there is none; then take validation."""
    arrays, labels = dict(raw.arrays), dict(raw.labels)
    if "all" in arrays:
        n = len(arrays["all"])
        if n < 3:
            raise ValueError(f"expected at least 3 rows to split in {raw.source}; got {n}")
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
        tenth = max(1, n // 10)
        rows = {"train": order[: n - tenth], "test": order[n - tenth :]}
        default = tenth
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
    return _Raw(raw.name, raw.source, arrays, labels, raw.levels)


def _binarized(parts: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "none":
        return parts
    if how == "threshold":
        return {split: (x > 0.5).to(x.dtype) for split, x in parts.items()}
    return {  # each split from a seed of its own: the test data do not depend on the others' sizes
        split: x
        if how == "dynamic" and split == "train"
        else binarize(x, torch.Generator().manual_seed(STATIC_SEED + i))
        for i, (split, x) in enumerate(parts.items())
    }
