import hashlib
import math
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrovae import data


def test_digits():
    unit, levels = data.load("digits"), data.load("digits", values="levels")
    assert (unit.name, unit.levels, unit.scaled, unit.data_shape) == ("digits", 17, True, (8, 8))
    torch.testing.assert_close(unit.train * 16, levels.train)
    assert set(levels.train.unique().tolist()) == set(map(float, range(17)))
    sizes = {split: len(unit.split(split)) for split in data.SPLITS}
    assert sizes == {"train": 1439, "validation": 179, "test": 179} == unit.record["sizes"]
    assert all(len(unit.labels[split]) == n for split, n in sizes.items())


def test_splits_are_seeded_disjoint_and_whole():
    first, again, other = (data.load("digits", seed=s) for s in (0, 0, 1))
    assert torch.equal(first.test, again.test) and not torch.equal(first.test, other.test)
    rows = torch.cat([first.train, first.validation, first.test]).flatten(1)
    whole = torch.cat([other.train, other.validation, other.test]).flatten(1)
    assert sorted(rows.tolist()) == sorted(whole.tolist())


def test_labels_stay_with_their_images():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    known = {i.tobytes(): t for i, t in zip(bunch.images.astype("f4"), bunch.target, strict=True)}
    digits = data.load("digits", values="levels")
    for split in data.SPLITS:
        labels = [known[image.numpy().tobytes()] for image in digits.split(split)]
        assert digits.labels[split].tolist() == labels


def test_binarised_test_data_are_the_same_whatever_the_rest():
    loads = [
        data.load("digits", binarize=how, validation=n)
        for how in ("static", "dynamic")
        for n in (None, 0, 100)
    ]
    assert all(torch.equal(one.test, loads[0].test) for one in loads)
    assert len({one.record["sha256"] for one in loads}) == 1
    assert data.load("digits").record["sha256"] != loads[0].record["sha256"]


def test_validation_comes_from_the_training_rows():
    none, some = data.load("digits", validation=0), data.load("digits", validation=100)
    assert torch.equal(none.test, some.test)
    assert (len(none.validation), len(some.validation)) == (0, 100)
    assert torch.equal(torch.cat([some.train, some.validation]), none.train)
    with pytest.raises(ValueError, match="validation of digits has none"):
        none.split("validation")
    for bad in (-1, 1618):
        with pytest.raises(ValueError, match="validation to be between 0 and 1617"):
            data.load("digits", validation=bad)


def test_binarisation():
    grey = data.load("digits")
    by = {how: data.load("digits", binarize=how) for how in data.BINARIZE[1:]}
    assert torch.equal(by["threshold"].train, (grey.train > 0.5).float())
    assert torch.equal(by["dynamic"].train, grey.train)
    assert by["dynamic"].transform is data.binarize and by["static"].transform is None
    for how in ("static", "dynamic"):
        again = data.load("digits", binarize=how)
        for split in ("validation", "test"):
            x = by[how].split(split)
            assert set(x.unique().tolist()) == {0.0, 1.0}
            assert torch.equal(x, again.split(split))
    x, p = by["static"].train, grey.train
    error = (p * (1 - p)).sum().sqrt() / p.numel()
    assert abs((x - p).mean()) < 4.5 * error
    assert by["static"].levels == 2


def test_binarize_refuses_what_is_no_probability():
    with pytest.raises(
        ValueError, match=r"values in \[0, 1\] to binarise; got values from 0 to 16"
    ):
        data.binarize(torch.tensor([0.0, 16.0]))


def test_binarize_leaves_context_alone():
    x, c = data.binarize((torch.full((50,), 0.5), torch.full((50,), 0.5)))
    assert set(x.tolist()) == {0.0, 1.0} and set(c.tolist()) == {0.5}


def test_dequantize():
    x = torch.arange(4.0).repeat(1000)
    generator = torch.Generator().manual_seed(0)
    y = data.dequantize(x, generator, levels=4)
    assert torch.equal((y * 4).floor(), x) and y.min() >= 0 and y.max() < 1
    assert abs((y * 4 - x).mean() - 0.5) < 4.5 / math.sqrt(12 * len(x))
    with pytest.raises(ValueError, match="whole numbers 0, ..., 3"):
        data.dequantize(x + 0.5, levels=4)


def test_mnist(data_dir):
    mnist = data.load("mnist", data_dir=data_dir)
    assert mnist.train.shape == (50_000, 28, 28) and mnist.train.max() == 1
    assert len(mnist.validation) == len(mnist.test) == 10_000
    whole = data.load("MNIST", data_dir=data_dir, validation=0, values="levels")
    assert torch.equal(whole.train[50_000:], mnist.validation * 255)
    assert mnist.labels["test"][:3].tolist() == [7, 2, 1]


def test_files(tmp_path):
    x = np.arange(60, dtype=np.uint8).reshape(20, 3)
    np.save(tmp_path / "a.npy", x)
    loaded = data.load(tmp_path / "a.npy", values="levels")
    assert (loaded.name, loaded.levels, loaded.train.shape) == ("a", 256, (16, 3))
    assert data.load(tmp_path / "a.npy").train.max() <= 1
    np.save(tmp_path / "f.npy", x * 0.5)
    assert data.load(tmp_path / "f.npy").levels is None
    np.save(tmp_path / "b.npy", x % 2)
    binary = data.load(tmp_path / "b.npy", binarize="threshold")
    assert binary.train.max() == 1 and binary.levels == 2
    np.save(tmp_path / "big.npy", x.astype(">f8"))
    assert data.load(tmp_path / "big.npy").train.dtype == torch.float32
    np.savez(tmp_path / "s.npz", train=x[:12], test=x[12:], validation=x[:2])
    split = data.load(tmp_path / "s.npz", values="levels")
    assert torch.equal(split.test, torch.as_tensor(x[12:]).float()) and len(split.validation) == 2
    with pytest.raises(ValueError, match="no --validation"):
        data.load(tmp_path / "s.npz", validation=3)
    np.savez(tmp_path / "one.npz", x=x)
    assert data.load(tmp_path / "one.npz").data_shape == (3,)
    for header in (True, False):
        text = ("u,v\n" if header else "") + "\n".join("1.5,2" for _ in range(20))
        (tmp_path / "t.csv").write_text(text)
        loaded = data.load(tmp_path / "t.csv")
        assert sum(len(loaded.split(s)) for s in data.SPLITS) == 20


def test_bad_files(tmp_path):
    def refused(name, message, error=ValueError):
        with pytest.raises(error, match=message):
            data.load(tmp_path / name)

    refused("x.npy", "file of data at .*x.npy; there is none", FileNotFoundError)
    (tmp_path / "text.npy").write_text("hello")
    refused("text.npy", "array of numbers in .*cannot be read")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused("objects.npy", "cannot be read")
    np.save(tmp_path / "words.npy", np.array([["a"]]))
    refused("words.npy", "expected numbers in .*got dtype <U1")
    np.save(tmp_path / "flat.npy", np.zeros(5))
    refused("flat.npy", r"row a datum in .*got shape \(5,\)")
    np.save(tmp_path / "empty.npy", np.zeros((0, 5)))
    refused("empty.npy", "at least one row")
    np.save(tmp_path / "few.npy", np.zeros((2, 5)))
    refused("few.npy", "at least 3 rows to split")
    np.save(tmp_path / "nan.npy", np.array([[1.0], [np.nan], [np.inf]]))
    refused("nan.npy", r"got 2 that are not, the first nan at index \(1, 0\)")
    np.savez(tmp_path / "many.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    refused("many.npz", "one array, or train, test")
    whole = (tmp_path / "many.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    refused("half.npz", "cannot be read")
    np.savez(tmp_path / "train.npz", train=np.zeros((2, 2)), validation=np.zeros((2, 2)))
    refused("train.npz", "both train and test")
    np.savez(tmp_path / "shapes.npz", train=np.zeros((9, 2)), test=np.zeros((9, 3)))
    refused("shapes.npz", "splits of one data shape")
    (tmp_path / "words.csv").write_text("a,b\n1,x\n2,y\n")
    refused("words.csv", "columns b are no numbers")
    (tmp_path / "empty.csv").write_text("")
    refused("empty.csv", "cannot be read")
    refused("x.jpeg", "one of digits, mnist, .*, frey-faces, or a file .csv, .npy, .npz, .parquet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": "grey"}, "values to be 'unit' or 'levels'; got 'grey'"),
        ({"binarize": "yes"}, "binarize to be one of none, threshold, static, dynamic; got 'yes'"),
        (
            {"binarize": "static", "values": "levels"},
            "binarised data want a likelihood such as bernoulli",
        ),
        ({"dequantize": True, "values": "levels"}, "values='unit' and binarize='none' to deq"),
        ({"dequantize": True, "binarize": "static"}, "values='unit' and binarize='none' to deq"),
        ({"standardize": True}, r"a table \(N, D\) of real values .* got data shape \(8, 8\)"),
        ({"dtype": torch.float16}, "dtype to be torch.float32 or torch.float64"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        data.load("digits", **options)


# Data sets by name, from tiny files in the formats that torchvision reads


def images(n, shape=(28, 28), seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(n, *shape), dtype=np.uint8)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    path.write_bytes(head + array.tobytes())


def write_kmnist(root, n=(12, 5)):
    for name, rows in zip(("train", "t10k"), n, strict=True):
        folder = root / "KMNIST" / "raw"
        write_idx(folder / f"{name}-images-idx3-ubyte", images(rows))
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(rows, dtype=np.uint8) % 10)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["kmnist", "KMNIST", "k_mnist"])
def test_kmnist(tmp_path, name):
    write_kmnist(tmp_path)
    kmnist = data.load(name, data_dir=tmp_path, values="levels")
    assert (kmnist.name, kmnist.levels, len(kmnist.validation)) == ("kmnist", 256, 2)
    whole = torch.cat([kmnist.train, kmnist.validation])
    assert torch.equal(whole, torch.as_tensor(images(12)).float())
    assert torch.equal(kmnist.test, torch.as_tensor(images(5)).float())
    assert kmnist.labels["validation"].tolist() == [0, 1]
    assert data.load(name, data_dir=tmp_path).test.max() <= 1


@pytest.mark.parametrize(("name", "split"), [("emnist", "balanced"), ("emnist-letters", "letters")])
def test_emnist_is_upright(tmp_path, name, split):
    upright = images(7)
    for part in ("train", "test"):
        stem = tmp_path / "EMNIST" / "raw" / f"emnist-{split}-{part}"
        lying = np.ascontiguousarray(upright.transpose(0, 2, 1))  # as its files have them
        write_idx(stem.with_name(f"{stem.name}-images-idx3-ubyte"), lying)
        write_idx(stem.with_name(f"{stem.name}-labels-idx1-ubyte"), np.arange(7, dtype=np.uint8))
    found = data.load(name, data_dir=tmp_path, values="levels").test
    assert torch.equal(found, torch.as_tensor(upright).float())
    assert not torch.equal(found.transpose(1, 2), torch.as_tensor(upright).float())


def test_omniglot(tmp_path, monkeypatch):
    from PIL import Image
    from torchvision.datasets import Omniglot

    ink = np.random.default_rng(0).random((2, 3, 2, 105, 105)) < 0.1
    for i, part in enumerate(("images_background", "images_evaluation")):
        for j, character in enumerate(("b/character02", "a/character01", "b/character01")):
            folder = tmp_path / "omniglot-py" / part / character
            folder.mkdir(parents=True)
            for k in range(2):
                Image.fromarray(~ink[i, j, k]).save(folder / f"{k}.png")  # black on white
        archive = tmp_path / "omniglot-py" / f"{part}.zip"
        archive.write_text(part)
        monkeypatch.setitem(Omniglot.zips_md5, part, md5(archive))
    found = data.load("omniglot", data_dir=tmp_path, values="levels", validation=0)
    assert found.train.shape == found.test.shape == (6, 28, 28)
    assert found.labels["train"].tolist() == [0, 0, 1, 1, 2, 2]  # a/01, b/01, b/02
    for i, split in enumerate(("train", "test")):
        drawings = ink[i, [1, 2, 0]].reshape(6, 105, 105)
        fine = drawings.repeat(4, 1).repeat(4, 2).reshape(6, 28, 15, 28, 15)  # of 420 x 420
        expected = 255 * fine.mean((2, 4))
        assert np.abs(found.split(split).numpy() - expected).max() <= 0.5 + 1e-4
    archive.write_text("changed")
    with pytest.raises(FileNotFoundError, match=r"omniglot in .*omniglot-py; it is not there, or"):
        data.load("omniglot", data_dir=tmp_path)


def test_cifar10(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    colours = images(24, (3, 32, 32))

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5(folder / name)]

    def batch(name, rows):
        return write(name, {"data": colours[rows].reshape(-1, 3072), "labels": list(range(4))})

    trained = [batch(f"data_batch_{i + 1}", slice(4 * i, 4 * i + 4)) for i in range(5)]
    monkeypatch.setattr(CIFAR10, "train_list", trained)
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", slice(20, 24))])
    name, digest = write("batches.meta", {"label_names": list("abcd")})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    found = data.load("cifar-10", data_dir=tmp_path, values="levels", validation=0)
    assert found.data_shape == (3, 32, 32) and found.train.is_contiguous()
    assert torch.equal(found.train, torch.as_tensor(colours[:20]).float())
    assert torch.equal(found.test, torch.as_tensor(colours[20:]).float())
    assert found.labels["test"].tolist() == [0, 1, 2, 3]
    (folder / "test_batch").write_bytes(pickle.dumps("another file"))
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py; it is not there, or not wh"):
        data.load("cifar10", data_dir=tmp_path)


def test_svhn(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    known = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": images(6, (32, 32, 3)).transpose(1, 2, 3, 0), "y": [[10]] * 6})
        known[split] = ["", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", known)
    found = data.load("svhn", data_dir=tmp_path, values="levels")
    assert torch.equal(found.test, torch.as_tensor(images(6, (32, 32, 3))).movedim(3, 1).float())
    assert found.labels["test"].tolist() == [0] * 6


def test_frey_faces(frey_dir, tmp_path):
    faces = data.load("frey-faces", data_dir=frey_dir, values="levels")
    assert {s: len(faces.split(s)) for s in data.SPLITS} == {
        "train": 1565, "validation": 200, "test": 200,
    }  # fmt: skip
    assert (faces.data_shape, faces.levels) == ((28, 20), 256)
    raw = np.load(frey_dir / "FreyFaces" / "freyfaces.npy")
    rows = torch.cat([faces.split(s) for s in data.SPLITS]).flatten(1)
    assert sorted(rows.tolist()) == sorted(raw.reshape(1965, -1).astype(float).tolist())
    other = data.load("frey-faces", data_dir=frey_dir, seed=1, validation=0)
    assert len(other.train) == 1765 and not torch.equal(other.test * 255, faces.test)
    (tmp_path / "FreyFaces").mkdir()
    np.save(tmp_path / "FreyFaces" / "freyfaces.npy", raw[:5])
    with pytest.raises(ValueError, match=r"shape \(1965, 28, 20\), uint8, .*got \(5, 28, 20\)"):
        data.load("frey-faces", data_dir=tmp_path)


@pytest.mark.parametrize("name", [n for n in data.NAMES if n != "digits"])
def test_absent_data_sets_say_where_they_were_looked_for(tmp_path, name):
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, data_dir=tmp_path)
    told = str(caught.value)
    folder = "FreyFaces" if name == "frey-faces" else data.TORCHVISION[name].folder
    assert f"expected {name} in {tmp_path / folder}" in told and "--data-dir" in told
    assert ("--download" in told) == (name != "frey-faces")
    assert not list(tmp_path.iterdir())


def test_a_file_cut_off_is_no_data_set(tmp_path):
    write_kmnist(tmp_path)
    path = tmp_path / "KMNIST" / "raw" / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    for length in (len(whole) - 1, 10, 2, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(FileNotFoundError, match="kmnist in .*not whole"):
            data.load("kmnist", data_dir=tmp_path)


def test_a_download_leaves_whole_files_or_none(tmp_path, monkeypatch):
    from torchvision.datasets import KMNIST

    def broken(self):
        write_kmnist(Path(self.root))
        next(Path(self.root).rglob("t10k-images*")).write_bytes(b"half")
        raise OSError("the line went dead")

    root = tmp_path / "a" / "b"
    monkeypatch.setattr(KMNIST, "download", broken)
    with pytest.raises(RuntimeError, match="kmnist could not be downloaded to .*line went dead"):
        data.load("kmnist", data_dir=root, download=True)
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(KMNIST, "download", lambda self: write_kmnist(Path(self.root)))
    other = root / "KMNIST" / "raw" / "mine"
    other.parent.mkdir(parents=True)
    other.write_text("precious")
    (other.parent / "train-images-idx3-ubyte").write_bytes(b"half")  # an earlier, broken one
    assert len(data.load("kmnist", data_dir=root, download=True).test) == 5
    assert other.read_text() == "precious" and [p.name for p in root.iterdir()] == ["KMNIST"]

    monkeypatch.setattr(KMNIST, "download", broken)  # it is there: nothing is to be downloaded
    assert len(data.load("kmnist", data_dir=root, download=True).test) == 5


def test_load_dequantized():
    levels, noisy = data.load("digits", values="levels"), data.load("digits", dequantize=True)
    assert (noisy.levels, noisy.scaled, noisy.dequantized) == (17, True, True)
    again = data.load("digits", dequantize=True, validation=100)
    assert torch.equal(noisy.test, again.test)
    assert noisy.record["sha256"] == again.record["sha256"] != levels.record["sha256"]
    generator = torch.Generator().manual_seed(0)
    x, c = noisy.transform((noisy.train, noisy.labels["train"]), generator)
    assert torch.equal(c, noisy.labels["train"])
    for found, known in ((x, levels.train), (noisy.test, levels.test)):
        assert torch.equal((found * 17).floor(), known) and found.max() < 1
        assert abs((found * 17 - known).mean() - 0.5) < 4.5 / math.sqrt(12 * known.numel())
    assert not torch.equal(x, noisy.transform(noisy.train, generator))
    torch.testing.assert_close(noisy.train * 16, levels.train)  # until it is transformed


def test_dequantized_levels_stay_below_one():
    x = torch.full((300_000,), 255.0)  # 255 + u rounds up to 256 for about two of them
    generator = torch.Generator().manual_seed(3)
    assert ((x + torch.rand(x.shape, generator=generator)) / 256).max() == 1
    assert data.dequantize(x, generator.manual_seed(3)).max() < 1
