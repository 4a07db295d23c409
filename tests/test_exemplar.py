"""The exemplar prior: leave-one-out, nearest neighbours, state."""

import math

import pytest
import torch
from cases import NET

from pyrovae import VAE, build, fit, likelihoods, log_weights, posteriors, priors
from pyrovae.distributions import seeded
from pyrovae.testing import check_pair


def pair(n=12, neighbors=20):
    with seeded(1):
        x = (torch.rand(n, 4) > 0.5).float()
        q = posteriors.MeanFieldNormal((4,), 2, NET)
        p = priors.ExemplarPrior(2, q, exemplars=x, num_neighbors=neighbors)
        return VAE(p, likelihoods.Bernoulli(2, (4,), NET), q).double(), x.double()


def by_hand(vae, z, left=None):
    """log of the mean over exemplars, one loop and no matrix product."""
    means = vae.posterior(vae.prior.exemplars).mean
    d = torch.distributions.Normal(means, vae.prior.log_scale.exp())
    log_p = d.log_prob(z.unsqueeze(-2)).sum(-1)
    keep = [[n for n in range(len(means)) if left is None or n != left[i]] for i in range(len(z))]
    return torch.stack(
        [row[k].logsumexp(0) - math.log(len(k)) for row, k in zip(log_p, keep, strict=True)]
    )


def test_leave_one_out_by_the_index():
    vae, _ = pair()
    vae.eval()
    z = torch.randn(5, 2, dtype=torch.float64)
    index = torch.tensor([3, -1, 0, 11, 99])
    torch.testing.assert_close(vae.prior(index).log_prob(z), by_hand(vae, z, index.tolist()))
    torch.testing.assert_close(vae.prior().log_prob(z), by_hand(vae, z))
    assert (by_hand(vae, z, index.tolist()) - by_hand(vae, z)).abs().max() > 1e-3
    draws = vae.prior(index[:1]).sample((400,))
    assert draws.shape == (400, 1, 2)
    with torch.no_grad():
        vae.prior.exemplars.copy_(torch.rand(12, 4))  # no two alike
        vae.prior.log_scale.fill_(-9.0)  # draws lie at their exemplar's mean
        means = vae.posterior(vae.prior.exemplars).mean
        for c, left in ((index[:1], True), (torch.tensor([-1]), False)):
            nearest = torch.cdist(vae.prior(c).sample((400,))[:, 0], means).argmin(-1)
            assert bool((nearest == 3).any()) != left


def test_nearest_neighbours_are_a_lower_bound_that_becomes_exact():
    vae, _ = pair(n=12, neighbors=4)
    z = torch.randn(7, 2, dtype=torch.float64)
    index = torch.arange(7)
    exact = vae.eval().prior(index).log_prob(z)
    some = vae.train().prior(index).log_prob(z)
    assert (some < exact).all() and (some > exact - math.log(12 / 4) - 1e-9).all()
    vae.prior.num_neighbors = 11
    torch.testing.assert_close(vae.prior(index).log_prob(z), exact)


def test_stale_means_choose_the_neighbours_but_fresh_ones_are_scored():
    vae, _ = pair(neighbors=5)
    z = torch.randn(1, 2, dtype=torch.float64)
    none = torch.full((1,), -1)
    vae.train().prior(none).log_prob(z)
    before = vae.prior._means.clone()
    with torch.no_grad():
        vae.posterior.net.output.bias += 0.3
    found = vae.prior(none).log_prob(z)
    fresh = (vae.prior._means - before).abs().sum(-1) > 0  # those that were encoded again
    assert fresh.sum() == 5
    again = vae.posterior(vae.prior.exemplars).mean
    torch.testing.assert_close(vae.prior._means[fresh], again[fresh])
    with torch.no_grad():
        means = vae.posterior(vae.prior.exemplars).mean
        each = torch.distributions.Normal(means, 1.0).log_prob(z.unsqueeze(-2)).sum(-1)
    assert (found <= each.logsumexp(-1) - math.log(12)).all()
    assert (found >= each.max(-1).values - math.log(12) - 2).all()
    found.sum().backward()
    assert vae.posterior.net.output.bias.grad.abs().sum() > 0


def test_the_pair_is_valid_and_the_index_reaches_the_prior_alone():
    vae, x = pair()
    index = torch.arange(12)
    assert check_pair(vae.model, vae.guide, x, index).ok
    assert check_pair(vae.model, vae.guide, x).ok
    held = log_weights(vae.model, vae.guide, x, index, num_particles=3)
    assert not torch.allclose(held, log_weights(vae.model, vae.guide, x, num_particles=3))
    fit(vae.model, vae.guide, (x, index), epochs=2, validation=(x, torch.full((12,), -1)))
    assert vae.sample(5).shape == (5, 4)


def test_build_and_state():
    options = {"prior": "exemplar-prior", "prior_options": {"num_exemplars": 6}}
    vae = build(data_shape=(4,), latent_dim=2, hidden=(8,), **options)
    with pytest.raises(ValueError, match="two, of shape"):
        build(
            data_shape=(4,), latent_dim=2, prior="exemplar-prior",
            prior_options={"num_exemplars": 1},
        ).prior.set_exemplars(torch.zeros(1, 4))  # fmt: skip
    with pytest.raises(ValueError, match="expected exemplars; got none yet"):
        vae.prior()
    with pytest.raises(ValueError, match="at least num_exemplars = 6 training data"):
        vae.prior.set_exemplars(torch.zeros(5, 4))
    x = torch.rand(9, 4)
    vae.prior.set_exemplars(x)
    vae.eval()
    assert torch.equal(vae.prior.exemplars, x[vae.prior.rows])
    again = build(data_shape=(4,), latent_dim=2, hidden=(8,), **options)
    again.eval().load_state_dict(vae.state_dict())
    z = torch.randn(3, 2)
    torch.testing.assert_close(again.prior().log_prob(z), vae.prior().log_prob(z))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_exemplars": 0}, "num_exemplars to be a positive"),
        ({"num_neighbors": 0}, "num_neighbors to be a positive"),
        ({"latent_dim": 3}, "a posterior of latent_dim 3; got one of 2"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        priors.ExemplarPrior(
            **{"latent_dim": 2, "posterior": posteriors.MeanFieldNormal((4,), 2)} | options
        )
    vae, x = pair()
    with pytest.raises(ValueError, match="index of each datum.*got none: fit on"):
        fit(vae.model, vae.guide, x, epochs=1)
    with pytest.raises(ValueError, match="whole numbers"):
        vae.prior(torch.zeros(3))
