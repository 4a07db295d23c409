"""Active units and ELBO surgery, against Gaussians where they are known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae import build, diagnostics

N, D = 400, 3
SCALES = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)  # how the guide's mean moves with x
NOISE = 0.6


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), D), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x * SCALES + 0.3, NOISE).to_event(1))


def data(n):
    """Data of another seed than the draws': they would be the same numbers, and not independent."""
    generator = torch.Generator().manual_seed(12345)
    return torch.randn(n, D, dtype=torch.float64, generator=generator)


@pytest.fixture
def x():
    return data(N)


def test_active_units(x):
    found = diagnostics.active_units(model, guide, x, num_draws=100)
    expected = (SCALES * x).var(0)
    error = NOISE / math.sqrt(50) * (2 * expected / N + NOISE**2 / 50 / N).sqrt()
    assert ((found.variance - expected).abs() < 5 * error + 1e-9).all()
    assert found.active.tolist() == [True, True, False] and found.count == 2
    biased = (x * SCALES + NOISE / 10 * torch.randn(N, D, dtype=torch.float64)).var(0)
    assert biased[2] > 0.003  # the noise of means of 100 draws, which halves take out


def by_loops(x, z, log_prior):
    """Each log-density one by one."""
    q = torch.distributions.Normal(x * SCALES + 0.3, NOISE)
    own = q.log_prob(z).sum(-1)
    every = torch.stack([q.log_prob(row.expand_as(x)).sum(-1) for row in z.reshape(-1, D)])
    mixture = (every.logsumexp(1) - math.log(len(x))).reshape(own.shape)
    return (own - mixture).mean().item(), (mixture - log_prior(z)).mean().item()


def test_surgery_adds_up_and_is_what_loops_give(x):
    x = x[:40]
    found = diagnostics.elbo_surgery(model, guide, x, num_draws=3)
    assert found.kl == pytest.approx(found.mutual_information + found.aggregate_kl, abs=1e-10)
    q = torch.distributions.Normal(x * SCALES + 0.3, NOISE)
    exact = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    assert abs(found.kl - exact.mean().item()) < 5 * found.kl_se
    torch.manual_seed(1)
    z = q.sample((200,))
    normal = torch.distributions.Normal(0.0, 1.0)
    information, aggregate = by_loops(x, z, lambda t: normal.log_prob(t).sum(-1))
    assert abs(found.mutual_information - information) < 5 * found.mutual_information_se
    assert abs(found.aggregate_kl - aggregate) < 5 * found.aggregate_kl_se
    assert found.mutual_information < math.log(40)


def test_mutual_information_of_a_gaussian_channel():
    """x ~ N(0, I), z = s x + noise: I = sum_i log(1 + s_i^2 / noise^2) / 2, as N grows."""
    x = data(4000)
    found = diagnostics.elbo_surgery(model, guide, x, num_draws=2)
    expected = 0.5 * (1 + SCALES.square() / NOISE**2).log().sum().item()
    assert found.mutual_information == pytest.approx(expected, abs=0.06)  # sd of x at N = 4,000
    few = diagnostics.elbo_surgery(model, guide, x[:5], num_draws=50).mutual_information
    assert few < math.log(5) < expected + 1  # five data cannot tell it: the control


def test_standard_errors_are_those_of_other_seeds(x):
    found = [diagnostics.elbo_surgery(model, guide, x[:50], seed=s) for s in range(60)]
    for name in ("kl", "mutual_information", "aggregate_kl"):
        spread = torch.tensor([getattr(f, name) for f in found]).std().item()
        stated = torch.tensor([getattr(f, f"{name}_se") for f in found]).mean().item()
        assert 0.7 < spread / stated < 1.4  # 60 seeds: sd of a sd is 9 %


def test_refusals(x):
    vae = build(data_shape=(3,), latent_dim=2)
    for wrong in ({"num_draws": 1}, {"num_draws": 3}):
        with pytest.raises(ValueError, match="num_draws to be an even"):
            diagnostics.active_units(vae.model, vae.guide, x, **wrong)
    for function in (diagnostics.active_units, diagnostics.elbo_surgery):
        with pytest.raises(ValueError, match="at least two data; got 1"):
            function(vae.model, vae.guide, x[:1])
    with pytest.raises(ValueError, match="num_draws to be a whole number >= 2"):
        diagnostics.elbo_surgery(vae.model, vae.guide, x, num_draws=1)

    def two(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("u", dist.Normal(0.0, 1.0))

    def two_model(x):
        two(x)
        with pyro.plate("more", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(D), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="one latent site|plate"):
        diagnostics.elbo_surgery(two_model, two, x.float())
