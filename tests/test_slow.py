"""Longer than a minute each: `PYROVAE_DATA=... pytest -n 0 -m slow -s`. They print figures."""

import json

import pytest
from typer.testing import CliRunner

from pyrovae import VAE, data, evidence, fit, likelihoods, nets, posteriors, priors
from pyrovae.cli import app
from pyrovae.optimise import cosine
from pyrovae.training.comparison import compare

pytestmark = pytest.mark.slow

MNIST = (
    "train --data mnist --validation 0 --binarize dynamic --latent-dim 20 --hidden 400 --epochs 20 "
    "--batch-size 128 --lr 1e-3"
)


def test_mnist_in_twenty_epochs(data_dir, tmp_path):
    """Plain PyTorch by hand, one seed: test -ELBO 100.3."""
    losses = {}
    for objective in ("trace-mean-field", "trace", "manual"):
        run = tmp_path / objective
        words = [*MNIST.split(), "--data-dir", data_dir, "--objective", objective, "--run", run]
        result = CliRunner().invoke(app, [str(w) for w in words])
        assert result.exit_code == 0, result.output
        figures = json.loads((run / "metrics.json").read_text())
        losses[objective] = -figures["elbo"]
        print(f"{objective}: test -ELBO {-figures['elbo']:.3f} +- {figures['elbo_se']:.3f}")
    assert max(losses.values()) <= 101.5
    assert max(losses.values()) - min(losses.values()) <= 0.7


@pytest.mark.parametrize(("q", "train", "test"), [(2, 12.4277, 14.3601), (10, 182.1547, 186.0241)])
def test_a_linear_pair_reaches_ppca(data_dir, q, train, test):
    """Tipping & Bishop (1999): at the maximum the exact posterior is diagonal, up to rotation."""
    mnist = data.load("mnist", data_dir=data_dir, validation=0)
    linear = nets.mlp(hidden=())
    vae = VAE(
        priors.StandardNormal(q),
        likelihoods.Normal(q, (28, 28), linear, variance=likelihoods.Shared()),
        posteriors.MeanFieldNormal((28, 28), q, linear),
    )
    vae.likelihood.start_at_mean(mnist.train)
    fit(vae.model, vae.guide, mnist.train, epochs=20, batch_size=256, lr=1e-2, schedule=cosine)
    for name, x, exact in (("train", mnist.train, train), ("test", mnist.test, test)):
        found = evidence.summarise(vae.model, vae.guide, x, num_particles=10)
        elbo, error = found.elbo.mean().item(), found.elbo.std().item() / len(x) ** 0.5
        print(f"q={q} {name}: ELBO {elbo:.4f} +- {error:.4f}, pPCA {exact}")
        assert abs(elbo - exact) <= 1.0


def test_priors_on_mnist_compared(data_dir, tmp_path, monkeypatch):
    """The table in README: VampPrior beats the standard normal by more than 3 paired errors."""
    monkeypatch.chdir(tmp_path)
    names = ("standard-normal", "mixture-of-normals", "vamp-prior", "flow-prior")
    for prior in names:
        words = [*MNIST.split(), "--data-dir", data_dir, "--prior", prior, "--run", prior]
        for command in (words, ["evaluate", prior, "--num-particles", 1000]):
            result = CliRunner().invoke(app, [str(w) for w in command])
            assert result.exit_code == 0, result.output
    print(compare(names))
    best, other = compare(["standard-normal", "vamp-prior"]).rows
    assert best.run == "vamp-prior" and other.difference < -3 * other.difference_se
