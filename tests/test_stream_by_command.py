"""Training on data on disk: `fit` checks rows as they come, `train --stream` reads them."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pyrovae import build, data, fit
from pyrovae.cli import app
from pyrovae.importance import for_any_rows, inspect
from pyrovae.training.sources import rows_of

QUICK = ["--epochs", 1, "--hidden", 8, "--latent-dim", 2, "--stream"]


def invoke(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


@pytest.mark.parametrize("likelihood", ["bernoulli", "binomial"])
def test_rows_off_the_support_are_refused_by_their_number_as_they_come(likelihood, tmp_path):
    x = np.random.default_rng(1234).integers(0, 2, (3000, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    x[2345, 2] = 0.5  # behind the rows that are looked at in the beginning
    np.save(tmp_path / "bad.npy", x)
    options = {"likelihood_options": {"total_count": 1}} if likelihood == "binomial" else {}
    for name in ("x.npy", "bad.npy"):
        vae = build(data_shape=(4,), latent_dim=1, hidden=(4,), likelihood=likelihood, **options)
        train = data.stream(tmp_path / name, window=300)
        if name == "x.npy":
            assert len(fit(vae.model, vae.guide, train, epochs=1)) == 1
            continue
        with pytest.raises(ValueError, match=r"the first 0.5 at index \(2345, 2\)"):
            fit(vae.model, vae.guide, train, epochs=1)


def test_a_bad_row_of_the_validation_data_is_no_fault_of_the_parameters(tmp_path):
    x = np.random.default_rng(1234).normal(size=(20_000, 2)).astype(np.float32)
    x[15_000, 1] = np.nan  # behind what is looked at in the beginning
    np.save(tmp_path / "x.npy", x)
    held_out = data.stream(tmp_path / "x.npy", window=2000)
    vae = build(data_shape=(2,), latent_dim=1, hidden=(4,), likelihood="normal")
    with pytest.raises(ValueError, match=r"the first nan at index \(15000, 1\)"):
        fit(vae.model, vae.guide, x[:100], epochs=1, validation=held_out)


def test_a_support_that_differs_by_row_is_not_that_of_any_rows():
    import pyro
    import pyro.distributions as dist

    def model(x, count):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "x", dist.Binomial(count[:, None], x.new_full((4,), 0.5)).to_event(1), obs=x
            )

    def guide(x, count):
        pass

    x = torch.ones(6, 4)
    alike = inspect(model, guide, x, torch.full((6,), 3.0)).datum
    assert for_any_rows(alike).support.upper_bound == 3
    assert for_any_rows(inspect(model, guide, x, torch.arange(1.0, 7.0)).datum) is None


def test_train_reads_a_stream(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(1234).integers(0, 256, (400, 5), dtype=np.uint8)
    np.save("x.npy", x)
    (tmp_path / "shards").mkdir()
    for i, part in enumerate(np.split(x, [100, 333])):
        np.save(f"shards/{i}.npy", part)
    invoke("train", "--data", "x.npy", "--binarize", "dynamic", *QUICK, "--run", "a")
    invoke("train", "--data", "shards", "--likelihood", "binomial", *QUICK, "--run", "b")
    for run in ("a", "b"):
        invoke("evaluate", run, "--num-particles", 6, "--limit", 20)
        invoke("train", "--run", run, "--resume")
    from pyrovae import load

    rows = rows_of(tmp_path / "b", load(tmp_path / "b"), split="train", limit=30)
    assert rows.x.shape == (30, 5) and float(rows.x.max()) > 1


def test_what_a_stream_cannot_be_is_refused(tmp_path):
    x = np.random.default_rng(1234).normal(size=(60, 3))
    np.save(tmp_path / "x.npy", x)
    words = ["train", "--data", tmp_path / "x.npy", "--likelihood", "normal", *QUICK]
    assert "expected --no-standardize with --stream" in invoke(*words, code=2).stderr
    words = [*words, "--no-standardize", "--prior", "exemplar-prior"]
    assert "is not made of training data with --stream" in invoke(*words, code=2).stderr
    assert "a folder of them" in invoke("train", *QUICK, code=2).stderr
