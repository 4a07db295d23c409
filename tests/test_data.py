import math

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


def test_absent_data_sets_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected fashion-mnist in .*--download"):
        data.load("fashion_mnist", data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


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
    refused("x.jpeg", "one of digits, mnist, fashion-mnist, or a file .csv, .npy, .npz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": "grey"}, "values to be 'unit' or 'levels'; got 'grey'"),
        ({"binarize": "yes"}, "binarize to be one of none, threshold, static, dynamic; got 'yes'"),
        (
            {"binarize": "static", "values": "levels"},
            "binarised data want a likelihood such as bernoulli",
        ),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        data.load("digits", **options)
