"""The von Mises-Fisher distribution and its parts, against Bessel functions and closed forms."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from pyro import distributions as dist
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyrovae import VAE, evidence, likelihoods, nets, posteriors, priors, testing
from pyrovae.distributions import VonMisesFisher, seeded, sphere
from pyrovae.optimise import adam

NET = nets.mlp(hidden=(7,), activation="tanh")
DIMS = (2, 3, 4, 7, 10, 50, 200)
KAPPAS = (0.0, 1e-6, 0.1, 1.0, 5.0, 10.0, 30.0, 45.0, 100.0, 1e3, 1e4, 1e5)


def axis(d, dtype=torch.float64):
    return torch.eye(d, dtype=dtype)[0]


def vmf(d, k, dtype=torch.float64):
    return VonMisesFisher(axis(d, dtype), torch.as_tensor(k, dtype=dtype))


def log_bessel(v, k):
    """log(I_v(k) / k^v): scipy's where it does not underflow, else the power series."""
    scaled = scipy.special.ive(v, k)
    if k and scaled > 1e-290:
        return np.log(scaled) + k - v * np.log(k)
    j = np.arange(2000 + 2 * int(k))
    log = scipy.special.gammaln
    terms = 2 * j * np.log(k / 2 + 1e-300) - log(j + 1) - log(v + j + 1)
    return scipy.special.logsumexp(terms) - v * np.log(2)


def log_normaliser(d, k):
    return (d / 2) * math.log(2 * math.pi) + log_bessel(d / 2 - 1, k)


def resultant(d, k):
    """A(k) = I_{d/2}(k) / I_{d/2-1}(k)."""
    return k * math.exp(log_bessel(d / 2, k) - log_bessel(d / 2 - 1, k))


@pytest.mark.parametrize("d", DIMS)
def test_normaliser_is_bessels(d):
    for k in KAPPAS:
        off_pole = -vmf(d, k).log_prob(axis(d)).item() + k
        assert abs(off_pole - log_normaliser(d, k)) < 1e-10 * max(1, k / 100), k


def test_the_series_and_scipy_agree():
    """The two references, where both hold; and what neither is."""
    assert scipy.special.ive(99, 1.0) > 0 == scipy.special.ive(249, 1e-6)
    series = -math.lgamma(100) - 99 * math.log(2) + 0.25 / 100 + math.log1p(-(0.25**2) / 2.02e6)
    assert abs(log_bessel(99, 1.0) - series) < 1e-5
    assert abs(log_normaliser(3, 5.0) - log_normaliser(3, 5.001)) > 1e-6


@pytest.mark.parametrize("d", DIMS)
def test_derivatives_are_bessels(d):
    for k in KAPPAS[1:]:
        kappa = torch.tensor(k, dtype=torch.float64, requires_grad=True)
        log_p = VonMisesFisher(axis(d), kappa).log_prob(axis(d))  # k + log C(k)
        (first,) = torch.autograd.grad(log_p, kappa, create_graph=True)
        a = resultant(d, k)
        np.testing.assert_allclose(first.item(), 1 - a, rtol=1e-5, atol=1e-12)
        (second,) = torch.autograd.grad(first, kappa)
        np.testing.assert_allclose(second.item(), a**2 - 1 + a * (d - 1) / k, rtol=1e-4, atol=1e-9)


def test_three_dimensions_in_closed_form():
    for k in (0.5, 3.0, 40.0):
        log_c = math.log(k / (4 * math.pi * math.sinh(k)))
        q, z = vmf(3, k), torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
        assert abs(q.log_prob(z).item() - (0.6 * k + log_c)) < 1e-12
        kl = k / math.tanh(k) - 1 - math.log(math.sinh(k) / k)
        assert abs(kl_divergence(q, vmf(3, 0.0)).item() - kl) < 1e-12


def test_zero_concentration_is_uniform():
    for d in DIMS:
        z = torch.nn.functional.normalize(torch.randn(4, d, dtype=torch.float64), dim=-1)
        area = 2 * math.pi ** (d / 2) / math.gamma(d / 2)
        for k, tolerance in ((0.0, 1e-11), (1e-9, 1e-8)):
            q = vmf(d, k)
            np.testing.assert_allclose(q.log_prob(z), -math.log(area), atol=tolerance, rtol=1e-13)
            assert abs(kl_divergence(q, vmf(d, 0.0)).item()) < 1e-11
        np.testing.assert_allclose(vmf(d, 0.0).variance, 1 / d, rtol=1e-12)


# Draws.


def angle_law(d, k):
    """The distribution function of m'z."""
    w = np.cos(np.linspace(np.pi, 0, 20_001))
    t = np.linspace(np.pi, 0, 20_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_f = k * (w - 1) + scipy.special.xlogy(d - 2, np.sin(t).clip(0))
    f = np.exp(log_f - log_f.max())
    total = scipy.integrate.cumulative_trapezoid(f, -t, initial=0)
    return lambda x: np.interp(x, w, total / total[-1])


@pytest.mark.parametrize("d", [2, 3, 10])
@pytest.mark.parametrize("k", [0.0, 0.7, 6.0, 200.0])
def test_draws(d, k):
    n = 5000
    loc = torch.nn.functional.normalize(torch.arange(1.0, d + 1).double(), dim=-1)
    q = VonMisesFisher(loc, torch.tensor(k, dtype=torch.float64))
    with seeded(1):
        z = q.sample((n,))
    assert bool(q.support.check(z).all())
    w = z @ loc
    assert scipy.stats.kstest(w, angle_law(d, k)).pvalue > 1e-4
    assert scipy.stats.kstest(w, angle_law(d, 1.3 * k + 0.3)).pvalue < 1e-4  # negative control
    v = torch.nn.functional.normalize(z - w[:, None] * loc, dim=-1)
    across = torch.eye(d, dtype=torch.float64) - loc[:, None] * loc
    covariance = v.T @ v / n
    assert (covariance - across / (d - 1)).abs().max() < 5 / math.sqrt(n)
    error = 5 / math.sqrt(n)
    assert ((z.mean(0) - q.mean).abs() <= error * q.stddev).all()
    deviation = (z - q.mean).square()
    assert ((deviation.mean(0) - q.variance).abs() <= error * deviation.std(0)).all()
    log_p = q.log_prob(z)
    assert abs(log_p.mean() + q.entropy()) <= error * log_p.std() + 1e-10


def test_slopes_in_closed_form():
    """In R^3, F(w) = (e^{kw} - e^-k) / (e^k - e^-k); at k = 0, dw/dk = (1 - w^2) / 2."""
    t = torch.linspace(0.05, 3.1, 30, dtype=torch.float64)
    w = t.cos()
    for k in (0.0, 0.2, 2.0, 9.0):
        kappa = torch.tensor(k, dtype=torch.float64)
        q = vmf(3, k)
        got = -t.sin() * sphere._slope(t, kappa.expand(30), q._moments[1], 3)
        if k == 0:
            expected = (1 - w**2) / 2
        else:
            f = 2 * math.sinh(k)
            big = (k * w).exp() - math.exp(-k)
            by_k = (w * (k * w).exp() + math.exp(-k)) / f - big * 2 * math.cosh(k) / f**2
            expected = -by_k * f / (k * (k * w).exp())
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-12)


class NoImplicitGradient(VonMisesFisher):
    """A draw whose angle does not follow the concentration: the broken twin of controls."""

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        return VonMisesFisher(self.loc, self.concentration.detach()).rsample(sample_shape)


@pytest.mark.parametrize("d", [2, 3, 10])
@pytest.mark.parametrize("k", [0.0, 2.0, 30.0])
def test_gradients_of_an_expectation(d, k):
    """E[exp(a'z)] = Z(|k m + a|) / Z(k), by k and by a direction of which m is the unit vector."""
    a = torch.linspace(-1.0, 1.5, d, dtype=torch.float64)
    u = torch.linspace(1.0, -0.5, d, dtype=torch.float64)
    m = u / u.norm()
    total = k * m + a
    r = float(total.norm())
    value = math.exp(log_normaliser(d, r) - log_normaliser(d, k))
    by_m = value * resultant(d, r) / r * k * a
    expected = torch.cat(
        [
            (value * (resultant(d, r) / r * (total @ m) - resultant(d, k))).reshape(1),
            (by_m - (by_m @ m) * m) / u.norm(),
        ]
    )

    found = []
    with seeded(0):
        for _ in range(40):
            kappa = torch.tensor(k, dtype=torch.float64, requires_grad=True)
            direction = u.clone().requires_grad_()
            q = VonMisesFisher(direction / direction.norm(), kappa)
            g = (q.rsample((1000,)) @ a).exp().mean()
            by = torch.autograd.grad(g, (kappa, direction))
            found.append(torch.cat([t.reshape(-1) for t in by]))
    got, error = torch.stack(found).mean(0), torch.stack(found).std(0) / math.sqrt(len(found))
    assert ((got - expected).abs() <= 5 * error + 1e-12).all()
    assert abs(expected[0]) > 5 * error[0]  # so a draw that forgets k would not pass


@pytest.mark.parametrize("d", [2, 3, 40])
def test_float32(d):
    """Values as in float64, and finite gradients, at any concentration."""
    k64 = torch.tensor([0.0, 1e-6, 1.0, 50.0, 1e3, 1e5, 1e7], dtype=torch.float64)
    loc = torch.nn.functional.normalize(torch.linspace(-1, 2, d), dim=-1).expand(len(k64), d)
    kappa = k64.float().requires_grad_()
    loc = loc.clone().requires_grad_()
    q = VonMisesFisher(loc, kappa)
    z = q.rsample((50,))
    assert z.dtype == torch.float32
    assert bool(q.support.check(z).all())
    double = VonMisesFisher(torch.nn.functional.normalize(loc.detach().double(), dim=-1), k64)
    z64 = torch.nn.functional.normalize(z.detach().double(), dim=-1)
    expected = double.log_prob(z64)
    error = (q.log_prob(z).detach().double() - expected).abs() / (1 + expected.abs())
    assert error.max() < 2e-4
    naive = kappa.detach() * (z.detach() * loc.detach()).sum(-1) - kappa.detach()
    assert (naive.double() + 0.5 * k64 * (z64 - double.loc).square().sum(-1)).abs().max() > 0.1
    (q.log_prob(z).sum() + z.sum() + kl_divergence(q, vmf(d, 0.0, torch.float32)).sum()).backward()
    assert bool(kappa.grad.isfinite().all())
    assert bool(loc.grad.isfinite().all())


# The KL.


@pytest.mark.parametrize("d", [2, 3, 20])
def test_kl_is_its_monte_carlo_estimate(d):
    p = VonMisesFisher(
        torch.nn.functional.normalize(torch.ones(d, dtype=torch.float64), dim=-1),
        torch.tensor([0.0, 1.0, 20.0], dtype=torch.float64),
    )
    for other in (0.0, 5.0):
        q = vmf(d, other)
        with seeded(3):
            z = p.sample((20_000,))
        terms = p.log_prob(z) - q.log_prob(z)
        kl = kl_divergence(p, q)
        assert kl.shape == (3,)
        assert ((terms.mean(0) - kl).abs() <= 4.5 * terms.std(0) / math.sqrt(len(z)) + 1e-10).all()
    reverse = kl_divergence(vmf(d, 5.0), p)  # negative control: the KL is not symmetric
    assert (reverse - kl).abs().max() > 0.1


def test_kl_to_the_uniform_is_that_of_davidson():
    """Eq. 13: k A(k) + log C(k) + log of the sphere's area."""
    for d in (2, 5, 50):
        for k in (0.5, 10.0, 2000.0):
            area = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
            expected = k * resultant(d, k) - log_normaliser(d, k) + area
            assert abs(kl_divergence(vmf(d, k), vmf(d, 0.0)).item() / expected - 1) < 1e-9


def test_kl_of_expanded_distributions_is_found():
    prior = priors.VonMisesFisher(3)()
    q = VonMisesFisher(axis(3, torch.float32).expand(4, 3), torch.ones(4))
    expanded = prior.expand((4,))
    assert type(expanded) is VonMisesFisher
    torch.testing.assert_close(kl_divergence(q, expanded), kl_divergence(q, prior).expand(4))
    assert expanded.sample((2,)).shape == (2, 4, 3)
    assert expanded.mean.shape == expanded.variance.shape == (4, 3)


# The parts.


def pair(prior=None, posterior=posteriors.VonMisesFisher, d=3, n=4):
    prior = priors.VonMisesFisher(d) if prior is None else prior
    return VAE(prior, likelihoods.Bernoulli(d, (n,), NET), posterior((n,), d, NET))


X = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 1.0]])


@pytest.mark.parametrize("d", [2, 3, 6])
@pytest.mark.parametrize("learnt", [False, True])
def test_the_pair_is_right(d, learnt):
    vae = pair(priors.VonMisesFisher(d, learnt), d=d)
    report = testing.check_pair(vae.model, vae.guide, X)
    assert report.ok, str(report)
    assert not [row for row in report.rows if row.name == "closed KL"]


def test_a_pair_without_the_implicit_gradient_is_caught():
    class Broken(posteriors.VonMisesFisher):
        def distribution(self, params):
            q = super().distribution(params)
            return NoImplicitGradient(q.loc, q.concentration)

    vae = pair(posterior=Broken)
    report = testing.check_pair(vae.model, vae.guide, X)
    assert [f.cause for f in report.failures] == ["TraceMeanField_ELBO"], str(report)


def test_training():
    """Two patterns, equally likely: -ELBO is at least log 2, and 11 nats without a latent."""
    x = torch.eye(2).repeat_interleave(8, 1).repeat(10, 1)
    vae, elbo, losses = pair(n=16), TraceMeanField_ELBO(), []
    with seeded(0):
        optim = adam(list(vae.parameters()), lr=0.05)
        for _ in range(150):
            optim.zero_grad()
            loss = elbo.differentiable_loss(vae.model, vae.guide, x) / len(x)
            loss.backward()
            optim.step()
            losses.append(loss.item())
    assert losses[0] > 10
    assert math.log(2) < np.mean(losses[-30:]) < 5


def test_other_spaces_are_refused():
    with pytest.raises(ValueError, match="VonMisesFisher over 'the unit sphere' and MeanFieldNorm"):
        pair(posterior=posteriors.MeanFieldNormal)
    with pytest.raises(ValueError, match="one space of z"):
        pair(prior=priors.StandardNormal(3))


def test_lattices_refuse_the_sphere():
    vae = pair()
    with pytest.raises(ValueError, match="site 'z': expected a latent on the whole line.*Sphere"):
        evidence.exact(vae.model, vae.guide, X)
    assert bool(evidence.iwae(vae.model, vae.guide, X).log_evidence.isfinite().all())


@pytest.mark.parametrize(
    ("direction", "raw"),
    [([0, 0, 0], 0), ([0, 0, 0], -1e4), ([1e30, -1e30, 0], 1e6), ([1e-40, 0, 1e-40], 50)],
)
def test_any_output_of_the_network_will_do(direction, raw):
    params = torch.tensor([*direction, raw], dtype=torch.float32, requires_grad=True)
    q = sphere.von_mises_fisher(params[:3], params[3])
    kl = kl_divergence(q, vmf(3, 0.0, torch.float32))
    z = q.rsample((9,))
    (q.log_prob(z).sum() + kl + z.sum()).backward()
    assert bool(params.grad.isfinite().all())
    assert bool(kl >= -1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vmf(1, 1.0), "at least 2 dimensions; got 1: for two points"),
        (lambda: priors.VonMisesFisher(1), "at least 2 dimensions; got 1"),
        (lambda: posteriors.VonMisesFisher((4,), 1), "at least 2 dimensions; got 1"),
        (lambda: vmf(3, -1.0), "concentration"),
        (lambda: vmf(3, math.nan), "concentration"),
        (lambda: VonMisesFisher(torch.ones(3), torch.ones(())), "loc"),
        (lambda: vmf(3, 1.0).log_prob(torch.ones(3).double()), "within the support"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nan_ends_the_rejection():
    """With validation off: no endless loop."""
    q = VonMisesFisher(axis(3), torch.tensor(math.nan, dtype=torch.float64), validate_args=False)
    assert bool(q.sample((3,)).isnan().all())
    assert isinstance(q, dist.TorchDistribution)
