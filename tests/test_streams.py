"""Rows that are read as they are wanted: every row once an epoch, whatever they are read from."""

import gc
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import streams as benchmark
from rows_on_disk import (
    SIZE,
    SOURCES,
    STREAMED,
    WINDOW,
    Iterated,
    N,
    npy,
    numbers,
    once_each,
    rows,
)

from pyrovae import build, data, fit
from pyrovae.training import batches
from pyrovae.training.batches import Epochs, source
from pyrovae.training.streams import Streamed


@pytest.fixture(params=SOURCES)
def epochs(request, tmp_path):
    return Epochs(source(SOURCES[request.param](tmp_path, rows()), []), None, 0, SIZE)


def test_each_row_comes_once_an_epoch(epochs):
    assert len(epochs.rows) == N
    for epoch in range(2):
        found = numbers(epochs.epoch(epoch))
        assert once_each(found)
        assert {len(b) for b in found[:-1]} == {SIZE} and len(found[-1]) == N % SIZE
        assert not once_each(found[1:]) and not once_each([*found, found[0]])


def test_a_shuffle_that_loses_rows_is_caught(tmp_path, monkeypatch):
    def broken(self, generator):
        return itertools.islice(windows(self, generator), 1, None)

    windows = Streamed._windows
    epochs = Epochs(source(npy(tmp_path, rows()), []), None, 0, SIZE)
    assert once_each(numbers(epochs.epoch(0)))
    monkeypatch.setattr(Streamed, "_windows", broken)
    assert not once_each(numbers(epochs.epoch(0)))


def test_batches_depend_on_seed_and_epoch_alone(epochs):
    first, again, other = (numbers(epochs.epoch(e)) for e in (0, 0, 1))
    assert first == again != other
    epochs.seed = 1
    assert numbers(epochs.epoch(0)) not in (first, other)


def test_skipping_is_dropping(epochs):
    epochs.transform = lambda x, generator: (
        x + 100 * torch.rand((), generator=generator) * 0 + x * 0
    )
    whole = [b[0] for b in epochs.epoch(2)]
    for skip in (0, 1, 17, 18, len(whole) - 1, len(whole)):
        rest = [b[0] for b in epochs.epoch(2, skip=skip)]
        assert len(rest) == len(whole) - skip
        assert all(torch.equal(a, b) for a, b in zip(whole[skip:], rest, strict=True))
    assert not torch.equal(next(epochs.epoch(2, skip=1))[0], whole[0])


def test_draws_of_a_batch_do_not_depend_on_what_was_skipped(epochs):
    epochs.transform = lambda x, generator: x + torch.rand(x.shape, generator=generator)
    whole, rest = list(epochs.epoch(1)), list(epochs.epoch(1, skip=5))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[5:], rest, strict=True))
    noise = [b[0].frac() for b in whole]
    assert not any(torch.equal(noise[0], other) for other in noise[1:-1])


def test_the_order_says_which_rows_come(epochs):
    found = numbers(epochs.epoch(3))
    assert epochs.row(3, 4, 5) == found[4][5] and epochs.row(3, len(found) - 1, 0) == found[-1][0]
    order = epochs.rows.order(SIZE, torch.Generator().manual_seed(1), skip=2)
    read = epochs.rows.batches(SIZE, torch.Generator().manual_seed(1), skip=2)
    assert [o.tolist() for o in order] == numbers(read)


def test_in_order_they_come_in_order(epochs):
    found = list(itertools.chain(*numbers(epochs.in_order())))
    assert found == list(range(N))
    assert list(itertools.chain(*numbers(epochs.rows.batches(SIZE, skip=3)))) == found[3 * SIZE :]
    assert list(itertools.chain(*numbers(epochs.epoch(0)))) != found  # shuffled it is not


def rank_correlation(order):
    return abs(np.corrcoef(order, np.arange(len(order)))[0, 1])


@pytest.mark.parametrize("name", STREAMED)
def test_a_window_is_drawn_from_all_over_the_array(name, tmp_path):
    """A batch of a sorted array has the mean of all; failure 1e-3 a source by normal bounds."""
    epochs = Epochs(source(SOURCES[name](tmp_path, rows()), []), None, 0, 64)
    found = numbers(epochs.epoch(0))
    assert rank_correlation(list(itertools.chain(*found))) < 0.3
    # the 4 or 8 blocks of a window have means of variance N^2 / 12 each, at the most
    blocks = 8 if name in ("parquet", "without") else 64
    error = N * math.sqrt(1 / 12 / min(64, blocks) + 1 / 12 / 64)
    means = [np.mean(b) for b in found[:-1]]
    assert all(abs(m - N / 2) < 4.5 * error for m in means)
    straight = [np.mean(b) for b in numbers(epochs.rows.batches(64))[:-1]]
    assert not all(abs(m - N / 2) < 4.5 * error for m in straight) or blocks == 8
    # neighbours on disk are spread over the window
    gaps = np.abs(np.diff(list(itertools.chain(*found))))
    assert np.mean(gaps == 1) < 0.1


def test_a_window_of_all_rows_is_a_full_shuffle(tmp_path):
    """The place of a row is uniform: chi-square of 400 epochs, 9 degrees of freedom, p > 1e-3."""
    np.save(tmp_path / "x.npy", rows(10))
    epochs = Epochs(source(data.stream(tmp_path / "x.npy"), []), None, 0, 10)
    places = [next(iter(numbers(epochs.epoch(e)))).index(3) for e in range(400)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 40) ** 2 / 40).sum() < 27.9
    assert ((np.bincount([3] * 400, minlength=10) - 40) ** 2 / 40).sum() > 27.9


def test_an_iterable_is_shuffled_within_its_window(tmp_path):
    epochs = Epochs(source(SOURCES["sized"](tmp_path, rows()), []), None, 0, SIZE)
    found = np.array(list(itertools.chain(*numbers(epochs.epoch(0)))))
    starts = np.arange(N) // WINDOW
    assert (found // WINDOW == starts).all()
    inside = [rank_correlation(found[starts == w]) for w in range(4)]
    assert max(inside) < 0.25  # 3.3 / sqrt(235) at the most, failure 1e-3 each
    assert rank_correlation(np.arange(235)) > 0.25


def test_context_comes_with_its_rows(tmp_path):
    np.save(tmp_path / "x.npy", rows())
    labels = np.arange(N) * 2
    streams = [
        data.stream((tmp_path / "x.npy", labels), window=WINDOW),
        (np.load(tmp_path / "x.npy", mmap_mode="r"), torch.from_numpy(labels)),
        Iterated(torch.from_numpy(rows()), torch.from_numpy(labels)),
        (data.stream(tmp_path / "x.npy", window=WINDOW), torch.from_numpy(labels)),
    ]
    for stream in streams:
        for batch in Epochs(source(stream, []), None, 0, SIZE).epoch(0):
            assert batch[1].dtype == torch.int64
            assert batch[1].tolist() == [2 * i for i in numbers([batch])[0]]
    with pytest.raises(ValueError, match="context 1 to have as many rows as x; got 5, x has 1003"):
        data.stream((tmp_path / "x.npy", labels[:5]))


def test_levels_are_scaled_as_they_come(tmp_path):
    np.save(tmp_path / "x.npy", rows())
    stream = data.stream(tmp_path / "x.npy", levels=256)
    (batch,) = next(source(stream, []).batches(8))
    assert torch.equal(batch, torch.from_numpy(rows()[:8]).float() / 255)
    assert torch.equal(stream[2:10][:6], batch[2:])
    few = source(data.stream(tmp_path / "x.npy", levels=12), [])
    assert len(next(few.batches(10))[0]) == 10
    with pytest.raises(ValueError, match=r"0, ..., 11; got .* the first 12 at index \(12, 0\)"):
        list(few.batches(100))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", [*STREAMED, "iterable"])
def test_what_is_not_finite_is_refused_by_row_and_column(name, bad, tmp_path):
    x = rows().astype(np.float32)
    x[777, 1] = bad
    epochs = Epochs(source(SOURCES[name](tmp_path, x), []), None, 0, SIZE)
    with pytest.raises(ValueError, match=rf"expected x to be finite.* {bad} at index \(777, 1\)"):
        list(epochs.epoch(0))
    with pytest.raises(ValueError, match=r"at index \(777, 1\)"):
        list(epochs.rows.batches(SIZE))
    vae = build(data_shape=(3,), latent_dim=1, hidden=(4,), likelihood="masked:normal")
    allowed = Epochs(source(SOURCES[name](tmp_path, x), [vae]), None, 0, SIZE)
    if math.isnan(bad):
        assert sum(int(b[0].isnan().sum()) for b in allowed.epoch(0)) == 1
    else:
        with pytest.raises(ValueError, match=r"inf at index \(777, 1\)"):
            list(allowed.epoch(0))


def test_fit_on_a_stream_is_fit_on_its_rows(tmp_path, monkeypatch):
    """Bit for bit, where the rows in memory are put in the stream's order."""
    x = (torch.rand(300, 4, generator=torch.Generator().manual_seed(1234)) > 0.4).float()
    np.save(tmp_path / "x.npy", x.numpy())
    stream = data.stream(tmp_path / "x.npy", window=70)

    def trained(train):
        vae = build(data_shape=(4,), latent_dim=2, hidden=(8,))
        fit(vae.model, vae.guide, train, epochs=2, batch_size=16, validation=x[:50])
        return torch.cat([p.detach().flatten() for p in vae.parameters()])

    found, in_memory = trained(stream), trained(x)
    assert not torch.equal(found, in_memory)
    order = source(stream, []).order
    monkeypatch.setattr(batches.Indexed, "order", lambda self, *arguments: order(*arguments))
    assert torch.equal(trained(x), found)


def test_fit_learns_from_every_form(tmp_path):
    x = (np.random.default_rng(1234).random((400, 4)) > 0.8).astype(np.uint8)
    finals = {}
    for name in ("memory", "npy", "iterable"):
        vae = build(data_shape=(4,), latent_dim=1, hidden=(8,))
        train = Iterated(torch.from_numpy(x), lengths=(400,))
        train = train if name == "iterable" else SOURCES[name](tmp_path, x)
        history = fit(vae.model, vae.guide, train, epochs=10, batch_size=50, lr=0.02)
        assert history["loss"][-1] < history["loss"][0] - 0.1
        finals[name] = history["loss"][-1]
    assert max(finals.values()) - min(finals.values()) < 0.15


def resident():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile:"):
            mapped = int(line.split()[1])
        if line.startswith("RssAnon:"):
            own = int(line.split()[1])
    return (own + mapped) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_bounded(tmp_path):
    """An epoch of 200 MB holds less than 60; mapped as it is, it holds all."""
    x = np.lib.format.open_memmap(
        tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(200_000, 1000)
    )
    for start in range(0, len(x), 1000):
        x[start : start + 1000] = start // 1000
    del x
    gc.collect()

    def growth(train):
        before, most = resident(), 0.0
        for i, _ in enumerate(train):
            if i % 50 == 0:
                most = max(most, resident() - before)
        return most

    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for given in (mapped, tmp_path / "x.npy"):
        stream = data.stream(given, window=8000)
        assert growth(Epochs(source(stream, []), None, 0, 500).epoch(0)) < 60
    assert growth(mapped[i : i + 500].max() for i in range(0, len(mapped), 500)) > 150


def test_the_benchmark_reads_the_same_rows_from_every_source(tmp_path):
    found = {
        name: torch.cat([b[0] for b in source(train, []).batches(100)])
        for name, train in benchmark.sources(tmp_path, 250).items()
    }
    assert len(found) == 8
    assert all(torch.equal(x, found["memory"]) for x in found.values())
    assert not torch.equal(found["memory"].flip(0), found["memory"])


def test_the_benchmark_trains_on_a_file_as_large_as_is_asked_for():
    found = benchmark.large(0.003, steps=4, batch=64)
    assert (found["rows"], found["steps"]) == (956, 4)
    assert found["peak_mb"] >= found["peak_mb_before"] > 0
