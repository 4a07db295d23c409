"""The KLs against full covariances, scipy and each other; the fits against exact solutions."""

import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from scipy import integrate, stats
from torch import nn

from pyrovae.distributions import MixtureOfNormals, diagonal_normal, seeded
from pyrovae.divergences import (
    NormalFamily,
    closed,
    fit_forward,
    fit_reverse,
    forward,
    monte_carlo,
    quadrature,
    reverse,
)

F64 = torch.float64
ESTIMATORS = ("plain", "positive")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small tensors: on a busy machine a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def f64(values):
    return torch.tensor(values, dtype=F64)


def normal(loc, scale):
    return dist.Normal(f64(loc), f64(scale))


# Closed forms


def low_rank(loc, factor, diag):
    return dist.LowRankMultivariateNormal(loc, factor, diag.exp())


def full_rank(loc, factor, diag):
    return dist.MultivariateNormal(loc, factor @ factor.mT + torch.diag_embed(diag.exp()))


def diagonal(loc, log_scale):
    return diagonal_normal(loc, log_scale.exp())


def diagonal_in_full(loc, log_scale):
    return dist.MultivariateNormal(loc, scale_tril=torch.diag_embed(log_scale.exp()))


def parameters(batch, other):
    """Of a low-rank normal over R^4 of that batch shape, and of a diagonal one of the other."""
    shapes = [(*batch, 4), (*batch, 4, 2), (*batch, 4), (*other, 4), (*other, 4)]
    with seeded(3):
        return [(0.7 * torch.randn(shape, dtype=F64)).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("batch, other", [((5,), ()), ((), (5,)), ((5,), (5,)), ((2, 1), (3,))])
@pytest.mark.parametrize("make", [low_rank, full_rank])
@pytest.mark.parametrize("swap", [False, True])
def test_closed_is_torchs_kl_of_full_covariances(make, batch, other, swap):
    results = []
    for correlated, independent in ((make, diagonal), (full_rank, diagonal_in_full)):
        inputs = parameters(batch, other)
        pair = correlated(*inputs[:3]), independent(*inputs[3:])
        kl = closed(*(reversed(pair) if swap else pair))
        kl.square().sum().backward()
        results.append([kl.detach(), *(t.grad for t in inputs)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    other_way = closed(*(pair if swap else reversed(pair)))
    assert not torch.allclose(other_way, results[0][0], rtol=0.01)  # negative control


def test_closed_says_where_there_is_none():
    p = bimodal()
    q = diagonal_normal(f64([0.0]), f64([1.0]))
    for pair in ((p, q), (q, p), (p, p)):
        with pytest.raises(ValueError, match="a mixture never has.*quadrature.*monte_carlo"):
            closed(*pair)
    laplace = dist.Laplace(torch.zeros(4, dtype=F64), f64(1.0)).to_event(1)
    low = low_rank(*parameters((), ())[:3])
    for pair in ((laplace, low), (low, laplace)):
        with pytest.raises(ValueError, match="closed form"):
            closed(*pair)


@pytest.mark.parametrize("way", [closed, monte_carlo, quadrature, forward, reverse])
def test_shapes_that_do_not_fit_are_refused(way):
    with pytest.raises(ValueError, match=r"one event_shape.*shape \(2,\).*declare.*to_event"):
        way(diagonal_normal(torch.zeros(2), torch.ones(2)), dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="broadcast"):
        way(dist.Normal(torch.zeros(2), 1.0), dist.Normal(torch.zeros(3), 1.0))


# Quadrature


def bimodal(dim=1):
    """A mixture along the first axis alone: in 2-d, the product of one with a normal."""
    loc, scale = f64([[-2.0], [2.5]]), f64([[0.3], [0.9]])
    if dim == 2:
        loc = torch.cat([loc, f64([[1.0], [1.0]])], -1)
        scale = torch.cat([scale, f64([[0.5], [0.5]])], -1)
    return MixtureOfNormals(loc, scale, f64([0.6, 0.4]).log())


SMOOTH = [
    (normal(1.0, 0.3), normal(-2.0, 2.0)),
    (normal([1.0], [0.3]).to_event(1), normal([-2.0], [2.0]).to_event(1)),
    (normal([1.0, 5.0], [0.3, 4.0]).to_event(1), normal([0.0, 1.0], [1.0, 5.0]).to_event(1)),
    (
        dist.MultivariateNormal(f64([1.0, 2.0]), f64([[1.0, 0.95], [0.95, 1.0]])),
        dist.MultivariateNormal(f64([0.0, 1.0]), f64([[1.0, -0.5], [-0.5, 2.0]])),
    ),
]


@pytest.mark.parametrize("p, q", SMOOTH)
def test_quadrature_is_the_closed_form(p, q):
    for a, b in ((p, q), (q, p)):
        got = quadrature(a, b)
        assert abs(got.value - closed(a, b)) < 1e-8
        assert got.error < 1e-8
        assert abs(got.value - closed(b, a)) > 0.1  # negative control: the other way round


def test_quadrature_converges_exponentially_and_bounds_its_error():
    p, q = SMOOTH[0]
    errors = []
    for points in (26, 36, 51, 71):
        got = quadrature(p, q, points=points)
        errors.append(float((got.value - closed(p, q)).abs()))
        assert errors[-1] <= got.error
    # of any power of the step, halving the step would gain a fixed factor; this is squared
    assert errors[2] < errors[0] ** 1.7 and errors[3] < errors[1] ** 1.7


@pytest.mark.parametrize(
    "p, q",
    [
        (dist.Laplace(f64(1.0), f64(0.3)), dist.Laplace(f64(0.0), f64(1.0))),
        (dist.Exponential(f64(1.0)), dist.Exponential(f64(2.0))),
        (dist.Beta(f64(3.0), f64(2.0)), dist.Beta(f64(2.0), f64(2.0))),
        (dist.Uniform(f64(3.0), f64(4.0)), dist.Uniform(f64(2.0), f64(5.0))),
    ],
)
def test_quadrature_owns_to_its_error_where_densities_have_corners(p, q):
    got = quadrature(p, q)
    assert abs(got.value - closed(p, q)) <= got.error < 0.01


def test_quadrature_of_mixtures_is_scipys():
    p = bimodal()
    q = diagonal_normal(f64([0.5]), f64([2.0]))
    expected = {}
    for name, (a, b) in {"forward": (p, q), "reverse": (q, p)}.items():

        def integrand(x, a=a, b=b):
            x = f64([x])
            return float(a.log_prob(x).exp() * (a.log_prob(x) - b.log_prob(x)))

        expected[name], _ = integrate.quad(
            integrand, -25, 25, points=[-2, 0, 2.5], limit=200, epsabs=1e-9
        )
    assert abs(forward(p, q) - expected["forward"]) < 1e-8
    assert abs(reverse(p, q) - expected["reverse"]) < 1e-8
    assert abs(expected["forward"] - expected["reverse"]) > 0.1
    # in 2-d: the KL of a product of independent densities is the sum
    q2 = diagonal_normal(f64([0.5, 0.0]), f64([2.0, 1.0]))
    second = closed(normal(1.0, 0.5), normal(0.0, 1.0))
    assert abs(forward(bimodal(2), q2) - expected["forward"] - second) < 1e-8


def test_quadrature_refuses_what_it_cannot_do():
    wide = normal([0.0] * 3, [1.0] * 3).to_event(1)
    for p in (normal([0.0], [1.0]), wide):
        with pytest.raises(ValueError, match=r"event_shape \(\), \(1,\) or \(2,\).*monte_carlo"):
            quadrature(p, p)
    for p in (dist.Poisson(f64(3.0)), dist.Cauchy(f64(0.0), f64(1.0))):
        with pytest.raises(ValueError, match="continuous p with finite mean.*monte_carlo"):
            quadrature(p, p)
    needles = MixtureOfNormals(f64([[-1.0], [1.0]]), f64([[1e-5], [1e-5]]), f64([0.0, 0.0]))
    with pytest.raises(ValueError, match="expected p's mass on a grid of 4001.*more points"):
        quadrature(needles, needles)
    with pytest.raises(ValueError, match="points to be a whole number, at least 5; got 2"):
        quadrature(*SMOOTH[0], points=2)


def test_mass_that_q_excludes_is_infinitely_dear():
    p, q = normal(1.0, 1.0), dist.Exponential(f64(1.0))
    assert quadrature(p, q).value == math.inf and quadrature(p, q).error == 0
    assert monte_carlo(p, q).value == math.inf and monte_carlo(p, q).standard_error == 0
    got = quadrature(q, p)  # the other way round: -H(q) - E_q[log p], and E_q[(x - 1)^2] = 1
    expected = -1 + 0.5 * math.log(2 * math.pi) + 0.5
    assert abs(got.value - expected) <= got.error < 0.01


# Monte Carlo


def near():
    """Two batches of normals near each other, of batch shapes (3,) and (2, 1)."""
    p = normal([[0.0, 1.0], [0.3, 0.0], [1.0, 1.0]], [[1.0, 1.0], [0.9, 1.2], [1.3, 0.8]])
    q = normal([[[0.1, 0.8]], [[0.5, 0.4]]], [[[0.9, 1.0]], [[1.0, 0.9]]])
    return p.to_event(1), q.to_event(1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("num_samples", [3, 20_000])
def test_monte_carlo_is_the_closed_form_within_its_error(estimator, num_samples):
    p, q = near()
    got = monte_carlo(p, q, num_samples=num_samples, seed=1, estimator=estimator)
    assert got.value.shape == got.standard_error.shape == (2, 3)
    if num_samples > 3:  # where it is 3, the draws could be mistaken for p's batch
        z = (got.value - closed(p, q)) / got.standard_error
        assert z.abs().max() < 4.5  # p < 1e-5 each
        z = (got.value - closed(q, p)) / got.standard_error
        assert z.abs().max() > 10  # negative control: the other way round


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_standard_error_is_the_spread_over_seeds(estimator):
    p, q = normal(0.0, 1.0), normal(0.4, 0.9)
    runs = [monte_carlo(p, q, num_samples=500, seed=s, estimator=estimator) for s in range(300)]
    values = torch.stack([r.value for r in runs])
    stated = torch.stack([r.standard_error for r in runs]).square().mean().sqrt()
    low, high = stats.chi2(299).ppf([5e-4, 1 - 5e-4])
    assert low < 299 * (values.std() / stated) ** 2 < high
    # unbiased: the mean of all is within 4.5 of its own errors
    assert abs(values.mean() - closed(p, q)) < 4.5 * stated / 300**0.5
    # negative control: the spread of the draws themselves
    assert not low < 299 * (values.std() / (stated * 500**0.5)) ** 2 < high


def test_positive_is_never_negative_and_varies_less():
    p, q = normal([0.0] * 20_000, 1.0), normal(0.1, 1.0)
    pairs_of_draws = {e: monte_carlo(p, q, num_samples=2, estimator=e) for e in ESTIMATORS}
    assert bool((pairs_of_draws["positive"].value >= 0).all())
    assert bool((pairs_of_draws["plain"].value < 0).any())  # negative control
    assert pairs_of_draws["positive"].value.std() < 0.2 * pairs_of_draws["plain"].value.std()
    assert monte_carlo(q, q, estimator="positive").value == 0  # and not merely close to it


class Mislaid(dist.Normal):
    """A normal whose density is off by a constant factor."""

    def log_prob(self, value):
        return super().log_prob(value) + 0.05


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_wrong_constant_shows(estimator):
    p, q = normal(0.0, 1.0), Mislaid(f64(0.1), f64(1.0))
    got = monte_carlo(p, q, num_samples=100_000, estimator=estimator)
    exact = closed(p, normal(0.1, 1.0))
    wrong = {"plain": -0.05, "positive": math.expm1(0.05) - 0.05}[estimator]  # of log r + 0.05
    assert abs(got.value - exact - wrong) < 4.5 * got.standard_error
    assert abs(got.value - exact) > 4.5 * got.standard_error


def test_monte_carlo_is_seeded_and_checks_its_arguments():
    p, q = SMOOTH[0]
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = monte_carlo(p, q, seed=4).value
    assert torch.equal(torch.rand(2), expected)
    assert first == monte_carlo(p, q, seed=4).value != monte_carlo(p, q, seed=5).value
    with pytest.raises(ValueError, match="num_samples to be a whole number, at least 2; got 1"):
        monte_carlo(p, q, num_samples=1)
    with pytest.raises(ValueError, match="'plain' or 'positive'; got 'k3'"):
        monte_carlo(p, q, estimator="k3")


# The two directions


def test_forward_and_reverse_take_the_first_way_there_is():
    p, q = SMOOTH[0]
    assert forward(p, q) == closed(p, q) and reverse(p, q) == closed(q, p)
    assert forward(p, q) != reverse(p, q)
    mixture, normal_1d = bimodal(), normal([0.5], [2.0]).to_event(1)
    assert forward(mixture, normal_1d) == quadrature(mixture, normal_1d).value
    assert reverse(mixture, normal_1d) == quadrature(normal_1d, mixture).value
    p, q = dist.Geometric(f64(0.4)), dist.Poisson(f64(1.5))  # discrete, and not registered
    k = torch.arange(200, dtype=F64)
    exact = (p.log_prob(k).exp() * (p.log_prob(k) - q.log_prob(k))).sum()
    assert forward(p, q) == monte_carlo(p, q).value
    assert abs(forward(p, q) - exact) < 4.5 * monte_carlo(p, q).standard_error
    one = torch.ones(3, dtype=F64)
    p, q = MixtureOfNormals(0 * one[None], one[None], f64([0.0])), diagonal_normal(one, one)
    assert forward(p, q) == monte_carlo(p, q).value  # no mixture has one, and 3-d no quadrature
    assert abs(forward(p, q) - 1.5) < 4.5 * monte_carlo(p, q).standard_error


# Fits

FAST = {"steps": 300, "lr": 0.1}


def correlated():
    return dist.MultivariateNormal(f64([1.0, -2.0]), f64([[1.0, 0.9], [0.9, 2.0]]))


def tilted():
    """Two correlated modes in the plane, and the exact mean and covariance of the whole."""
    loc = f64([[-1.5, -1.5], [1.5, 1.5]])
    covariance = f64([[[0.8, -0.45], [-0.45, 0.7]], [[0.6, -0.3], [-0.3, 0.9]]])
    weights = f64([0.6, 0.4])
    p = MixtureOfNormals(loc, torch.linalg.cholesky(covariance), weights.log())
    off = loc - weights @ loc
    whole = covariance + off.unsqueeze(-1) * off.unsqueeze(-2)
    return p, weights @ loc, (weights[:, None, None] * whole).sum(0)


def family(dim, **options):
    return NormalFamily(dim, **options).double()


def off_moments(x, w, mean, covariance, fitted_mean, fitted_covariance):
    """By how many standard errors of the weighted draws a fit is off the exact moments."""
    off = torch.cat([fitted_mean - mean, (fitted_covariance - covariance).flatten()])
    squares = (x - mean).unsqueeze(-1) * (x - mean).unsqueeze(-2) - covariance
    terms = torch.cat([x - mean, squares.flatten(1)], 1)
    errors = (w.square() @ terms.square()).sqrt() / w.sum()
    return float((off / errors).abs().max())


@pytest.fixture(scope="module")
def forward_tilted():
    p, *_ = tilted()
    return fit_forward(p, family(2, full_rank=True), **FAST)


def test_forward_fit_matches_moments(forward_tilted):
    p, mean, covariance = tilted()
    with seeded(0):
        x = p.sample((10_000,))
    q = forward_tilted.q
    # of the draws exactly, of p within their error
    torch.testing.assert_close(q.mean, x.mean(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(q.covariance_matrix, x.T.cov(correction=0), rtol=0, atol=5e-3)
    weights = torch.full((len(x),), 1 / len(x), dtype=F64)
    assert off_moments(x, weights, mean, covariance, q.mean, q.covariance_matrix) < 4.5
    # negative control: the moments of the larger mode, which the reverse fit takes, are far off
    larger = p.loc[0], p.scale[0] @ p.scale[0].T
    assert off_moments(x, weights, mean, covariance, *larger) > 50
    # no normal is nearer: KL(p || q) is least at p's own moments, within what the draws blur
    least = forward(p, dist.MultivariateNormal(mean, covariance))
    assert least <= forward_tilted.forward < least + 1e-3
    assert forward_tilted.effective_sample_size == pytest.approx(10_000)
    loss = forward_tilted.forward - p.log_prob(x).mean()  # -E_p[log q] = KL(p || q) + H(p)
    assert abs(forward_tilted.losses[-1] - loss) < 0.03


def test_mean_field_fits_take_the_marginal_or_the_conditional_variance():
    p = correlated()
    by_forward = fit_forward(p, family(2), **FAST)
    by_reverse = fit_reverse(p, family(2), **FAST)
    marginal, conditional = p.variance, 1 / p.precision_matrix.diagonal()  # 1, 2 and .595, 1.19
    # the standard error of a variance is var sqrt(2 / 10,000): 0.014 of it
    assert (by_forward.q.variance / marginal - 1).abs().max() < 4.5 * 0.0142
    # over seeds the reverse fit's variances spread by 0.01
    assert (by_reverse.q.variance / conditional - 1).abs().max() < 0.05
    assert (by_reverse.q.mean - p.mean).abs().max() < 0.05
    # negative control: each is far from the other's
    assert (by_forward.q.variance / conditional - 1).abs().min() > 0.5
    assert (by_reverse.q.variance / marginal - 1).abs().min() > 0.3
    # the least KL(q || p) of a diagonal q: (log det S + sum log precision_ii) / 2
    least = 0.5 * (p.covariance_matrix.logdet() + p.precision_matrix.diagonal().log().sum())
    assert least <= by_reverse.reverse < least + 2e-3
    assert by_forward.reverse > by_reverse.reverse + 0.1
    assert by_reverse.forward > by_forward.forward + 0.1


def test_reverse_fit_of_an_unnormalised_density():
    p = correlated()
    fit = fit_reverse(p, family(2, full_rank=True), **FAST)
    same = fit_reverse(lambda x: p.log_prob(x) + 7.0, family(2, full_rank=True), **FAST)
    for name in ("mean", "covariance_matrix"):
        torch.testing.assert_close(getattr(same.q, name), getattr(fit.q, name))
        torch.testing.assert_close(getattr(fit.q, name), getattr(p, name), rtol=0, atol=0.1)
    # the loss is KL(q || p) - log Z
    torch.testing.assert_close(same.losses + 7.0, fit.losses)
    assert abs(float(fit.losses[-1])) < 1e-2
    assert fit.reverse < 1e-3 < fit.losses[0]
    assert same.forward is None and same.reverse is None and fit.effective_sample_size is None


def test_forward_fit_of_an_unnormalised_density(forward_tilted):
    p, mean, covariance = tilted()
    r = diagonal_normal(f64([0.0, 0.0]), f64([3.0, 3.0]))

    def density(x):
        return p.log_prob(x) - 11.0

    fit = fit_forward(density, family(2, full_rank=True), proposal=r, **FAST)
    same = fit_forward(p, family(2, full_rank=True), proposal=r, **FAST)
    torch.testing.assert_close(fit.q.mean, same.q.mean)
    torch.testing.assert_close(fit.q.covariance_matrix, same.q.covariance_matrix)
    assert fit.forward is None and abs(same.forward - forward_tilted.forward) < 0.01
    with seeded(0):
        x = r.sample((10_000,))
    w = (density(x) - r.log_prob(x)).softmax(0)
    assert fit.effective_sample_size == pytest.approx(float(1 / w.square().sum()))
    assert 1000 < fit.effective_sample_size < 5000
    moments = mean, covariance, fit.q.mean, fit.q.covariance_matrix
    assert off_moments(x, w, *moments) < 4.5
    # negative control: weights left out give the proposal's moments
    unweighted = mean, covariance, x.mean(0), x.T.cov()
    assert off_moments(x, w, *unweighted) > 10


def test_fits_leave_family_store_and_generator_alone():
    p = correlated()
    torch.manual_seed(0)
    expected = torch.rand(2)
    start = family(2, loc=f64([0.5, -0.5]), scale=f64([2.0, 3.0]))
    before = {k: v.clone() for k, v in start.state_dict().items()}
    store = pyro.get_param_store()
    with store.scope():
        pyro.param("family$$$loc", torch.ones(2))  # the name that the fit itself uses
        torch.manual_seed(0)
        for fit in (fit_forward, fit_reverse):
            a, b, c = (fit(p, start, steps=20, seed=s) for s in (1, 1, 2))
            assert torch.equal(a.losses, b.losses) and a.losses.shape == (20,)
            assert torch.equal(a.q.mean, b.q.mean)
            assert not torch.equal(a.losses, c.losses)
            assert not a.q.mean.requires_grad and not a.forward.requires_grad
        assert torch.equal(torch.rand(2), expected)
        assert list(store.keys()) == ["family$$$loc"]
        assert torch.equal(store["family$$$loc"], torch.ones(2))
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())
    torch.testing.assert_close(start().stddev, f64([2.0, 3.0]))


class MixtureFamily(nn.Module):
    """Mixtures of two normals: no rsample, so for forward fits alone."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(f64([[-1.0], [1.0]]))
        self.log_scale = nn.Parameter(f64([[0.0], [0.0]]))

    def forward(self):
        return MixtureOfNormals(self.loc, self.log_scale.exp(), f64([0.6, 0.4]).log())


def test_any_family_will_do():
    fit = fit_forward(bimodal(), MixtureFamily(), num_samples=2000, **FAST)
    assert fit.forward < 0.02
    assert forward(bimodal(), MixtureFamily()()) > 0.3  # negative control: its start
    with pytest.raises(ValueError, match="family with rsample.*got MixtureOfNormals.*fit_forward"):
        fit_reverse(bimodal(), MixtureFamily())


P1 = normal([0.0], [1.0]).to_event(1)


def nowhere(x):
    return x[:, 0] - math.inf


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: NormalFamily(0), "dim to be a whole number, at least 1; got 0"),
        (lambda: NormalFamily(2, scale=-1.0), r"scale > 0, of shape \(\) or \(2,\).*and -1"),
        (lambda: NormalFamily(2, loc=torch.zeros(3)), r"of shape \(\) or \(2,\); got tensor"),
        (lambda: fit_forward(P1, family(1), num_samples=0), "num_samples .* at least 1; got 0"),
        (lambda: fit_forward(P1, family(1), steps=0), "steps .* at least 1; got 0"),
        (lambda: fit_reverse(P1, family(1), num_particles=0), "num_particles .* got 0"),
        (lambda: fit_forward(P1, family(2)), r"one event_shape.*\(1,\).*\(2,\)"),
        (lambda: fit_reverse(normal(0.0, 1.0), family(1)), r"one event_shape.*to_event"),
        (lambda: fit_reverse(P1, NormalFamily(1)), r"one dtype.*float64.*float32.*convert.*\.to"),
        (lambda: fit_forward(P1.expand([3]), family(1)), r"batch_shape \(\)"),
        (lambda: fit_forward(lambda x: -x.sum(-1), family(1)), "proposal.*got none"),
        (lambda: fit_forward(P1, family(1), proposal=normal(0.0, 1.0)), r"proposal.*shape \(1,\)"),
        (lambda: fit_reverse(lambda x: -x, family(1)), r"\(3, 1\) to \(3,\); got \(3, 1\)"),
        (lambda: fit_forward(nowhere, family(1), proposal=P1), "finite importance weights.*-inf"),
    ],
)
def test_arguments_that_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
