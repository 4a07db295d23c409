"""Bounds of several draws: identities, orderings, and the gradient of discrete draws."""

import itertools
import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import Trace_ELBO

from pyrovae import build, evidence
from pyrovae.distributions import seeded
from pyrovae.importance import particles
from pyrovae.objectives import CIWAE, IWAE, MIWAE, PIWAE, DReG, Renyi


def small(prior="vamp-prior", n=6, latent_dim=2):
    options = {"num_components": 3} if prior == "vamp-prior" else {}
    vae = build(data_shape=(4,), latent_dim=latent_dim, hidden=(5,), seed=3, prior=prior,
                prior_options=options).double()  # fmt: skip
    generator = torch.Generator().manual_seed(1234)
    return vae, (torch.rand(n, 4, generator=generator) > 0.4).double()


def evaluated(objective, vae, x, seed=11):
    vae.zero_grad(set_to_none=True)
    with seeded(seed):
        if isinstance(objective, Trace_ELBO) and objective.num_particles > 1:
            vae.guide(x)  # ours run the guide first, and its draw is not among the K
        loss = objective.loss_and_grads(vae.model, vae.guide, x)
    return loss, {n: p.grad.clone() for n, p in vae.named_parameters()}


def assert_same(got, expected, rel=1e-10):
    assert got[0] == pytest.approx(expected[0], rel=rel)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(got[1][name], gradient, rtol=rel, atol=rel, msg=name)


def elbo(k):
    return Trace_ELBO(num_particles=k, vectorize_particles=k > 1, max_plate_nesting=1)


@pytest.mark.parametrize(
    ("objective", "same"),
    [
        (IWAE(1), elbo(1)),
        (MIWAE(4, 1), elbo(4)),
        (Renyi(4, alpha=1.0), elbo(4)),
        (CIWAE(4, share=1.0), elbo(4)),
        (MIWAE(1, 5), IWAE(5)),
        (Renyi(5, alpha=0.0), IWAE(5)),
        (CIWAE(5, share=0.0), IWAE(5)),
        (PIWAE(1, 5), IWAE(5)),
    ],
    ids=lambda o: type(o).__name__,
)
def test_special_cases_are_equal_draw_by_draw(objective, same):
    """In value and every gradient, with the same noise."""
    vae, x = small()
    assert_same(evaluated(objective, vae, x), evaluated(same, vae, x))


def test_other_objectives_differ():
    """Negative control."""
    vae, x = small()
    for objective in (IWAE(4), MIWAE(2, 2), Renyi(4, 0.5), CIWAE(4, 0.5)):
        with pytest.raises(AssertionError):
            assert_same(evaluated(objective, vae, x), evaluated(elbo(4), vae, x))


def log_weights_of(vae, x, k, seed=11):
    with seeded(seed), torch.no_grad():
        return particles(vae.model, vae.guide, x, num_particles=k).log_weight


@pytest.mark.parametrize("epsilon", [1e-3, -1e-3])
def test_renyi_near_one_differs_by_half_the_variance(epsilon):
    """Renyi(1 - e) - ELBO = e/2 Var(log w) + O(e^2), the third cumulant's term."""
    vae, x = small()
    k = 20_000
    log_w = log_weights_of(vae, x, k)
    with seeded(11):
        renyi = Renyi(k, alpha=1 - epsilon).estimate(vae.model, vae.guide, x).value
    difference = renyi - log_w.mean(0)
    expected = epsilon / 2 * log_w.var(0, unbiased=False)
    third = epsilon**2 / 6 * (log_w - log_w.mean(0)).pow(3).mean(0)
    torch.testing.assert_close(difference, expected + third, rtol=1e-6, atol=1e-12)
    assert (difference - expected).abs().max() > 1e-5 * difference.abs().max()


def test_iwae_rises_with_k_to_the_exact_evidence():
    """L_1 < L_3 < L_10 < L_100 <= log p(x), by 5 standard errors each."""
    vae, x = small()
    exact = evidence.exact(vae.model, vae.guide, x).log_evidence
    m = 3_000
    log_w = log_weights_of(vae, x, 100 * m)
    means, errors = [], []
    for k in (1, 3, 10, 100):
        bound = IWAE(k).bound(log_w[: k * m].unflatten(0, (m, k)))  # (m, N)
        means.append(bound.mean(0))
        errors.append(bound.std(0) / math.sqrt(m))
    for low, high, a, b in zip(means, means[1:], errors, errors[1:], strict=False):
        error = (a.square().sum() + b.square().sum()).sqrt()
        assert (high - low).sum() > 5 * error
    assert (means[-1] < exact + 4 * errors[-1]).all()
    # 1/K: the gap is Var(w)/(2 K) in the limit (Domke & Sheldon 2018, theorem 3)
    w = (log_w - exact).exp()
    torch.testing.assert_close(exact - means[-1], w.var(0) / 200, rtol=0.1, atol=5 * 1e-3)


def test_renyi_falls_with_alpha():
    vae, x = small()
    log_w = log_weights_of(vae, x, 500)
    bounds = [Renyi(500, alpha=a).bound(log_w) for a in (-1.0, 0.0, 0.5, 1.0, 2.0)]
    for high, low in itertools.pairwise(bounds):
        assert (high > low).all()


def test_several_latents_and_shared_parameters():
    """Two levels, a VampPrior of the top guide: the same as `log_weights` by site, and SVI's."""
    from test_two_levels import TwoLevels

    with seeded(1):
        two = TwoLevels().double()
    x = (torch.rand(6, 4, generator=torch.Generator().manual_seed(1234)) > 0.5).double()
    with pyro.get_param_store().scope():
        with seeded(3):
            theirs = elbo(1).loss_and_grads(two.model, two.guide, x)
        expected = {n: p.grad.clone() for n, p in two.named_parameters()}
        two.zero_grad()
        with seeded(3):
            torch.randn(0)
            assert IWAE(1).loss_and_grads(two.model, two.guide, x) == pytest.approx(theirs)
        for name, p in two.named_parameters():
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-10, atol=1e-12)
        exact = evidence.exact(two.model, two.guide, x).log_evidence.sum()
        losses = torch.tensor([IWAE(200).loss(two.model, two.guide, x) for _ in range(20)])
        assert abs(-losses.mean() - exact) < 4 * losses.std() / 20**0.5 + 0.02


class Discrete(torch.nn.Module):
    """z one of 3, by logits of x."""

    def __init__(self):
        super().__init__()
        self.prior = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))
        self.decoder, self.encoder = torch.nn.Linear(3, 4), torch.nn.Linear(4, 3)
        generator = torch.Generator().manual_seed(5)
        for p in [*self.decoder.parameters(), *self.encoder.parameters()]:
            p.data = torch.randn(p.shape, generator=generator)
        self.double()

    def model(self, x):
        pyro.module("discrete", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=self.prior))
            one_hot = torch.nn.functional.one_hot(z, 3).to(self.prior)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(one_hot)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("discrete", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.encoder(x)))


def enumerated_gradient(pair, objective, x):
    """The gradient of E_q(z_1) ... q(z_K) bound, over all 3^K values."""
    log_q = pair.encoder(x).log_softmax(-1)  # (N, 3)
    every = torch.eye(3, dtype=torch.float64)
    log_lik = dist.Bernoulli(logits=pair.decoder(every)).log_prob(x.unsqueeze(1)).sum(-1)
    log_w = pair.prior.log_softmax(-1) + log_lik - log_q
    total = 0
    for z in itertools.product(range(3), repeat=objective.num_particles):
        weights = log_w[:, z].T  # (K, N)
        probability = log_q[:, z].sum(1).exp()
        total = total + (probability * objective.bound(weights)).sum()
    return torch.autograd.grad(-total, list(pair.parameters()))


@pytest.mark.parametrize(
    "objective", [IWAE(2), IWAE(3), Renyi(2, 0.5), CIWAE(3, 0.3), MIWAE(2, 2), IWAE(1)],
    ids=lambda o: f"{type(o).__name__}-{o.num_particles}",
)  # fmt: skip
def test_draws_without_a_gradient_have_the_scores(objective):
    """Against enumeration, 4.5 standard errors of each of 34 numbers: p < 3e-4."""
    pair = Discrete()
    x = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0]]).double()
    expected = torch.cat([g.flatten() for g in enumerated_gradient(pair, objective, x)])
    rows = x.repeat(500, 1)

    def draw(seed):
        pair.zero_grad()
        with seeded(seed), pyro.get_param_store().scope():
            objective.loss_and_grads(pair.model, pair.guide, rows)
        return torch.cat([p.grad.flatten() for p in pair.parameters()]) / 500

    draws = torch.stack([draw(100 + s) for s in range(120)])
    error = draws.std(0) / 120**0.5
    assert ((draws.mean(0) - expected).abs() < 4.5 * error + 1e-9).all()
    # negative control: without the score the guide's gradient is another
    log_w = particles(pair.model, pair.guide, rows, num_particles=objective.num_particles)
    wrong = torch.autograd.grad(-objective.bound(log_w.log_weight).sum() / 500, pair.encoder.bias)
    assert (wrong[0] - expected[-3:]).abs().max() > 10 * error.max()


def test_piwae_gives_each_side_its_own_bound():
    """Parameters apart: the model's gradient is IWAE(MK)'s, the guide's MIWAE(M, K)'s."""
    vae, x = small("learned-normal")
    got = evaluated(PIWAE(3, 2), vae, x)
    of_model, of_guide = evaluated(IWAE(6), vae, x), evaluated(MIWAE(3, 2), vae, x)
    assert got[0] == pytest.approx(of_model[0])
    for name, gradient in got[1].items():
        expected = (of_guide if name.startswith("posterior") else of_model)[1][name]
        other = (of_model if name.startswith("posterior") else of_guide)[1][name]
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12, msg=name)
        assert not torch.allclose(gradient, other, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IWAE(0), "num_particles to be a positive whole number; got 0"),
        (lambda: IWAE(2.0), "positive whole number; got 2.0"),
        (lambda: MIWAE(0, 3), "num_bounds to be a positive"),
        (lambda: Renyi(3, float("nan")), "alpha to be finite; got nan"),
        (lambda: CIWAE(3, 1.5), r"share to be finite and in \[0, 1\]; got 1.5"),
        (lambda: DReG(-1), "num_particles to be a positive"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
