"""Annealed importance sampling and bidirectional Monte Carlo, against exact evidence."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from test_importance import linear_gaussian

from pyrovae import build, evidence, pairs
from pyrovae.distributions import seeded
from pyrovae.evidence import annealed
from pyrovae.evidence.annealed import Settings, forward, plan
from pyrovae.evidence.bridge import Bridge

ROWS = slice(0, 5)


def marginal(vae):
    """p(x) of a linear pair, by the formula."""
    w, mu = (p.detach() for p in vae.likelihood.net.parameters())
    return torch.distributions.MultivariateNormal(mu, w @ w.T + 0.4**2 * torch.eye(6).double())


def wide():
    """A linear pair in 3 dimensions with a guide 1.35 times too wide and off its place."""
    vae, _, _ = linear_gaussian()
    vae.posterior.net.bias.data[:3] += 0.03
    vae.posterior.net.bias.data[3:6] += 0.3
    x = vae.sample(5, seed=1234)
    return vae, x, marginal(vae).log_prob(x)


def test_from_the_exact_posterior_it_is_exact():
    vae, x, log_evidence = linear_gaussian()
    found = evidence.ais(vae.model, vae.guide, x, num_temperatures=5, num_chains=4)
    torch.testing.assert_close(found.log_evidence, log_evidence, rtol=0, atol=1e-9)
    both = evidence.bidirectional(vae.model, vae.guide, x, num_temperatures=5, num_chains=4)
    exact = marginal(vae).log_prob(both.x)
    for bound in (both.lower, both.upper, both.log_evidence):
        torch.testing.assert_close(bound, exact, rtol=0, atol=1e-9)
    assert not torch.allclose(both.x, x)  # they are drawn from the model


@pytest.mark.parametrize("start", annealed.STARTS)
@pytest.mark.parametrize("schedule", annealed.SCHEDULES)
def test_the_weights_are_unbiased(start, schedule):
    """E[w] = p(x), within 4.5 standard errors for each datum; 1.8 p(x) is not it for any."""
    vae, x, log_evidence = wide()
    how = Settings(400, 8 if start == "guide" else 150, 4, start, schedule)
    bridge = Bridge(vae.model, vae.guide, x, (), start, ())
    log_w = forward(bridge, plan(bridge, how, 0, ROWS), how, 0, ROWS)
    ratio = (log_w - log_evidence).exp()
    error = ratio.std(0) / 20
    assert bool(((ratio.mean(0) - 1).abs() < 4.5 * error).all())
    assert error.max() < 0.17
    assert bool(((ratio.mean(0) - 1.8).abs() > 4.5 * error).all())


def test_more_temperatures_have_less_error():
    """The variance of log w falls as 1 / T (Neal 2001, section 5): here over T = 60 and 240."""
    vae, x, _ = wide()
    bridge = Bridge(vae.model, vae.guide, x, (), "prior", ())
    spread = []
    for temperatures in (60, 240):
        how = Settings(200, temperatures, 5, "prior", "adaptive")
        spread.append(forward(bridge, plan(bridge, how, 0, ROWS), how, 0, ROWS).var(0).mean())
    assert 2.5 < float(spread[0] / spread[1]) < 6.5


def test_an_adaptive_schedule_beats_a_linear_one():
    """From the prior a linear schedule wastes its steps where nothing changes."""
    vae, x, _ = wide()
    bridge = Bridge(vae.model, vae.guide, x, (), "prior", ())
    spread = {}
    for schedule in ("adaptive", "linear"):
        how = Settings(200, 20, 5, "prior", schedule)
        settled = plan(bridge, how, 0, ROWS)
        assert bool((settled.betas[1:] > settled.betas[:-1]).all())
        assert bool((settled.betas[0] == 0).all()) and bool((settled.betas[-1] == 1).all())
        spread[schedule] = float(forward(bridge, settled, how, 0, ROWS).var(0).mean())
    assert spread["adaptive"] < 0.7 * spread["linear"]


def test_constant_speed_divides_the_integral_evenly():
    """Where sd(b) = 1 + 3 b the length is b + 3 b^2 / 2, of which each step takes as much."""
    betas = torch.linspace(0, 1, 2001, dtype=torch.float64)
    found = annealed._constant_speed(betas, (1 + 3 * betas).unsqueeze(-1), 10)[:, 0]
    length = found + 1.5 * found.square()
    torch.testing.assert_close(length, torch.linspace(0, 2.5, 11).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_a_move_leaves_the_density_as_it_is(beta):
    """Chains that begin at draws of f_b still are draws of it; those of another b are not yet."""
    vae, x, _ = wide()
    x = x[:1]
    bridge = Bridge(vae.model, vae.guide, x, (), "prior", ())
    exact = evidence.exact(vae.model, vae.guide, x)
    # f_b is normal too: its precision lies between that of the prior and of the posterior
    precision = (1 - beta) * torch.eye(3).double() + beta * exact.covariance[0].inverse()
    mean = torch.linalg.solve(precision, beta * exact.covariance[0].inverse() @ exact.mean[0])
    law = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    with seeded(11):
        z = law.sample((4000, 1))
        moved = z
        for _ in range(10):  # small errors of one add up
            step = torch.tensor([0.15]).double()
            moved, accepted = bridge.move(moved, torch.tensor([beta]).double(), step, 5)
    assert 0.3 < float(accepted) <= 1
    assert not torch.allclose(moved, z)
    white = (moved[:, 0] - mean) @ torch.linalg.cholesky(precision)
    assert all(stats.kstest(white[:, i].numpy(), "norm").pvalue > 1e-3 for i in range(3))
    off = (moved[:, 0] - mean - 0.1) @ torch.linalg.cholesky(precision)
    assert min(stats.kstest(off[:, i].numpy(), "norm").pvalue for i in range(3)) < 1e-3


def simulated(vae, n, **options):
    found = evidence.bidirectional(vae.model, vae.guide, torch.zeros(n, 6).double(), **options)
    return found, marginal(vae).log_prob(found.x)


def test_the_bounds_lie_on_either_side():
    """On average within 3.5 standard errors, and per datum within 4.5 for all 40 of them."""
    vae, _, _ = wide()
    found, exact = simulated(vae, 40, num_chains=64, num_temperatures=20, num_leapfrog=10)
    below, above = exact - found.lower, found.upper - exact
    error = math.sqrt(40)
    assert float(below.mean()) > -3.5 * float(below.std()) / error
    assert float(above.mean()) > -3.5 * float(above.std()) / error
    assert bool((below > -4.5 * found.lower_se).all())
    assert bool((above > -4.5 * found.upper_se).all())
    torch.testing.assert_close(found.gap, below + above)
    assert float(found.gap.mean()) > 0
    coarse, exact = simulated(vae, 40, num_chains=64, num_temperatures=10, start="prior")
    above = coarse.upper - exact
    assert float(above.mean()) > 3.5 * float(above.std()) / error
    # negative control: the bounds exchanged are none
    assert not bool((-above > -4.5 * coarse.upper_se).all())


def test_a_wrong_posterior_draw_is_no_upper_bound():
    """Negative control: run back from far away in place of draws of p(z|x)."""
    vae, x, log_evidence = wide()
    how = Settings(64, 8, 4, "guide", "adaptive")
    bridge = Bridge(vae.model, vae.guide, x, (), "guide", ())
    settled = plan(bridge, how, 0, ROWS)
    exact = evidence.exact(vae.model, vae.guide, x)
    good = (
        exact.mean
        + torch.randn(5, 3, dtype=torch.float64) @ exact.covariance[0].sqrt().diag().diag()
    )
    upper = [
        -annealed.as_evidence(-annealed.backward(bridge, settled, how, 0, ROWS, z)).log_evidence
        for z in (good, good + 30.0)
    ]
    assert float((upper[0] - log_evidence).abs().max()) < 1
    assert float((upper[1] - log_evidence).abs().max()) > 1


def beta_binomial(support):
    """Conjugate pairs off the line: p(x) is known."""

    def model(x):
        with pyro.plate("data", len(x)):
            if support == "unit interval":
                p = pyro.sample("p", dist.Beta(torch.tensor(2.0).double(), 3.0))
                pyro.sample("x", dist.Binomial(10, p), obs=x)
            else:
                p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0]).double()))
                pyro.sample("x", dist.Multinomial(10, p, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            if support == "unit interval":
                pyro.sample("p", dist.Beta(1 + x, 11 - x))
            else:
                pyro.sample("p", dist.Dirichlet(1 + x))

    if support == "unit interval":
        x = torch.tensor([0.0, 3.0, 10.0]).double()
        return model, guide, x, stats.betabinom(10, 2, 3).logpmf(x.numpy())
    x = torch.tensor([[1.0, 4.0, 5.0], [0.0, 0.0, 10.0]]).double()
    return (
        model,
        guide,
        x,
        [stats.dirichlet_multinomial([1, 2, 3], 10).logpmf(r) for r in x.numpy()],
    )


@pytest.mark.parametrize("support", ["unit interval", "simplex"])
@pytest.mark.parametrize("start", annealed.STARTS)
def test_latents_off_the_line_are_mapped_to_it(support, start):
    model, guide, x, exact = beta_binomial(support)
    found = evidence.ais(model, guide, x, num_chains=200, num_temperatures=20, start=start)
    off = (found.log_evidence - torch.tensor(exact)).abs()
    assert bool((off < 4.5 * found.standard_error).all())
    assert found.standard_error.max() < 0.1
    assert found.khat is not None


def test_several_latent_sites_and_a_subsampling_plate():
    """log p(x) = log N(x; 0, 1 + 1 + s^2), by a chain of two latents."""

    def model(x):
        with pyro.plate("data", 1000, subsample_size=len(x)):
            first = pyro.sample("first", dist.Normal(torch.zeros(()).double(), 1.0))
            second = pyro.sample("second", dist.Normal(first, 1.0))
            pyro.sample("x", dist.Normal(second, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", 1000, subsample_size=len(x)):
            second = pyro.sample("second", dist.Normal(0.8 * x, 0.6))
            pyro.sample("first", dist.Normal(0.5 * second, 0.8))

    x = torch.tensor([-1.0, 0.5, 2.0]).double()
    exact = torch.distributions.Normal(0.0, math.sqrt(2.25)).log_prob(x)
    for start in annealed.STARTS:
        found = evidence.ais(model, guide, x, num_chains=100, num_temperatures=20, start=start)
        assert bool(((found.log_evidence - exact).abs() < 4.5 * found.standard_error).all())
        assert found.standard_error.max() < 0.1


def test_ppca_in_ten_dimensions():
    """A guide of half the width: importance samples fall short, annealing does not."""
    generator = torch.Generator().manual_seed(5)
    x = (
        torch.randn(300, 12, generator=generator).double()
        @ torch.randn(12, 12, generator=generator).double()
    )
    vae = pairs.ppca(x, 10)
    exact = evidence.exact(vae.model, vae.guide, x[:4]).log_evidence

    def narrow(x):
        with pyro.plate("data", len(x)):
            q = vae.encode(x)
            pyro.sample("z", dist.MultivariateNormal(q.mean, scale_tril=0.5 * q.scale_tril))

    modules = [vae]
    plain = evidence.iwae(vae.model, narrow, x[:4], num_particles=1000, modules=modules)
    found = evidence.ais(
        vae.model, narrow, x[:4], num_chains=32, num_temperatures=60, modules=modules
    )
    assert float((plain.log_evidence - exact).mean()) < -0.5
    assert float((found.log_evidence - exact).mean().abs()) < 0.15


def test_it_is_repeatable_and_kept(tmp_path, capsys, monkeypatch):
    vae, x, _ = wide()
    monkeypatch.setattr(annealed, "ROWS", 8)
    options = {"num_chains": 4, "num_temperatures": 4, "num_leapfrog": 2}
    state = torch.random.get_rng_state()
    one = evidence.ais(vae.model, vae.guide, x, **options)
    assert torch.equal(torch.random.get_rng_state(), state)
    path = tmp_path / "ais.safetensors"
    two = evidence.ais(vae.model, vae.guide, x, resume=path, progress=True, **options)
    again = evidence.ais(vae.model, vae.guide, x, resume=path, **options)
    assert torch.equal(one.log_evidence, two.log_evidence)
    assert torch.equal(two.log_evidence, again.log_evidence)
    assert (
        "5 data x 4 chains x 4 temperatures x 2 leapfrog steps = 1.6e+02" in capsys.readouterr().err
    )
    other = evidence.ais(vae.model, vae.guide, x, seed=1, **options)
    assert not torch.equal(one.log_evidence, other.log_evidence)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_chains": 0}, "num_chains to be a positive whole number; got 0"),
        ({"num_leapfrog": 1.5}, "num_leapfrog to be a positive whole number; got 1.5"),
        ({"start": "posterior"}, "start to be one of guide, prior; got 'posterior'"),
        ({"schedule": "cosine"}, "schedule to be one of adaptive, sigmoid, linear; got 'cosine'"),
    ],
)
def test_bad_requests_are_refused(options, message):
    vae, x, _ = wide()
    for function in (evidence.ais, evidence.bidirectional):
        with pytest.raises(ValueError, match=message):
            function(vae.model, vae.guide, x, **options)


def test_latents_that_cannot_move_are_refused():
    discrete = build(data_shape=(4,), latent_dim=2, prior="categorical", posterior="categorical")
    with pytest.raises(ValueError, match="continuous latent that can be mapped .*enumeration"):
        evidence.ais(discrete.model, discrete.guide, torch.ones(1, 4))
    sphere = build(
        data_shape=(4,), latent_dim=3, prior="von-mises-fisher", posterior="von-mises-fisher"
    )
    with pytest.raises(ValueError, match="'z': expected a continuous latent that can be mapped"):
        evidence.ais(sphere.model, sphere.guide, torch.ones(1, 4))


def test_a_model_that_observes_more_than_x_cannot_be_simulated():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match=r"it observes \['y', 'x'\]"):
        evidence.bidirectional(model, guide, torch.zeros(2), torch.zeros(2))
