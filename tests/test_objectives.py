"""Equal noise, equal figures: Pyro's ELBOs, and the one written by hand from the parts."""

import math

import pyro
import pytest
import torch
from cases import LIKELIHOODS, NET, POSTERIORS, PRIORS, SHAPE, inputs
from cases.pairing import compatible, shipped
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from pyrovae import VAE, build, fit, posteriors, priors
from pyrovae.distributions import seeded
from pyrovae.objectives import ManualELBO, by_objective_name, with_beta


def make(prior=PRIORS[0], likelihood=LIKELIHOODS[0], posterior=POSTERIORS[0]):
    with seeded(1):
        vae = shipped(prior, posterior, likelihood).double().eval()
        x = vae.likelihood(torch.randn(5, 2, dtype=torch.float64)).sample()
    return vae, x


def evaluated(objective, vae, x, beta=1.0):
    """Loss and every parameter's gradient, with the same noise."""
    vae.zero_grad()
    model, guide = (vae.model, vae.guide)
    if not isinstance(objective, ManualELBO):
        model, guide = with_beta(model, beta), with_beta(guide, beta)
    with seeded(11):
        loss = objective.loss_and_grads(model, guide, x)
    return loss, {name: p.grad.clone() for name, p in vae.named_parameters()}


def assert_equal(got, expected):
    assert got[0] == pytest.approx(expected[0], rel=1e-9)
    for name, gradient in expected[1].items():
        scale = 1e-9 * gradient.abs().max().item() + 1e-12
        torch.testing.assert_close(got[1][name], gradient, rtol=0, atol=scale, msg=name)


def pyro_elbo(cls, particles):
    return cls(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)


EVERY = [
    (p, LIKELIHOODS[0], q)
    for p, q in compatible(tuple(PRIORS), tuple(POSTERIORS), LIKELIHOODS[0])
    if q.build()(*inputs(q.build().float(), dtype=torch.float32)).has_rsample
] + [(PRIORS[0], like, POSTERIORS[1]) for like in LIKELIHOODS[1:]]


@pytest.mark.parametrize(
    ("prior", "likelihood", "posterior"), EVERY, ids=lambda v: getattr(v, "id", v)
)
@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize(
    ("cls", "kl"), [(Trace_ELBO, "sampled"), (TraceMeanField_ELBO, "analytic")]
)
def test_manual_equals_pyro(prior, likelihood, posterior, particles, cls, kl):
    vae, x = make(prior, likelihood, posterior)
    expected = evaluated(pyro_elbo(cls, particles), vae, x)
    assert_equal(evaluated(ManualELBO(particles, kl=kl), vae, x), expected)


@pytest.mark.parametrize(
    ("cls", "kl"), [(Trace_ELBO, "sampled"), (TraceMeanField_ELBO, "analytic")]
)
@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
def test_beta_is_one_mechanism(cls, kl, beta):
    vae, x = make(PRIORS[1], LIKELIHOODS[0], POSTERIORS[1])
    expected = evaluated(pyro_elbo(cls, 5), vae, x, beta)
    assert_equal(evaluated(ManualELBO(5, kl=kl, beta=beta), vae, x), expected)


def test_beta_around_one_side_only_is_caught():
    vae, x = make()
    good = evaluated(ManualELBO(kl="sampled", beta=0.3), vae, x)
    with seeded(11):
        one_sided = Trace_ELBO().loss(with_beta(vae.model, 0.3), vae.guide, x)
    assert one_sided != pytest.approx(good[0], rel=1e-3)


def test_a_kl_counted_twice_is_caught():
    vae, x = make()
    expected = evaluated(TraceMeanField_ELBO(), vae, x)
    with pytest.raises(AssertionError):
        assert_equal(evaluated(ManualELBO(beta=2.0), vae, x), expected)


def test_terms_are_the_essays():
    """KL = 0.5 sum(mu^2 + sigma^2 - 1 - log sigma^2), and squared error up to a constant."""
    vae, x = make(likelihood=LIKELIHOODS[3])
    with seeded(11):
        terms = ManualELBO().terms(vae.model, vae.guide, x)
    with seeded(11):
        mu, log_variance = vae.posterior.net(x).unbind(-2)
        z = mu + (log_variance / 2).exp() * torch.randn_like(mu)
    kl = 0.5 * (mu**2 + log_variance.exp() - 1 - log_variance).sum(-1)
    sigma = 0.3
    constant = -x[0].numel() * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    squared_error = (x - vae.likelihood.net(z)).square().flatten(1).sum(1)
    torch.testing.assert_close(terms.kl, kl, rtol=1e-12, atol=1e-12)
    expected = -squared_error / (2 * sigma**2) + constant
    torch.testing.assert_close(terms.reconstruction, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms.elbo, terms.reconstruction - terms.kl)
    assert terms.elbo.shape == (5,)


def test_manual_elbo_is_an_svi_loss():
    vae = build(data_shape=SHAPE, latent_dim=2, hidden=(8,))
    x = torch.ones(16, *SHAPE)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), loss=ManualELBO())
    first, *_, last = [svi.step(x) for _ in range(60)]
    assert last < 0.7 * first
    with seeded(3):
        loss = svi.evaluate_loss(x)
    with seeded(3):
        assert ManualELBO().differentiable_loss(vae.model, vae.guide, x).item() == loss


def test_manual_elbo_refuses_what_it_cannot_do():
    vae, other = (build(data_shape=SHAPE, latent_dim=2, hidden=(3,)) for _ in range(2))
    x = torch.ones(2, *SHAPE)
    with pytest.raises(ValueError, match="expected the model and guide of one VAE"):
        ManualELBO().loss(vae.model, other.guide, x)
    with pytest.raises(ValueError, match="use Trace_ELBO"):
        ManualELBO().loss(lambda x: None, lambda x: None, x)

    class Mine(VAE):
        def model(self, x, *c):
            super().model(x, *c)

    mine = Mine(vae.prior, vae.likelihood, vae.posterior)
    with pytest.raises(ValueError, match="one VAE made of parts"):
        ManualELBO().loss(mine.model, mine.guide, x)
    for options, message in (
        ({"num_particles": 0}, "num_particles to be a positive"),
        ({"kl": "exact"}, "'analytic' or 'sampled'; got 'exact'"),
    ):
        with pytest.raises(ValueError, match=message):
            ManualELBO(**options)


def test_manual_elbo_refuses_a_posterior_without_rsample():
    class Discrete(posteriors.MeanFieldNormal):
        def distribution(self, params):
            return dist.OneHotCategorical(logits=params[..., 0, :])

    vae = VAE(priors.StandardNormal(2), LIKELIHOODS[0].build(), Discrete(SHAPE, 2, NET))
    with pytest.raises(ValueError, match="posterior with rsample; got OneHotCategorical"):
        ManualELBO().loss(vae.model, vae.guide, torch.ones(2, *SHAPE))


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("trace-mean-field", TraceMeanField_ELBO),
        ("TraceMeanField_ELBO", TraceMeanField_ELBO),
        ("trace", Trace_ELBO),
        ("manual", ManualELBO),
        ("ManualELBO", ManualELBO),
    ],
)
def test_objectives_by_name(name, cls):
    assert by_objective_name(name) is cls


def test_unknown_objective_lists_the_known():
    with pytest.raises(ValueError, match="one of beta, .*, manual, .*, trace, .*; got 'elbow'"):
        by_objective_name("elbow")


def test_the_index_of_an_exemplar_prior_reaches_the_prior_alone():
    prior = next(p for p in PRIORS if p.cls is priors.ExemplarPrior)
    vae, x = make(prior)
    index = torch.tensor([2, -1, 0, 5, 3])
    losses = []
    for objective, *c in ((ManualELBO(3), index), (pyro_elbo(TraceMeanField_ELBO, 3), index)):
        with seeded(11):
            losses.append(objective.loss(vae.model, vae.guide, x, *c))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    with seeded(11):
        assert ManualELBO(3).loss(vae.model, vae.guide, x) != pytest.approx(losses[0], rel=1e-6)


def test_draws_without_a_gradient_are_refused_with_the_remedy():
    vae = build(data_shape=(4,), latent_dim=3, prior="one-hot-categorical", hidden=(5,),
                posterior="one-hot-categorical")  # fmt: skip
    x = torch.ones(8, 4)
    with pytest.raises(ValueError, match="draws with a gradient.*--objective trace"):
        fit(vae.model, vae.guide, x, epochs=1)
    fit(vae.model, vae.guide, x, epochs=1, objective=Trace_ELBO())
