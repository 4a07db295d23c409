"""Choices that a whole run makes of its data: levels, noise, missing entries, indices."""

import json
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from typer.testing import CliRunner

from pyrovae import build, data, likelihoods, priors
from pyrovae.cli import app
from pyrovae.training import evaluation, experiment, support


def trained(**options):
    words = {
        "data": "digits", "data_dir": None, "download": False, "binarize": "none",
        "dequantize": False, "standardize": True, "validation": None, "prior": "standard-normal",
        "likelihood": None, "posterior": "mean-field-normal", "objective": "trace-mean-field",
        "latent_dim": 2, "prior_options": {}, "likelihood_options": {}, "posterior_options": {},
        "epochs": 1, "batch_size": 128, "lr": 1e-3, "seed": 0, "device": None,
        "say": lambda line: None, "hidden": (8,),
    }  # fmt: skip
    return experiment.train(**words | options)


@pytest.mark.parametrize(
    ("likelihood", "binarize", "levels"),
    [
        ("binomial", "none", True),
        ("masked:binomial", "none", True),
        ("Masked:Bernoulli", "none", False),
        ("normal", "none", False),
        ("pixel-cnn", "none", True),  # told of the levels
        ("pixel-cnn", "static", False),  # of which there are two
        ("columns-only", "none", True),
    ],
)
def test_which_likelihoods_take_levels(monkeypatch, likelihood, binarize, levels):
    def columns_only(latent_dim, data_shape, columns):
        raise AssertionError

    monkeypatch.setattr(likelihoods, "ColumnsOnly", columns_only, raising=False)
    monkeypatch.setattr(likelihoods, "__all__", [*likelihoods.__all__, "ColumnsOnly"])
    state = torch.get_rng_state()
    assert support.takes_levels(likelihood, binarize) == levels
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("likelihood", ["masked:normal", "Masked:Bernoulli", "normal"])
def test_a_masked_likelihood_lets_missing_entries_through(tmp_path, monkeypatch, likelihood):
    given = {}

    def stop(source, *args):
        given.update(source)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "load_source", stop)
    np.save(tmp_path / "t.npy", np.zeros((20, 3)))
    with pytest.raises(KeyboardInterrupt):
        trained(data=str(tmp_path / "t.npy"), likelihood=likelihood, run=tmp_path / "a")
    assert given["missing"] == (likelihood != "normal")
    assert given["values"] == "unit"


# Dequantised data


def test_bits_per_dim_of_a_dequantised_density():
    """A histogram's density on [0, 1) has the bits of its levels."""
    vae = build(data_shape=(1,), latent_dim=1, likelihood="normal")
    p = torch.tensor([0.5, 0.25, 0.25]).double()
    k = torch.tensor([0, 0, 1, 2])
    log_p = (3 * p[k]).log()  # of x = (k + u) / 3
    each = dict.fromkeys(("elbo", "reconstruction", "kl", "log_evidence"), log_p)
    found = data.Data("t", k[:, None], k[:0], k[:, None], levels=3, scaled=True)

    def bits(dequantized):
        one = data.Data(**vars(found) | {"dequantized": dequantized})
        return evaluation.figures(each, vae, one, k[:, None].float())

    entropy = -(p * p.log2()).sum().item()
    assert bits(True)["bits_per_dim"] == pytest.approx(entropy)
    assert bits(False)["bits_per_dim"] is None and "density" in bits(False)["bits_per_dim_reason"]
    assert bits(True)["units"] == "unit"


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def test_train_dequantized(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pyrovae.plots.save_all", lambda *args: [])
    words = ["train", "--dequantize", "--epochs", 2, "--hidden", 16, "--run"]
    run(*words, "a", "--likelihood", "normal")
    few = ["--num-particles", 2]
    figures = json.loads(run("evaluate", "a", "--json", *few).stdout)
    bits = -figures["log_evidence"] / (64 * math.log(2)) + math.log2(17)
    assert figures["bits_per_dim"] == pytest.approx(bits)
    train = [
        json.loads(run("evaluate", "a", "--json", "--split", "train", *few, "--seed", s).stdout)[
            "elbo"
        ]
        for s in (0, 0, 1)
    ]
    assert train[0] == train[1] != train[2]
    np.save(tmp_path / "real.npy", np.random.default_rng(0).normal(size=(40, 3)))
    for more, message in (
        (["--likelihood", "binomial"], "--dequantize with a likelihood that is a density"),
        ([], "got binomial: leave --dequantize out"),
        (["--data", "real.npy", "--likelihood", "normal"], "real.npy holds others"),
        (["--likelihood", "normal", "--binarize", "static"], "binarize='none' to dequantise"),
    ):
        assert message in " ".join(run(*words, "b", *more, code=2).stderr.split())


# A prior made of training data


class Exemplars(priors.Prior):
    """Given the index of each datum, which it notes."""

    indexed = True
    seen: list = []

    def set_exemplars(self, x):
        self.x = x

    def distribution(self, *c):
        if c:
            self.seen.append(c[0])
        shape = c[0].shape if c else ()
        return dist.Normal(torch.zeros(self.latent_dim), 1.0).expand([*shape, 2]).to_event(1)


@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_an_indexed_prior_is_given_the_index(monkeypatch, tmp_path, binarize):
    monkeypatch.setattr(priors, "Exemplars", Exemplars, raising=False)
    monkeypatch.setattr(priors, "__all__", [*priors.__all__, "Exemplars"])
    monkeypatch.setattr(Exemplars, "seen", [])
    rows, plain = [], experiment.fit

    def fit(model, guide, train, **options):
        rows.append(train)
        assert options["validation"][1].tolist() == [-1] * 179
        return plain(model, guide, train, **options)

    monkeypatch.setattr(experiment, "fit", fit)
    result = trained(prior="exemplars", binarize=binarize, run=tmp_path / "a")
    ((x, index),) = rows
    assert torch.equal(index, torch.arange(1439)) and torch.equal(x, result.data.train)
    given = torch.cat(Exemplars.seen)
    assert set(given.unique().tolist()) == {-1, *range(1439)}
    if binarize == "dynamic":
        assert set(result.vae.prior.x.unique().tolist()) == {0, 1}
    else:
        assert torch.equal(result.vae.prior.x, x)
    assert result.figures["n"] == 179


def test_the_exemplars_of_a_run(tmp_path):
    result = trained(prior="exemplar-prior", run=tmp_path / "a")
    assert result.vae.config["prior_options"]["num_exemplars"] == 1439  # all there are
    few = trained(
        prior="exemplar-prior", prior_options={"num_exemplars": 50}, run=tmp_path / "b",
    )  # fmt: skip
    assert few.vae.prior.exemplars.shape == (50, 8, 8)
    again = evaluation.evaluate(tmp_path / "a", num_particles=100)
    assert again["log_evidence"] == pytest.approx(result.figures["log_evidence"], abs=1e-4)
