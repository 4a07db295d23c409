"""Semi-amortised guides: refined datum by datum, and still valid pairs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from pyrovae import (
    VAE,
    build,
    evidence,
    fit,
    likelihoods,
    log_weights,
    nets,
    pairs,
    posteriors,
    priors,
)
from pyrovae.distributions import seeded
from pyrovae.importance import guide_distributions
from pyrovae.testing import check_pair

LINEAR = nets.mlp(hidden=())


def linear(posterior=posteriors.FullRankNormal):
    with seeded(1):
        vae = VAE(
            priors.StandardNormal(2),
            likelihoods.Normal(2, (5,), LINEAR, variance=likelihoods.Fixed(0.7)),
            posterior((5,), 2, LINEAR),
        ).double()
        return vae, torch.randn(6, 5, dtype=torch.float64)


def test_it_reaches_the_exact_posterior_of_a_linear_pair():
    vae, x = linear()
    exact = evidence.exact(vae.model, vae.guide, x).log_evidence
    before = log_weights(vae.model, vae.guide, x, num_particles=50)
    model, guide = pairs.refined(vae.model, vae.guide, steps=400, lr=0.3)
    after = log_weights(model, guide, x, num_particles=50)
    assert (after - exact).abs().max() < 1e-3
    assert (before - exact).abs().max() > 0.5
    short = log_weights(*pairs.refined(vae.model, vae.guide, steps=10), x, num_particles=2000)
    amortised = log_weights(vae.model, vae.guide, x, num_particles=2000).mean()
    assert amortised < short.mean() < exact.mean()


def test_no_steps_change_nothing():
    vae, x = linear(posteriors.MeanFieldNormal)
    _, guide = pairs.refined(vae.model, vae.guide, steps=0)
    found, expected = guide_distributions(guide, x)["z"], vae.encode(x)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.stddev, expected.stddev)


@pytest.mark.parametrize("posterior", [posteriors.MeanFieldNormal, posteriors.FullRankNormal])
def test_it_is_a_valid_pair(posterior):
    vae, x = linear(posterior)
    report = check_pair(*pairs.refined(vae.model, vae.guide, steps=3), x)
    assert report.ok, str(report)


def test_subsampled_plates_several_sites_and_training_by_svi():
    net = torch.nn.Linear(3, 8)

    def model(x):
        with pyro.plate("data", 20, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            u = pyro.sample("u", dist.Normal(z.sum(-1), 1.0))
            loc = torch.stack([z[..., 0], z[..., 1], u], -1)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        h = net(x)
        with pyro.plate("data", 20, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(h[:, :2], h[:, 2:4].exp()).to_event(1))
            pyro.sample("u", dist.Normal(h[:, 4], h[:, 5].exp()))

    x = torch.randn(10, 3)
    refined = pairs.refined(model, guide, steps=40, modules=[net])
    assert refined[1].held[0] is net
    better = log_weights(*refined, x, num_particles=500).mean()
    assert better > log_weights(model, guide, x, num_particles=500, modules=[net]).mean()
    with pyro.get_param_store().scope():
        before = net.weight.clone()
        svi = SVI(*refined, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        svi.step(x)
        assert not torch.equal(before, net.weight)


def test_the_gradient_passes_through_the_ascent():
    """Against finite differences of the refined ELBO, by a parameter of the encoder."""
    vae, x = linear(posteriors.MeanFieldNormal)
    model, guide = pairs.refined(vae.model, vae.guide, steps=4)
    bias = vae.posterior.net.output.bias

    def loss():
        with seeded(3):
            return TraceMeanField_ELBO().differentiable_loss(model, guide, x)

    loss().backward()
    found = bias.grad.clone()
    for i in range(len(bias)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                bias[i] += sign * 1e-6
            values.append(loss().item())
            with torch.no_grad():
                bias[i] -= sign * 1e-6
        expected = (values[0] - values[1]) / 2e-6
        assert found[i].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_fit_trains_it_and_every_law_of_state_holds():
    vae = build(data_shape=(4,), latent_dim=2, hidden=(8,))
    x = (torch.rand(32, 4) > 0.5).float()
    model, guide = pairs.refined(vae.model, vae.guide, steps=2)
    before = [p.clone() for p in vae.parameters()]
    fit(model, guide, x, epochs=2, batch_size=8, lr=0.01)
    assert all(not torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": -1}, "steps to be a whole number >= 0"), ({"lr": 0.0}, "lr to be positive")],
)
def test_bad_arguments(options, message):
    vae, _ = linear()
    with pytest.raises(ValueError, match=message):
        pairs.refined(vae.model, vae.guide, **options)


def test_a_guide_that_is_not_normal_is_refused():
    vae, x = linear(posteriors.LowRankNormal)
    with pytest.raises(ValueError, match="site 'z': expected a normal guide.*got LowRank"):
        log_weights(*pairs.refined(vae.model, vae.guide), x)
