"""The rate-distortion curve, against a linear Gaussian model where it is closed."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae import build
from pyrovae.diagnostics import rate_distortion, rates

F64 = torch.float64
W, S2 = 1.5, 0.4  # x|z ~ N(W z, S2)
BETAS = [0.5, 0.7, 1.0, 1.5, 2.5]


def data(n=200):
    generator = torch.Generator().manual_seed(1234)
    return math.sqrt(W**2 + S2) * torch.randn(n, dtype=F64, generator=generator)


def optimum(x, beta):
    """q = N(m, v), the minimum of D + beta R for this decoder: q ~ p(z) p(x|z)^(1 / beta)."""
    v = 1 / (1 + W**2 / (beta * S2))
    return v * W * x / (beta * S2), torch.tensor(v, dtype=F64)


def closed(x, beta, factor=1.0):
    """Rate and distortion of each datum, by hand."""
    m, v = optimum(x, beta)
    v = v * factor
    rate = 0.5 * (v + m.square() - 1 - v.log())
    distortion = 0.5 * (math.log(2 * math.pi * S2) + ((x - W * m).square() + W**2 * v) / S2)
    return rate, distortion


def train(beta, factor=1.0):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            pyro.sample("x", dist.Normal(W * z, math.sqrt(S2)), obs=x)

    def guide(x):
        m, v = optimum(x, beta)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(m, (v * factor).sqrt()))

    return model, guide


def test_rate_and_distortion_are_the_closed_ones():
    """400 draws of each of 200 data: each mean within 4.5 standard errors of its draws.

    10 checks, each failing by chance with probability 7e-6.
    """
    x = data()
    found = rate_distortion(train, BETAS, x, num_draws=400)
    assert found.betas.tolist() == BETAS and found.rates.shape == (5, 200)
    for i, beta in enumerate(BETAS):
        rate, distortion = closed(x, beta)
        m, v = optimum(x, beta)
        # z = m + sqrt(v) e: both are quadratics a e + b (e^2 - 1), of variance a^2 + 2 b^2
        noise_r = (v * m.square() + 0.5 * (v - 1) ** 2).mean() / (400 * 200)
        linear = W * v.sqrt() * (x - W * m) / S2
        noise_d = (linear.square() + 0.5 * (W**2 * v / S2) ** 2).mean() / (400 * 200)
        assert abs(found.rate[i] - rate.mean()) < 4.5 * noise_r.sqrt()
        assert abs(found.distortion[i] - distortion.mean()) < 4.5 * noise_d.sqrt()
        other = closed(x, 1.1 * beta)  # another beta's optimum: the control
        assert abs(found.rate[i] - other[0].mean()) > 4.5 * noise_r.sqrt()
        assert found.rate_se[i] == pytest.approx(float(rate.std()) / math.sqrt(200), rel=0.1)
        total = (rate + distortion).std() / math.sqrt(200)
        assert found.elbo_se[i] == pytest.approx(float(total), rel=0.1)
    torch.testing.assert_close(found.elbo, -(found.rate + found.distortion))
    assert found.elbo.argmax() == 2  # the ELBO is beta = 1's own objective


def test_the_slope_is_minus_beta_at_the_optimum():
    x = data()
    found = rate_distortion(train, BETAS, x, num_draws=1000)
    low, high = -torch.tensor(BETAS[1:]), -torch.tensor(BETAS[:-1])
    assert ((found.slope > low) & (found.slope < high)).all()
    exact = [torch.stack([t.mean() for t in closed(x, beta)]) for beta in BETAS]
    for i, (a, b) in enumerate(zip(exact, exact[1:], strict=False)):
        change = b - a
        assert found.slope[i] == pytest.approx(float(change[1] / change[0]), abs=0.05 * BETAS[i])
    # guides that are not the optimum of their beta: the slope leaves the interval
    betas = iter([0.5, 0.7, 1.0, 1.5, 2.5])
    squared = rate_distortion(lambda _: train(next(betas) ** 2), BETAS, x, num_draws=1000)
    assert not ((squared.slope > low) & (squared.slope < high)).all()
    widened = rate_distortion(lambda beta: train(beta, factor=beta), BETAS, x, num_draws=1000).slope
    assert not ((widened > low) & (widened < high)).all()


def test_the_slopes_error_is_that_of_other_data():
    """Data of 100 seeds: sd of a sd is 7 % for normal slopes; of 300 seeds the ratio is 0.99."""
    slopes, errors, control = [], [], []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed + 1000)
        x = 1.6 * torch.randn(100, dtype=F64, generator=generator)
        found = rate_distortion(train, [0.8, 1.6], x, num_draws=50, seed=seed)
        slopes.append(float(found.slope))
        errors.append(float(found.slope_se))
        # of the change in distortion alone, as if the rate's were known
        control.append(float(found.distortions.diff(dim=0).std() / 10 / found.rate.diff().abs()))
    spread = torch.tensor(slopes).std()
    assert 0.75 < spread / torch.tensor(errors).square().mean().sqrt() < 1.3
    assert spread / torch.tensor(control).square().mean().sqrt() < 0.6


def test_draws_are_streamed_and_blocks_differ(monkeypatch):
    seen = []
    original = rates.log_terms

    def spy(*args, num_particles, seed, **options):
        seen.append((num_particles, seed))
        return original(*args, num_particles=num_particles, seed=seed, **options)

    monkeypatch.setattr(rates, "log_terms", spy)
    rate_distortion(train, [1.0], data(5), num_draws=250, seed=3)
    assert [n for n, _ in seen] == [100, 100, 50] and len({s for _, s in seen}) == 3


def test_of_a_vae_and_of_modules():
    vae, x = build(data_shape=(4,), latent_dim=2), torch.ones(3, 4)
    found = rate_distortion(lambda beta: (vae.model, vae.guide), [1.0], x, num_draws=3)
    assert found.slope.shape == (0,) and not found.rates.requires_grad
    dropout = torch.nn.Dropout(0.5)
    modes = []

    def with_modules(beta):
        model, guide = train(beta)

        def ours(x):
            modes.append(dropout.training)
            guide(x)

        return model, ours, dropout

    rate_distortion(with_modules, [1.0, 2.0], data(4), num_draws=2)
    assert modes and not any(modes) and dropout.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"betas": []}, r"betas to be positive numbers, at least one; got \[\]"),
        ({"betas": [1.0, 0.0]}, r"got \[1.0, 0.0\]"),
        ({"betas": [math.nan]}, "betas to be positive"),
        ({"num_draws": 0}, "num_draws to be a whole number >= 1; got 0"),
        ({"x": data(1)}, "at least two data; got 1"),
        ({"train": lambda beta: None}, r"train\(1.0\) to return \(model, guide\).*got NoneType"),
        ({"train": lambda beta: (train(beta)[0],)}, "got tuple: of a VAE return"),
        ({"train": lambda beta: (*train(beta), 3)}, "and after them modules"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    given = {"train": train, "betas": [1.0], "x": data(3)} | arguments
    options = {"num_draws": given["num_draws"]} if "num_draws" in given else {}
    with pytest.raises(ValueError, match=message):
        rate_distortion(given["train"], given["betas"], given["x"], **options)
