"""VampPrior at the top of a two-level model written by hand (Tomczak & Welling 2018, section 4)."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import NET
from pyro.infer import SVI, Trace_ELBO

from pyrovae import evidence, fit, likelihoods, log_weights, posteriors, priors
from pyrovae.distributions import seeded
from pyrovae.testing import check_pair

D = 4


class TwoLevels(torch.nn.Module):
    """p(z2) p(z1|z2) p(x|z1, z2) with q(z2|x) q(z1|x, z2), and a VampPrior of q(z2|x)."""

    def __init__(self):
        super().__init__()
        self.top = posteriors.MeanFieldNormal((D,), 1, NET)
        self.bottom = posteriors.MeanFieldNormal((D,), 1, NET, context_dim=1)
        self.prior = priors.VampPrior(1, self.top, num_components=5, init=(0.5, 0.3))
        self.between = priors.ConditionalNormal(1, 1, NET)
        self.likelihood = likelihoods.Bernoulli(1, (D,), NET, context_dim=1)

    def model(self, x):
        pyro.module("two levels", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.prior())
            z1 = pyro.sample("z1", self.between(z2))
            pyro.sample("x", self.likelihood(z1, z2), obs=x)

    def guide(self, x):
        pyro.module("two levels", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.top(x))
            pyro.sample("z1", self.bottom(x, z2))


@pytest.fixture
def pair():
    with pyro.get_param_store().scope(), seeded(1):
        yield TwoLevels(), (torch.rand(20, D) > 0.5).float()


def test_it_is_a_valid_pair_of_known_evidence(pair):
    two, x = pair
    assert check_pair(two.model, two.guide, x).ok
    exact = evidence.exact(two.model, two.guide, x[:4]).log_evidence
    found = evidence.iwae(two.model, two.guide, x[:4], num_particles=50_000)
    assert ((found.log_evidence - exact).abs() < 5 * found.standard_error + 1e-4).all()


def test_the_top_posterior_moves_with_the_prior(pair):
    two, x = pair
    before = two.prior.pseudo_inputs.clone()
    elbo = log_weights(two.model, two.guide, x, num_particles=50).mean()
    fit(two.model, two.guide, x, epochs=60, lr=1e-2)
    assert not torch.equal(two.prior.pseudo_inputs, before)
    assert log_weights(two.model, two.guide, x, num_particles=50).mean() > elbo + 0.1
    SVI(two.model, two.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(x)


def test_a_prior_that_is_not_the_mixture_has_another_evidence(pair):
    """Negative control."""
    two, x = pair
    exact = evidence.exact(two.model, two.guide, x[:4]).log_evidence

    def other(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z1", two.between(z2))
            pyro.sample("x", two.likelihood(z1, z2), obs=x)

    found = evidence.exact(other, two.guide, x[:4]).log_evidence
    assert (found - exact).abs().max() > 1e-3
