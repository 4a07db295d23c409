"""Pyro's NUTS of one datum, against exact posteriors."""

import pytest
import torch
from pairs_of_users import plain_guide, plain_model
from test_importance import linear_gaussian

from pyrovae import build, evidence
from pyrovae.importance import find_modules


def test_it_draws_the_exact_posterior():
    """Mean and variance within 4.5 Monte Carlo errors; those of another datum are not."""
    vae, x, _ = linear_gaussian()
    exact = evidence.exact(vae.model, vae.guide, x)
    found = evidence.nuts(
        vae.model, vae.guide, x[:1], num_samples=300, num_warmup=150, num_chains=2
    )
    z = found.samples["z"]
    assert z.shape == (2, 300, 3) and z.dtype == torch.float64
    assert found.log_joint.shape == (2, 300) and found.divergences == 0
    assert float(found.rhat["z"].max()) < 1.03
    sd = exact.covariance[0].diagonal().sqrt()
    error = sd / found.effective_sample_size["z"].sqrt()
    assert bool(((z.mean((0, 1)) - exact.mean[0]).abs() < 4.5 * error).all())
    assert not bool(((z.mean((0, 1)) - exact.mean[1]).abs() < 4.5 * error).all())
    variance = z.flatten(0, 1).var(0)
    relative = (2 / found.effective_sample_size["z"]).sqrt()
    assert bool(((variance / sd.square() - 1).abs() < 6 * relative).all())
    first = {"z": z[:1, :1]}  # one draw of one datum
    torch.testing.assert_close(
        exact.log_joint({"z": first["z"].expand(1, 5, 3)})[0, 0], found.log_joint[0, 0]
    )


def test_it_leaves_everything_as_it_was():
    vae = build(data_shape=(4,), latent_dim=2, seed=1)
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    state = torch.random.get_rng_state()
    options = {"num_samples": 10, "num_warmup": 5, "num_chains": 1}
    one = evidence.nuts(vae.model, vae.guide, torch.ones(1, 4), **options)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    two = evidence.nuts(vae.model, vae.guide, torch.ones(1, 4), **options)
    assert torch.equal(one.samples["z"], two.samples["z"])
    assert vae.training and find_modules(vae.model)[0] is vae


def test_a_pair_of_a_users_own():
    found = evidence.nuts(
        plain_model, plain_guide, torch.ones(1, 5), num_samples=20, num_warmup=20, num_chains=1
    )
    assert found.samples["z"].shape == (1, 20, 2)


def test_bad_requests_are_refused():
    vae, x, _ = linear_gaussian()
    with pytest.raises(ValueError, match=r"expected one datum, such as x\[:1\]; got 5"):
        evidence.nuts(vae.model, vae.guide, x)
    with pytest.raises(ValueError, match="num_chains to be a whole number >= 1; got 0"):
        evidence.nuts(vae.model, vae.guide, x[:1], num_chains=0)
    discrete = build(data_shape=(4,), latent_dim=2, prior="categorical", posterior="categorical")
    with pytest.raises(ValueError, match="'z': expected continuous latents; got a discrete one"):
        evidence.nuts(discrete.model, discrete.guide, torch.ones(1, 4))
