import math

import pytest
import torch
from test_importance import linear_gaussian

from pyrovae import evidence


def test_iwae_of_the_exact_posterior_is_exact():
    vae, x, log_evidence = linear_gaussian()
    found = evidence.iwae(vae.model, vae.guide, x, num_particles=50)
    torch.testing.assert_close(found.log_evidence, log_evidence, rtol=0, atol=1e-10)
    assert found.standard_error.max() < 1e-6
    torch.testing.assert_close(found.effective_sample_size, torch.full((5,), 50.0).double())


def wide(shift=0.3, log_scale=0.3):
    """The exact posterior, shifted and widened: an honest importance sampler."""
    vae, x, log_evidence = linear_gaussian()
    vae.posterior.net.bias.data[:3] += shift * 0.1
    vae.posterior.net.bias.data[3:6] += log_scale
    return vae, x, log_evidence


def test_iwae_covers_the_evidence_with_its_standard_error():
    vae, x, log_evidence = wide()
    found = evidence.iwae(vae.model, vae.guide, x, num_particles=20_000)
    assert bool(((found.log_evidence - log_evidence).abs() < 4.5 * found.standard_error).all())
    assert found.standard_error.max() < 0.02


def test_a_wrong_evidence_is_outside_the_error():
    vae, x, log_evidence = wide()
    found = evidence.iwae(vae.model, vae.guide, x, num_particles=20_000)
    off = log_evidence + 0.1
    assert bool(((found.log_evidence - off).abs() > 4.5 * found.standard_error).all())


def test_standard_error_is_the_spread_over_seeds():
    vae, x, _ = wide()
    runs = [evidence.iwae(vae.model, vae.guide, x, num_particles=500, seed=s) for s in range(200)]
    spread = torch.stack([r.log_evidence for r in runs]).std(0)
    stated = torch.stack([r.standard_error for r in runs]).mean(0)
    torch.testing.assert_close(stated, spread, rtol=0.25, atol=0)  # 200 runs: sd of a sd is 5 %


def test_summary_adds_up_and_blocks_do_not_matter(monkeypatch):
    vae, x, log_evidence = wide()
    whole = evidence.summarise(vae.model, vae.guide, x, num_particles=300)
    torch.testing.assert_close(whole.elbo, whole.reconstruction - whole.kl)
    assert bool((whole.elbo < whole.evidence.log_evidence).all())
    from pyrovae.evidence import importance_weighted

    monkeypatch.setattr(importance_weighted, "BLOCK", 70)
    split = evidence.summarise(vae.model, vae.guide, x, num_particles=300)
    once = evidence.summarise(vae.model, vae.guide, x, num_particles=70)
    twice = evidence.summarise(vae.model, vae.guide, x, num_particles=140)
    assert not torch.allclose(once.elbo, twice.elbo)  # the second block has noise of its own
    error = math.sqrt(2) * split.evidence.standard_error
    difference = (split.evidence.log_evidence - whole.evidence.log_evidence).abs()
    assert bool((difference < 4.5 * error).all())
    torch.testing.assert_close(split.elbo, whole.elbo, rtol=0, atol=0.6)


def test_one_particle_has_no_error():
    vae, x, _ = wide()
    found = evidence.iwae(vae.model, vae.guide, x, num_particles=1)
    assert bool(found.standard_error.isinf().all())
    with pytest.raises(ValueError, match="num_particles to be a positive whole number; got 0"):
        evidence.iwae(vae.model, vae.guide, x, num_particles=0)
