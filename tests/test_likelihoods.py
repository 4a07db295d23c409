"""Likelihoods at the edges of their support and of their parameters, in float32 and float64."""

import math

import numpy as np
import pyro
import pytest
import scipy.special
import scipy.stats
import torch
from cases import NET
from pyro import distributions as dist

from pyrovae import VAE, build, distributions, likelihoods, posteriors, priors, testing
from pyrovae.distributions import (
    CategoricalLevels,
    DiscretizedLogistic,
    GuardedBeta,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
    seeded,
)

F32, F64 = torch.float32, torch.float64
both_dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
COUNTS = [0, 1, 2, 15, 16, 17, 100, 1e4, 1e6]
LOG_MEANS = [-20, -5, 0, 2.5, 9.2, 13.8, 20]
DISPERSIONS = [1e-4, 0.1, 1, 30, 1e4]
GATES = [-100, -20, -1, 0, 5, 20, 100]


def grid(dtype, *axes):
    """Leaves of shapes that broadcast to one dimension an axis."""
    n = len(axes)
    return [
        torch.tensor(a, dtype=dtype).reshape([-1 if j == i else 1 for j in range(n)])
        for i, a in enumerate(axes)
    ]


def scored(make, value, *parameters):
    """The log-density and its gradients, which must be finite; as float64 arrays."""
    leaves = [p.clone().requires_grad_() for p in parameters]
    log_p = make(*leaves).log_prob(value)
    assert log_p.dtype == value.dtype
    gradients = torch.autograd.grad(log_p.sum(), leaves)
    assert bool(log_p.isfinite().all())
    assert all(bool(g.isfinite().all()) for g in gradients)
    return log_p.detach().double().numpy()


def doubles(*tensors):
    return [t.double().numpy() for t in tensors]


def relative(got, expected):
    return float(np.max(np.abs(got - expected) / (1 + np.abs(expected))))


def negative_binomial(x, log_mean, r):
    """By the beta function: scipy's own loses 1 - r / (r + m) where r is large."""
    choose = -np.log(x + r) - scipy.special.betaln(r, x + 1)
    return choose - r * np.log1p(np.exp(log_mean) / r) - x * np.log1p(r * np.exp(-log_mean))


# Counts


@both_dtypes
def test_poisson_is_scipys(dtype):
    x, log_mean = grid(dtype, COUNTS, LOG_MEANS)
    got = scored(Poisson, x, log_mean)
    mean = np.exp(log_mean.double().numpy())
    expected = scipy.stats.poisson.logpmf(x.double().numpy(), mean)
    assert relative(got, expected) < (1e-12 if dtype == F64 else 3e-5)


@both_dtypes
def test_negative_binomial_is_scipys(dtype):
    x, log_mean, r = grid(dtype, COUNTS, LOG_MEANS, DISPERSIONS)
    got = scored(NegativeBinomial, x, log_mean, r)
    assert relative(got, negative_binomial(*doubles(x, log_mean, r))) < (
        1e-8 if dtype == F64 else 1e-4
    )
    few = x.flatten()[:7]  # where scipy's own is right
    got = scored(NegativeBinomial, few, torch.tensor(0.7, dtype=dtype), torch.tensor(2.0).to(dtype))
    expected = scipy.stats.nbinom.logpmf(few.double().numpy(), 2, 2 / (2 + math.exp(0.7)))
    assert relative(got, expected) < (1e-12 if dtype == F64 else 1e-6)


def test_large_counts_in_float32_want_these_forms():
    """Negative control: torch's are off by 0.3 of a nat and more."""
    x = torch.tensor(1e6)
    log_mean, r = torch.tensor(1e6).log() + 1e-4, torch.tensor(1e4)
    exact = NegativeBinomial(log_mean.double(), r.double()).log_prob(x.double())
    assert (NegativeBinomial(log_mean, r).log_prob(x) - exact).abs() < 1e-3
    theirs = dist.NegativeBinomial(r, logits=log_mean - r.log())
    assert (theirs.log_prob(x) - exact).abs() > 0.3
    exact = Poisson(log_mean.double()).log_prob(x.double())
    assert (Poisson(log_mean).log_prob(x) - exact).abs() < 1e-3
    assert (dist.Poisson(log_mean.exp()).log_prob(x) - exact).abs() > 0.3


def test_the_negative_binomial_becomes_poisson():
    x, log_mean = grid(F64, [0, 1, 7, 100], [-5, 0, 4])
    got = scored(lambda m: NegativeBinomial(m, torch.tensor(1e12).double()), x, log_mean)
    assert relative(got, scored(Poisson, x, log_mean)) < 1e-8


@both_dtypes
@pytest.mark.parametrize("base", [Poisson, lambda m: NegativeBinomial(m, torch.full_like(m, 0.5))])
def test_zero_inflated_at_extreme_gates(dtype, base):
    x, log_mean, gate = grid(dtype, [0, 1, 1e6], [-20, 0, 20], GATES)
    got = scored(lambda m, g: ZeroInflated(base(m), g), x, log_mean, gate)
    plain = base(log_mean.double()).log_prob(x.double()).numpy()
    gate = gate.double().numpy()
    expected = scipy.special.log_expit(-gate) + plain
    zero = np.logaddexp(scipy.special.log_expit(gate), expected)
    assert relative(got, np.where(x == 0, zero, expected)) < (1e-12 if dtype == F64 else 3e-5)


def test_pyros_zero_inflated_changes_once_it_is_sampled():
    """Negative control: why there is one of our own."""
    gate = torch.tensor(20.0)
    theirs = dist.ZeroInflatedDistribution(dist.Poisson(torch.tensor(3.0)), gate_logits=gate)
    ours = ZeroInflated(Poisson(torch.tensor(3.0).log()), gate)
    three = torch.tensor(3.0)
    torch.testing.assert_close(theirs.log_prob(three), ours.log_prob(three))
    for d in (theirs, ours):
        d.sample(), d.mean
    assert theirs.log_prob(three) == -math.inf
    assert ours.log_prob(three) > -25


def test_moments_and_draws_of_counts():
    log_mean, r, gate = (torch.tensor(v, dtype=F64) for v in (1.0, 0.7, -0.5))
    x = torch.arange(600, dtype=F64)
    for d in (
        Poisson(log_mean),
        NegativeBinomial(log_mean, r),
        ZeroInflated(Poisson(log_mean), gate),
        ZeroInflated(NegativeBinomial(log_mean, r), gate),
    ):
        p = d.log_prob(x).exp()
        mean = (p * x).sum()
        torch.testing.assert_close(d.mean, mean)
        torch.testing.assert_close(d.variance, (p * (x - mean).square()).sum())
    for log_mean in (-20.0, 20.0):
        with seeded(0):
            draws = NegativeBinomial(torch.tensor(log_mean), torch.tensor(1.0)).sample((1000,))
        assert draws.dtype == F32 and bool((draws == draws.round()).all() and (draws >= 0).all())
        assert (draws.mean() / math.exp(log_mean) - 1).abs() < 0.2 or log_mean < 0


FAMILIES = [
    likelihoods.Poisson,
    likelihoods.NegativeBinomial,
    likelihoods.ZeroInflatedPoisson,
    likelihoods.ZeroInflatedNegativeBinomial,
]


@pytest.mark.parametrize("cls", FAMILIES)
def test_offset_multiplies_the_mean(cls):
    with seeded(1):
        part = cls(2, (3,), NET, context_dim=1, offset=True).double()
        z, c, exposure = torch.randn(4, 2), torch.randn(4, 1), 5 * torch.rand(4, 1) + 0.1
        z, c, exposure = (t.double() for t in (z, c, exposure))
        x = torch.tensor([[0, 1, 7], [3, 0, 2], [0, 0, 1], [9, 1, 0]], dtype=F64)
    params = part.params(z, c, torch.zeros(4, dtype=F64))
    log_mean = params[:, 0] if part.zero_inflated else params
    f = part.counts((log_mean.exp() * exposure).log())
    if part.zero_inflated:
        f = ZeroInflated(f, params[:, 1])
    expected = f.log_prob(x).sum(-1)
    for log_t in (exposure.log(), exposure.log().squeeze(1)):
        torch.testing.assert_close(part(z, c, log_t).log_prob(x), expected)
        lifted = part(z.expand(5, 4, 2), c, log_t)
        torch.testing.assert_close(lifted.log_prob(x), expected.expand(5, 4))
    without = cls(2, (3,), part.net, context_dim=1).double()
    without.load_state_dict(part.state_dict())
    assert not torch.allclose(without(z, c).log_prob(x), expected)  # negative control


@pytest.mark.parametrize("context", [(), (torch.zeros(4, 2),)])
def test_offset_wants_one_number_a_datum(context):
    part = likelihoods.Poisson(2, (3,), NET, offset=True)
    with pytest.raises(ValueError, match=r"log of the exposure, \(N,\) or \(N, 1\).*got shapes"):
        part(torch.zeros(4, 2), *context)


def test_a_pair_with_library_sizes():
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.ZeroInflatedNegativeBinomial(2, (6,), NET, offset=True),
        posteriors.MeanFieldNormal((6,), 2, NET, context_dim=1, input_scale=0.1),
    )
    log_size = torch.linspace(-1, 2, 8)
    x = vae.sample(8, log_size)
    report = testing.check_pair(vae.model, vae.guide, x, log_size)
    assert report.ok, str(report)


# Levels


def by_scipy(loc, scale, x, top):
    law = scipy.stats.logistic(loc, scale)
    low = np.where(x == 0, -np.inf, (x - 0.5) / top)
    high = np.where(x == top, np.inf, (x + 0.5) / top)
    return np.where(low > loc, law.sf(low) - law.sf(high), law.cdf(high) - law.cdf(low))


@both_dtypes
def test_discretized_logistic_is_scipys(dtype):
    x, loc, scale = grid(dtype, [0, 1, 100, 254, 255], [-0.3, 0, 0.4, 1, 1.2], [0.02, 0.1, 1, 30])
    got = scored(lambda m, s: DiscretizedLogistic(m, s, 256), x, loc, scale)
    expected = np.log(by_scipy(*doubles(loc, scale, x), 255))
    assert relative(got, expected) < (1e-10 if dtype == F64 else 2e-5)


@both_dtypes
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_sum_to_one_at_extreme_parameters(dtype, levels):
    top = levels - 1
    x, loc, scale = grid(
        dtype, range(levels), [-1e10, -1e4, -1, 0, 0.5, 1, 7, 1e10], [1e-6, 5e-4, 0.1, 10, 1e8]
    )
    log_p = scored(lambda m, s: DiscretizedLogistic(m, s, levels), x.to(dtype), loc, scale)
    p = np.exp(log_p)
    np.testing.assert_allclose(p.sum(0), 1, atol=1e-14 if dtype == F64 else 1e-6)
    d = DiscretizedLogistic(loc[0], scale[0], levels)
    k = np.arange(levels)[:, None, None]
    np.testing.assert_allclose(
        d.mean.double(), (k * p).sum(0), atol=top * (1e-12 if dtype == F64 else 1e-6)
    )
    centred = (k - (k * p).sum(0)) ** 2
    np.testing.assert_allclose(d.variance, (centred * p).sum(0), rtol=1e-4, atol=1e-6 * top**2)


def test_the_difference_of_sigmoids_underflows():
    """Negative control: the formula as written gives log(0) where ours is finite."""
    x, loc, scale = (torch.tensor(v) for v in (200.0, 0.1, 0.002))
    naive = ((x + 0.5) / 255 - loc).div(scale).sigmoid() - ((x - 0.5) / 255 - loc).div(
        scale
    ).sigmoid()
    assert naive.log() == -math.inf
    got = DiscretizedLogistic(loc, scale, 256).log_prob(x)
    exact = DiscretizedLogistic(loc.double(), scale.double(), 256).log_prob(x.double())
    torch.testing.assert_close(got, exact.float())


@both_dtypes
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (likelihoods.Categorical, {}),
        (likelihoods.DiscretizedLogistic, {}),
        (likelihoods.DiscretizedLogisticMixture, {"num_components": 3}),
    ],
)
def test_levels_have_finite_gradients_at_both_ends(cls, options, dtype):
    part = cls(2, (2,), NET, **options)
    shape = part.param_shape
    for size in (0.0, 3.0, 80.0):  # of log scales too: exp(-80)
        with seeded(1):
            params = size * torch.randn(4, *shape, dtype=dtype)
        scored(
            part.distribution, torch.tensor([[0.0, 255]] * 4, dtype=dtype), params.clamp(-80, 80)
        )


def test_categorical_levels_are_floats_with_moments():
    with seeded(1):
        logits = torch.randn(3, 5, dtype=F64)
    d = CategoricalLevels(logits=logits)
    p = scipy.special.softmax(logits.numpy(), -1)
    mean = p @ np.arange(5)
    np.testing.assert_allclose(d.mean, mean)
    np.testing.assert_allclose(d.variance, (p * (np.arange(5) - mean[:, None]) ** 2).sum(-1))
    assert d.sample((2,)).dtype == F64
    assert type(d.expand((4, 3))) is CategoricalLevels
    assert bool(dist.Categorical(logits=logits).mean.isnan().all())  # negative control


@pytest.mark.parametrize("cls", [likelihoods.DiscretizedLogistic, likelihoods.Categorical])
def test_levels_off_the_support_are_refused(cls):
    p = cls(2, (1,), NET, num_levels=17)(torch.zeros(1, 2))
    for bad in (-1.0, 0.5, 17.0, math.nan):
        with pytest.raises(ValueError, match="support"):
            p.log_prob(torch.tensor([[bad]]))


def test_the_mixture_starts_at_the_mean_of_varied_data_and_near_its_spread():
    with seeded(3):
        x = (torch.rand(500, 4, dtype=F64) * torch.tensor([255, 40, 3, 0.0])).round()
    for k in (1, 5):
        part = likelihoods.DiscretizedLogisticMixture(2, (4,), NET, num_components=k).double()
        p = part.distribution(part.params_of_data(x))
        mean = x.mean(0).clamp(0.255, 255 - 0.255)
        torch.testing.assert_close(p.mean, mean)
        assert bool((p.variance.sqrt() < 1.3 * x.std(0) + 3).all())
        assert bool((p.variance.sqrt() > 0.7 * x.std(0)).all())


# The unit interval


def guarded_by_scipy(a, b, x, edge):
    with np.errstate(divide="ignore"):
        log_p = scipy.stats.beta.logpdf(x, a, b)
        low, high = (np.log(scipy.special.betainc(*s, edge) / edge) for s in ((a, b), (b, a)))
    return np.where(x < edge, low, np.where(x > 1 - edge, high, log_p))


@both_dtypes
@pytest.mark.parametrize("edge", [1e-3, 0.1])
def test_guarded_beta_is_scipys(dtype, edge):
    most = 0.45 / edge
    x, a, b = grid(
        dtype, [0, edge / 2, 1.01 * edge, 0.2, 0.5, 0.9 - edge, 1 - edge / 3, 1],
        [1e-6, 0.05, 0.5, 1, 3, most], [1e-4, 0.05, 1, 2, most],
    )  # fmt: skip
    got = scored(lambda a, b: GuardedBeta(a, b, edge), x, a, b)
    expected = guarded_by_scipy(*doubles(a, b, x), edge)
    known = np.isfinite(expected)  # scipy's masses underflow below exp(-745)
    assert known.mean() > 0.9
    assert relative(got[known], expected[known]) < (1e-11 if dtype == F64 else 1e-4)


def test_guarded_beta_integrates_and_has_its_moments():
    edge = 1e-3
    nodes, weights = np.polynomial.legendre.leggauss(1500)
    top = scipy.special.logit(1 - edge)
    x = scipy.special.expit(top * nodes)
    weights = top * weights * x * (1 - x)
    a, b = grid(F64, [0.05, 0.5, 30], [0.05, 2, 400])
    d = GuardedBeta(a, b, edge)
    p = d.log_prob(torch.tensor(x)[:, None, None]).exp().numpy()
    low, high = (edge * d.log_prob(torch.tensor(v).double()).exp().numpy() for v in (0, 1))
    integrals = [
        np.einsum("n,nab->ab", weights * x**k, p)
        + low * edge**k / (k + 1)
        + high * (1 - (1 - edge) ** (k + 1)) / ((k + 1) * edge)
        for k in range(3)
    ]
    np.testing.assert_allclose(integrals[0], 1, atol=1e-11)
    np.testing.assert_allclose(d.mean, integrals[1], atol=1e-11)
    np.testing.assert_allclose(d.variance, integrals[2] - integrals[1] ** 2, atol=1e-11)
    unguarded = np.einsum("n,nab->ab", weights, p)  # negative control: the edges matter
    assert unguarded[0, 0] < 0.8


def test_draws_of_small_concentrations():
    a = torch.tensor(1e-3)
    with seeded(1):
        ours = GuardedBeta(a, a, 1e-3).sample((20_000,))
        theirs = dist.Beta(a, a).sample((20_000,))
    between = [float(((t > 1e-3) & (t < 0.999)).float().mean()) for t in (ours, theirs)]
    expected = 1 - 2 * scipy.special.betainc(1e-3, 1e-3, 1e-3)
    assert abs(between[0] - expected) < 4.5 * math.sqrt(expected / 20_000)
    assert between[1] > 0.1  # negative control: torch's gammas underflow to one value, and 0.5


@both_dtypes
def test_beta_is_finite_wherever_the_network_goes(dtype):
    part = likelihoods.Beta(2, (4,), NET)
    x = torch.tensor([0, 1e-5, 0.5, 1], dtype=dtype)
    logit, log_nu = grid(dtype, [-300, -12, 0, 12, 300], [-300, -5, 0, 6, 300])
    params = torch.stack(torch.broadcast_tensors(logit, log_nu), -1)[..., None].expand(5, 5, 2, 4)
    scored(part.distribution, x, params)
    assert bool(part.distribution(params).sample((10,)).isfinite().all())
    theirs = dist.Beta(torch.tensor(0.5, dtype=dtype), 0.5)  # negative control
    assert theirs.log_prob(x[0]).isinf() or theirs.log_prob(x[0]).isnan()


# All of them


PARTS = [
    (likelihoods.Laplace, {}),
    (likelihoods.StudentT, {}),
    (likelihoods.LogNormal, {}),
    (likelihoods.FullCovarianceNormal, {"rank": 2}),
    (likelihoods.Categorical, {}),
    (likelihoods.DiscretizedLogistic, {}),
    (likelihoods.DiscretizedLogisticMixture, {}),
    (likelihoods.Beta, {}),
    *((cls, {}) for cls in FAMILIES),
]


@pytest.mark.parametrize(("cls", "options"), PARTS, ids=lambda p: getattr(p, "__name__", ""))
def test_expansion_keeps_the_class_and_the_density(cls, options):
    p = cls(2, (3, 2), NET, **options)(torch.zeros(4, 2))
    x = p.sample()
    lifted = p.expand((5, 4))
    assert lifted.batch_shape == (5, 4) and lifted.event_shape == (3, 2)
    assert lifted.sample().shape == (5, 4, 3, 2)
    torch.testing.assert_close(lifted.log_prob(x), p.log_prob(x).expand(5, 4))
    inner, outer = (getattr(d, "base_dist", d) for d in (p, lifted))
    assert type(inner) is type(outer)
    one = cls(2, (3, 2), NET, **options)(torch.zeros(2))
    with pyro.plate("data", 6):
        assert pyro.sample("x", one).shape == (6, 3, 2)
    torch.testing.assert_close(p.mean.shape, p.variance.shape)


@both_dtypes
@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda m: dist.Laplace(m, 0.5 / 255), [-1e6, 0, 1e6]),
        (lambda m: dist.StudentT(torch.full_like(m, 2.5), m, 0.5 / 255), [-1e6, 0, 1e6]),
        (lambda m: dist.LogNormal(m, 0.5 / 255), [1e-30, 1, 1e30]),
    ],
    ids=["Laplace", "StudentT", "LogNormal"],
)
def test_the_library_serves_far_from_the_location(make, x, dtype):
    values, loc = grid(dtype, x, [-10, 0, 3])
    got = scored(make, values, loc)
    d = make(loc.double())
    assert relative(got, d.log_prob(values.double()).numpy()) < (1e-12 if dtype == F64 else 1e-4)


@pytest.mark.parametrize("name", ["laplace", "student-t", "log-normal"])
def test_a_scale_by_name(name):
    vae = build(
        data_shape=(3,), latent_dim=2, likelihood=name, hidden=(4,),
        likelihood_options={"scale": "fixed:0.1"},
    )  # fmt: skip
    assert vae.likelihood.scale == likelihoods.Fixed(0.1)
    assert "scale=Fixed(value=0.1)" in repr(vae.likelihood)
    with pytest.raises(ValueError, match="expected scale to be one of fixed"):
        build(
            data_shape=(3,), likelihood=name, likelihood_options={"scale": "nothing"}
        )  # negative control


def test_degrees_of_freedom_start_where_they_are_told():
    assert likelihoods.StudentT(2, (3,), NET).log_df.exp().item() == pytest.approx(10)
    assert likelihoods.StudentT(2, (3,), NET, df=3.0).log_df.exp().item() == pytest.approx(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: likelihoods.Laplace(2, (3,), scale="shared"), "expected scale to be Fixed"),
        (lambda: likelihoods.StudentT(2, (3,), df=0), "df to be a positive number; got 0"),
        (lambda: likelihoods.Categorical(2, (3,), num_levels=1), "from 2 on; got 1"),
        (lambda: likelihoods.DiscretizedLogistic(2, (3,), num_levels=2.5), "from 2 on; got 2.5"),
        (lambda: likelihoods.DiscretizedLogistic(2, (3,), min_scale=0), "min_scale to be a pos"),
        (
            lambda: likelihoods.DiscretizedLogisticMixture(2, (3,), num_components=0),
            "num_components to be a positive whole number; got 0",
        ),
        (lambda: likelihoods.Beta(2, (3,), edge=0.2), "0 < edge <= 0.1; got 0.2"),
        (lambda: likelihoods.FullCovarianceNormal(2, (3,), rank=4), "from 1 to 3.*got 4"),
        (lambda: likelihoods.FullCovarianceNormal(2, (3,), rank=0), "from 1 to 3.*got 0"),
        (
            lambda: likelihoods.FullCovarianceNormal(2, (3,), min_scale=-1),
            "min_scale to be a positive number; got -1",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_negative_binomial_of_tiny_means_is_finite_in_float32():
    log_mean = torch.tensor([-80.0, -90.0, -200.0], requires_grad=True)
    log_p = distributions.NegativeBinomial(log_mean, torch.ones(3)).log_prob(torch.zeros(3))
    log_p.sum().backward()
    assert log_p.isfinite().all() and log_mean.grad.isfinite().all()
