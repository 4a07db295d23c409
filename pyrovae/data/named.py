"""Data sets by name: scikit-learn's digits, torchvision's, and the Frey faces."""

import functools
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.data.dataset import Raw
from pyrovae.nets.naming import normalised

Arrays = tuple[np.ndarray, np.ndarray]  # images (N, ...) of uint8, and their labels (N,)
FREY_SHAPE = (1965, 28, 20)
FREY_HELD = 200


def _torch_arrays(found: Any) -> Arrays:
    return found.data.numpy(), found.targets.numpy()


def _upright(found: Any) -> Arrays:
    """EMNIST's files hold each image with rows and columns exchanged."""
    images, labels = _torch_arrays(found)
    return images.transpose(0, 2, 1), labels


def _channel_first(found: Any) -> Arrays:
    return found.data.transpose(0, 3, 1, 2), np.asarray(found.targets)


def _svhn(found: Any) -> Arrays:
    return found.data, found.labels


def _omniglot(found: Any) -> Arrays:
    """Read the drawings in order of their paths: torchvision takes them as the disk gives them."""
    from PIL import Image

    paths = sorted(Path(found.target_folder).glob("*/*/*.png"))
    number = {character: i for i, character in enumerate(dict.fromkeys(p.parent for p in paths))}
    images = [ink(np.asarray(Image.open(path).convert("L"))) for path in paths]
    return np.stack(images), np.array([number[path.parent] for path in paths])


def ink(image: np.ndarray, size: int = 28) -> np.ndarray:
    """Return a drawing, black (0) on white (255), as ink from 0 to 255 at size x size.

    Each new pixel is the mean over the area that it covers, so the share of ink is kept.

    Args:
        image: (H, W), uint8.
        size: pixels a side.
    """
    rows, columns = (_averages(n, size) for n in image.shape)
    return np.rint(255 - rows @ image @ columns.T).astype(np.uint8)


@functools.cache
def _averages(n: int, size: int) -> np.ndarray:
    """Return the matrix (size, n) that averages n numbers over `size` equal stretches of them."""
    fine = math.lcm(n, size)
    spread = np.kron(np.eye(n), np.ones((fine // n, 1)))
    return np.kron(np.eye(size), np.full((1, fine // size), size / fine)) @ spread


@dataclass(frozen=True)
class Torchvision:
    """How a data set is had from torchvision.

    Attributes:
        class_name: its class in `torchvision.datasets`.
        folder: where in the data folder it lies.
        train: arguments of the class for the training data.
        test: the same for the test data.
        arrays: from an instance to images and labels.
    """

    class_name: str
    folder: str
    train: dict[str, Any] = field(default_factory=lambda: {"train": True})
    test: dict[str, Any] = field(default_factory=lambda: {"train": False})
    arrays: Callable[[Any], Arrays] = _torch_arrays


def _emnist(split: str) -> Torchvision:
    return Torchvision(
        "EMNIST", "EMNIST/raw", {"split": split, "train": True}, {"split": split, "train": False},
        _upright,
    )  # fmt: skip


TORCHVISION = {
    "mnist": Torchvision("MNIST", "MNIST/raw"),
    "fashion-mnist": Torchvision("FashionMNIST", "FashionMNIST/raw"),
    "kmnist": Torchvision("KMNIST", "KMNIST/raw"),
    "emnist": _emnist("balanced"),
    **{f"emnist-{s}": _emnist(s) for s in ("letters", "digits", "mnist", "byclass", "bymerge")},
    "omniglot": Torchvision(
        "Omniglot", "omniglot-py", {"background": True}, {"background": False}, _omniglot
    ),
    "cifar10": Torchvision("CIFAR10", "cifar-10-batches-py", arrays=_channel_first),
    "svhn": Torchvision("SVHN", "", {"split": "train"}, {"split": "test"}, _svhn),
}
NAMES = ("digits", *TORCHVISION, "frey-faces")


def known_name(source: str) -> str | None:
    """Return the data set of that name, compared without case, hyphen or underscore, if any."""
    return next((name for name in NAMES if normalised(name) == normalised(source)), None)


def read_named(name: str, data_dir: str | Path | None, download: bool) -> Raw:
    """Return the arrays of a data set of `NAMES`.

    Raises:
        FileNotFoundError: it is not there, or not whole, and must not or cannot be downloaded.
        RuntimeError: the download failed.
        ValueError: the Frey faces' file holds something else.
    """
    if name == "digits":
        return _digits()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyrovae"
    root = Path(data_dir or os.environ.get("PYROVAE_DATA") or cache)
    return _frey_faces(root) if name == "frey-faces" else _torchvision(name, root, download)


def _digits() -> Raw:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)
    return Raw("digits", "digits", {"all": images}, {"all": bunch.target}, levels=17)


def _frey_faces(root: Path) -> Raw:
    path = root / "FreyFaces" / "freyfaces.npy"
    if not path.is_file():
        raise FileNotFoundError(
            f"expected frey-faces in {path}; it is not there, and is not to be downloaded: save "
            f"the faces there with numpy.save, {FREY_SHAPE} of uint8, or name their folder with "
            "--data-dir or PYROVAE_DATA"
        )
    try:
        faces = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"expected an array of numbers in {path}; {error}") from None
    if faces.shape != FREY_SHAPE or faces.dtype != np.uint8:
        raise ValueError(
            f"expected frey-faces of shape {FREY_SHAPE}, uint8, in {path}; got {faces.shape}, "
            f"{faces.dtype}"
        )
    return Raw("frey-faces", "frey-faces", {"all": faces}, {}, levels=256, held=FREY_HELD)


def _torchvision(name: str, root: Path, download: bool) -> Raw:
    wanted = TORCHVISION[name]
    damage = RuntimeError, OSError, ValueError, AssertionError
    try:
        sets = _both(wanted, root)
    except damage as error:
        if not download:
            reason = str(error).partition(".")[0] or "a file is cut off"
            raise FileNotFoundError(
                f"expected {name} in {root / wanted.folder}; it is not there, or not whole "
                f"({reason}): name its folder with --data-dir or PYROVAE_DATA, or "
                "fetch it with --download (download=True)"
            ) from error
        try:
            _fetch(wanted, root)
            sets = _both(wanted, root)
        except damage as failure:
            raise RuntimeError(f"{name} could not be downloaded to {root}: {failure}") from failure
    arrays = {split: wanted.arrays(found) for split, found in sets.items()}
    return Raw(
        name,
        name,
        {split: images for split, (images, _) in arrays.items()},
        {split: labels for split, (_, labels) in arrays.items()},
        levels=256,
    )


def _both(wanted: Torchvision, root: Path, download: bool = False) -> dict[str, Any]:
    import torchvision

    make = getattr(torchvision.datasets, wanted.class_name)
    options = {"train": wanted.train, "test": wanted.test}
    return {split: make(str(root), download=download, **o) for split, o in options.items()}


def _fetch(wanted: Torchvision, root: Path) -> None:
    """Download into a folder of its own, and move what is whole into `root`."""
    made = [p for p in (root, *root.parents) if not p.exists()]
    root.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            _both(wanted, Path(folder), download=True)
            _move(Path(folder), root)
    finally:
        for path in made:  # the innermost first
            if not any(path.iterdir()):
                path.rmdir()


def _move(source: Path, target: Path) -> None:
    """Move a folder's contents into another, each file and each new folder in one go."""
    for path in sorted(source.iterdir(), key=lambda p: not p.is_dir()):  # archives after folders
        there = target / path.name
        if path.is_dir() and there.is_dir():
            _move(path, there)
        else:
            path.replace(there)
