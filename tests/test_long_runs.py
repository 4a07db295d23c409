"""Nothing grows with the number of steps, and nothing is left open or behind."""

import contextlib
import gc
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyro
import pytest
import torch

from pyrovae import build, fit

X = (torch.rand(256, 4, generator=torch.Generator().manual_seed(1234)) > 0.5).float()


def resident():
    """Memory of this process, in MB."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def open_files():
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(found)


def growth(steps, run, hold=None, **options):
    """MB and objects that the last half of so many steps adds, 64 steps an epoch."""
    epochs, seen = steps // 64, []
    vae = build(data_shape=(4,), latent_dim=2, hidden=(8,))

    def watch(epoch, record):
        if hold is not None:
            hold.append(torch.ones(500_000))
        if epoch in (epochs // 2, epochs):
            gc.collect()
            objects = len(gc.get_objects())  # first: the list of them takes memory too
            seen.append((resident(), objects))

    fit(
        vae.model, vae.guide, X, epochs=epochs, batch_size=4, validation=X[:8], callbacks=[watch],
        run=run, checkpoint_seconds=0.2, **options,
    )  # fmt: skip
    return seen[1][0] - seen[0][0], seen[1][1] - seen[0][1]


def in_a_new_process(*arguments, **options):
    """`growth` where no memory that was freed before can hide it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(growth, *arguments, **options).result()


def test_memory_stays_as_it_was(tmp_path):
    megabytes, objects = in_a_new_process(1280, tmp_path / "a")
    assert megabytes < 3 and objects < 1000


def test_growth_is_seen(tmp_path):
    """Negative control: a callback that keeps 2 MB an epoch, 20 MB in the last half."""
    assert in_a_new_process(1280, tmp_path / "a", hold=[])[0] > 15


def test_files_and_the_store_stay_as_they_were(tmp_path):
    growth(128, tmp_path / "warm")
    before, names = open_files(), list(pyro.get_param_store().keys())
    growth(128, tmp_path / "a")
    assert open_files() == before
    assert list(pyro.get_param_store().keys()) == names
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "checkpoints", "config.json", "history.csv", "model.safetensors"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("compile", ["never", "always"])
def test_ten_thousand_steps(tmp_path, compile):
    """In a process of its own: `pytest -n 0 -m slow -s -k ten_thousand`."""
    megabytes, objects = in_a_new_process(20_000, tmp_path / "a", compile=compile)
    print(f"\ncompile={compile}: 10,000 steps add {megabytes:.2f} MB and {objects} objects")
    assert megabytes < 1.5 and objects < 1000
