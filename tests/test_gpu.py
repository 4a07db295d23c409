"""On a machine with CUDA: `pytest -n 0 -m gpu`. Written without one, and not run yet."""

import pytest
import torch

from pyrovae import build, evidence, fit, load

pytestmark = pytest.mark.gpu

X = (torch.rand(512, 16, generator=torch.Generator().manual_seed(1234)) > 0.5).float()


def trained(device, **options):
    vae = build(data_shape=(16,), latent_dim=3, hidden=(32,), seed=0)
    history = fit(
        vae.model, vae.guide, X, device=device, epochs=5, batch_size=128, **options
    )  # fmt: skip
    return vae, history


def test_training_is_much_as_on_the_cpu():
    cpu, cuda = trained("cpu")[1], trained("cuda")[1]
    assert cuda["loss"][-1] == pytest.approx(cpu["loss"][-1], rel=0.05)


def test_the_compiled_step_is_the_eager_one():
    """By CUDA graphs; the first batch's loss and gradients are compared by `fit` itself."""
    one, other = (trained("cuda", compile=mode)[0] for mode in ("always", "never"))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-6


def test_a_run_loads_on_the_cpu(tmp_path):
    vae, _ = trained("cuda", run=tmp_path / "a")
    loaded = load(tmp_path / "a")
    for a, b in zip(vae.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a.cpu(), b)


def test_evidence_is_that_of_the_cpu():
    vae, _ = trained("cuda")
    there = evidence.iwae(vae.model, vae.guide, X[:50].cuda(), num_particles=5000)
    here = evidence.iwae(vae.cpu().model, vae.guide, X[:50], num_particles=5000)
    error = (there.standard_error.cpu() ** 2 + here.standard_error**2).sqrt()
    assert bool(((there.log_evidence.cpu() - here.log_evidence).abs() < 5 * error).all())
