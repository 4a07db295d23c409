"""Arrays and tables on disk, read by slices, and `data.load(stream=True)`."""

import itertools

import numpy as np
import pytest
import torch
from rows_on_disk import (
    SIZE,
    SOURCES,
    WINDOW,
    Iterated,
    N,
    npy,
    numbers,
    once_each,
    rows,
    write_parquet,
)

from pyrovae import build, data, fit
from pyrovae.data.streams import on_disk, sample, take
from pyrovae.training.batches import Epochs, source


def test_parquet_is_what_it_is_in_memory(tmp_path):
    import pandas as pd

    x = np.random.default_rng(1234).normal(size=(50, 4)).round(3)
    table = pd.DataFrame(x, columns=list("abcd"))
    table["n"], table["yes"] = np.arange(50), table["a"] > 0
    table.to_parquet(tmp_path / "t.parquet", row_group_size=7)
    found = on_disk(tmp_path / "t.parquet")
    assert found.shape == (50, 6) and found.dtype == np.float64
    expected = table.to_numpy(dtype=np.float64)
    for piece in (slice(0, 50), slice(6, 8), slice(13, 36), slice(4, 4)):
        assert np.array_equal(found[piece], expected[piece])
    table.loc[9, "a"] = np.nan
    table["n"] = table["n"].astype("Int64")
    table.loc[4, "n"] = None
    table.set_index("b").to_parquet(tmp_path / "holes.parquet", row_group_size=7)
    holes = on_disk(tmp_path / "holes.parquet")[0:50]
    assert np.argwhere(np.isnan(holes)).tolist() == [[4, 3], [9, 0]] and holes.shape == (50, 5)
    write_parquet(tmp_path / "f.parquet", x.astype(np.float32))
    assert on_disk(tmp_path / "f.parquet").dtype == np.float32
    table.astype({"a": str}).to_parquet(tmp_path / "words.parquet")
    with pytest.raises(ValueError, match="expected numbers in .*columns a are none"):
        on_disk(tmp_path / "words.parquet")


def test_dtypes_that_torch_has_not(tmp_path):
    x = np.arange(12).reshape(4, 3)
    for dtype in (">f8", ">i2", "u2", "u4", "u8", "?", "f2", "i8"):
        np.save(tmp_path / "x.npy", x.astype(dtype))
        (batch,) = next(source(data.stream(tmp_path / "x.npy"), []).batches(4))
        assert batch.is_floating_point() and np.array_equal(batch, x.astype(dtype)), dtype


def test_anything_with_slices_is_read(tmp_path):
    import h5py

    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = rows()
        epochs = Epochs(source(data.stream(file["x"], window=WINDOW), []), None, 0, SIZE)
        assert once_each(numbers(epochs.epoch(0)))


def test_what_is_no_array_is_refused(tmp_path):
    def refused(name, match, error=ValueError, **options):
        with pytest.raises(error, match=match):
            data.stream(tmp_path / name if isinstance(name, str) else name, **options)

    (tmp_path / "empty").mkdir()
    refused("empty", "expected .npy files in folder .*empty; there are none")
    for name, parts in {
        "shapes": (rows(5), rows(5)[:, :2]),
        "dtypes": (rows(5), rows(5).astype(np.float32)),
    }.items():
        (tmp_path / name).mkdir()
        for i, part in enumerate(parts):
            np.save(tmp_path / name / f"{i}.npy", part)
    refused("shapes", r"one shape and dtype; got rows \(3,\) .*0.npy, \(2,\) of uint8 in .*1.npy")
    refused("dtypes", r"uint8 in .*0.npy, \(3,\) of float32 in .*1.npy")
    refused("none.npy", "a file of data at .*; there is none", FileNotFoundError)
    refused("none.parquet", "a file of data at .*; there is none", FileNotFoundError)
    refused("x.csv", "a .npy file, a folder of them or a .parquet table")
    (tmp_path / "bad.npy").write_text("hello")
    refused("bad.npy", "cannot be read")
    (tmp_path / "bad.parquet").write_text("hello")
    refused("bad.parquet", "cannot be read")
    np.save(tmp_path / "cut.npy", rows())
    with (tmp_path / "cut.npy").open("rb+") as file:
        file.truncate(2000)
    refused("cut.npy", "cannot be read")
    np.save(tmp_path / "zero.npy", rows(0))
    refused("zero.npy", "at least one row")
    np.save(tmp_path / "columns.npy", np.asfortranarray(rows()))
    refused("columns.npy", "rows that follow one another .*ascontiguousarray")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    refused("flat.npy", r"a row a datum in .*got shape \(3,\)")
    refused([1, 2], "a path, or an array with shape, dtype and slices; got list")
    refused(rows(), "window to be a positive whole number; got 0", window=0)
    refused(rows(), "levels to be a whole number, 2 or more; got 1", levels=1)
    refused(rows() / 2, "whole numbers with levels; got float64", levels=256)
    refused(Iterated(torch.zeros(3, 2)), "no levels with an IterableDataset", levels=256)


def test_a_file_that_shrinks_is_refused(tmp_path):
    stream = npy(tmp_path, rows())
    np.save(tmp_path / "x.npy", rows(500))
    with pytest.raises(ValueError, match="it has changed since"):
        list(source(stream, []).batches(SIZE))


def test_passes_of_another_length_are_refused():
    x = torch.from_numpy(rows())
    for lengths in ((N, N, N - 1), (N - 1, N - 1, N)):
        passes = source(data.stream(Iterated(x, lengths=lengths)), [])
        with pytest.raises(ValueError, match=f"expected {lengths[1]} items in every pass"):
            list(passes.batches(SIZE))
    with pytest.raises(ValueError, match="at least one item"):
        source(Iterated(x, lengths=(0,)), [])


def test_rows_are_taken_in_the_order_that_is_asked_for(tmp_path):
    chosen = np.array([700, 3, 29, 30, 31, 1002, 0])
    for name in ("npy", "parquet", "without"):
        folder = tmp_path / name
        folder.mkdir()
        stream = SOURCES[name](folder, rows())
        assert np.array_equal(take(stream.parts[0], chosen), rows()[chosen])
        assert len(stream.parts[0][5:5]) == 0
    some = sample(stream, 40)
    assert torch.equal(some, sample(stream, 40)) and len({tuple(r) for r in some.tolist()}) == 40
    assert len(sample(stream)) == N and sample(some) is some


@pytest.mark.parametrize("name", ["x.npy", "folder", "x.parquet"])
def test_load_leaves_the_training_data_on_disk(name, tmp_path):
    np.save(tmp_path / "x.npy", rows())
    write_parquet(tmp_path / "x.parquet", rows(), row_group_size=30)
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "0.npy", rows())
    loaded = data.load(tmp_path / name, stream=True, values="levels")
    assert isinstance(loaded.train, data.Stream) and loaded.levels == 256
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (803, 100, 100)
    assert loaded.data_shape == (3,) and loaded.record["sizes"]["train"] == 803
    parts = [numbers(source(x, []).batches(50)) for x in (loaded.train, loaded.validation)]
    parts.append(numbers([(loaded.test,)]))
    assert once_each(itertools.chain(*parts))
    again = data.load(tmp_path / name, stream=True, values="levels", seed=1, validation=0)
    assert not torch.equal(again.test, loaded.test) and len(again.train) == 903
    unit = data.load(tmp_path / name, stream=True)
    assert torch.equal(unit.test, loaded.test / 255) and unit.scaled
    assert torch.equal(unit.split("train")[:20], loaded.train[:20] / 255)


def test_load_binarises_a_stream_as_it_comes(tmp_path):
    x = np.random.default_rng(1234).integers(0, 256, (300, 2), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    for how in ("threshold", "dynamic"):
        loaded = data.load(tmp_path / "x.npy", stream=True, binarize=how)
        assert set(loaded.test.unique().tolist()) == {0.0, 1.0} and loaded.levels == 2
        batch = next(Epochs(source(loaded.train, []), loaded.transform, 0, 200).epoch(0))
        assert set(batch[0].unique().tolist()) == {0.0, 1.0}
        vae = build(data_shape=(2,), latent_dim=1, hidden=(4,))
        assert len(fit(vae.model, vae.guide, loaded.train, epochs=1, transform=loaded.transform))
    noisy = data.load(tmp_path / "x.npy", stream=True, dequantize=True)
    assert (
        len(next(Epochs(source(noisy.train, []), noisy.transform, 0, 200).epoch(0))[0].unique())
        > 256
    )
    for options, match in (
        ({"binarize": "static"}, "binarise the file itself"),
        ({"standardize": True}, "standardise the file itself"),
        ({"validation": 300}, "validation to be between 0 and 269"),
    ):
        with pytest.raises(ValueError, match=match):
            data.load(tmp_path / "x.npy", stream=True, **options)
    with pytest.raises(ValueError, match="a .npy file, a folder of them or a .parquet table"):
        data.load("digits", stream=True)
    with pytest.raises(ValueError, match="a folder of shards is read with stream=True"):
        data.load(tmp_path)
