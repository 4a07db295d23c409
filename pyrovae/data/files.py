"""Arrays and tables on disk."""

import zlib
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from pyrovae.data.dataset import Raw
from pyrovae.data.named import NAMES
from pyrovae.data.streams import check_kind

if TYPE_CHECKING:
    import pandas as pd

FILES = (".csv", ".npy", ".npz", ".parquet")


def read_file(path: Path, missing: bool) -> Raw:
    """Return the arrays of a file; NaN are let through where entries may be missing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that holds no such array.
        ImportError: a .parquet table without pyarrow.
    """
    if path.suffix not in FILES:
        raise ValueError(
            f"expected data to be one of {', '.join(NAMES)}, or a file {', '.join(FILES)}; got "
            f"'{path}'{_of_folder(path)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of data at {path}; there is none")
    try:
        if path.suffix in (".csv", ".parquet"):
            arrays = {"all": _numbers(_csv(path) if path.suffix == ".csv" else _parquet(path))}
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
        check_array(array, f"{path} ({name})" if len(arrays) > 1 else str(path), missing)
    if len({a.shape[1:] for a in arrays.values()}) > 1:
        shapes = {name: a.shape for name, a in arrays.items()}
        raise ValueError(f"expected splits of one data shape in {path}; got {shapes}")
    return Raw(path.stem, str(path), arrays, {}, levels_of(*arrays.values()))


def _of_folder(path: Path) -> str:
    return ": a folder of shards is read with stream=True" if path.is_dir() else ""


def levels_of(*arrays: np.ndarray) -> int | None:
    """Return how many levels whole numbers of 8 bits have, 2 or 256; None for other numbers."""
    if any(a.dtype != np.uint8 for a in arrays):
        return None
    return 2 if max(int(a.max()) for a in arrays) <= 1 else 256


def _csv(path: Path) -> "pd.DataFrame":
    import pandas as pd

    first = pd.read_csv(path, header=None, nrows=1)  # all numbers: there is no header
    return pd.read_csv(path, header=0 if _words(first) else None)


def _parquet(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except ImportError:
        raise ImportError(
            f"expected pyarrow to read {path}; it is not installed: pip install 'pyrovae[parquet]'"
        ) from None


def _numbers(table: "pd.DataFrame") -> np.ndarray:
    if len(table) == 0:
        raise ValueError("it has the names of columns alone, and no rows")
    if words := _words(table):
        raise ValueError(f"columns {', '.join(words)} are no numbers: drop or encode them")
    array = table.to_numpy()
    if array.dtype == object:  # booleans beside numbers, or pandas' own missing value
        array = table.to_numpy(dtype=np.float64, na_value=np.nan)
    return array


def _words(table: "pd.DataFrame") -> list[str]:
    from pandas.api.types import is_numeric_dtype

    return [str(name) for name, dtype in table.dtypes.items() if not is_numeric_dtype(dtype)]


def check_array(array: np.ndarray, where: str, missing: bool) -> None:
    """Refuse what is no array (N, ...) of finite numbers; NaN is let through where `missing`.

    Raises:
        ValueError: naming `where` it is.
    """
    check_kind(array, where)
    if array.dtype.kind == "f":
        bad = np.isinf(array) if missing else ~np.isfinite(array)
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            remedy = "drop those rows or fill them in"
            if np.isnan(array[first]):
                remedy += ", or take a likelihood of missing entries, such as masked:normal"
            raise ValueError(
                f"expected finite numbers in {where}; got {int(bad.sum())} that are not, the first "
                f"{array[first]} at index {first}: {remedy}"
            )
