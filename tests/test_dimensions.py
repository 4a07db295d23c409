"""Collapse by latent number, total correlation and traversals, against closed forms and loops."""

import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch

from pyrovae import build, diagnostics

F64 = torch.float64
D = 3
SCALES = torch.tensor([1.0, 0.3, 0.0], dtype=F64)  # how the guide's mean moves with x
NOISE = torch.tensor([0.5, 0.8, 1.0], dtype=F64)  # the last number is the prior itself


def data(n, d=D, seed=12345):
    """Data of another seed than the draws': they would be the same numbers, and not independent."""
    return torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


def pair(q, p=None):
    """A model with the prior p (N(0, I) by default), and a guide whose distribution is q(x)."""
    prior = dist.Normal(torch.zeros(D, dtype=F64), 1.0).to_event(1) if p is None else p

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.double().sum(-1), 1.0), obs=x.sum(-1))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(x))

    return model, guide


def mean_field(x):
    return dist.Normal(x * SCALES, NOISE.expand(len(x), D)).to_event(1)


def full_rank(x):
    """Marginals of variance NOISE^2, numbers 0 and 2 correlated."""
    tril = torch.eye(D, dtype=F64) * NOISE
    tril[2, 0], tril[2, 2] = 0.6, 0.8
    return dist.MultivariateNormal(x * SCALES, scale_tril=tril.expand(len(x), D, D))


def low_rank(x):
    w = torch.tensor([[0.3], [0.2], [0.6]], dtype=F64)
    rest = NOISE.square() - w[:, 0].square()
    return dist.LowRankMultivariateNormal(
        x * SCALES, w.expand(len(x), D, 1), rest.expand(len(x), D)
    )


def by_hand(x):
    """KL(N(m, s^2) || N(0, 1)) of each datum and number."""
    m, s2 = x * SCALES, NOISE.square()
    return 0.5 * (s2 + m.square() - 1 - s2.log())


@pytest.mark.parametrize("q", [mean_field, full_rank, low_rank])
def test_collapse_is_that_of_the_marginals_by_hand(q):
    x = data(200)
    found = diagnostics.collapse(*pair(q), x, threshold=0.06)
    kl = by_hand(x)
    torch.testing.assert_close(found.kl, kl.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.kl_se, kl.std(0) / math.sqrt(200), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.share, (kl <= 0.06).double().mean(0))
    assert found.collapsed.tolist() == [False, False, True] and found.count == 1
    assert 0 < found.share[1] < 1  # the second lies between: delta decides
    loose = diagnostics.collapse(*pair(q), x, threshold=0.06, delta=1.001 - float(found.share[1]))
    assert loose.collapsed.tolist() == [False, True, True]


def test_collapse_sums_to_the_kl_of_products_alone():
    x = data(50)
    model, guide = pair(mean_field)
    whole = dist.Normal(torch.zeros(D, dtype=F64), 1.0).to_event(1)
    exact = torch.distributions.kl_divergence(mean_field(x), whole).mean().item()
    assert diagnostics.collapse(model, guide, x).kl.sum().item() == pytest.approx(exact, abs=1e-12)
    joint = torch.distributions.kl_divergence(full_rank(x), whole).mean().item()
    marginal = diagnostics.collapse(*pair(full_rank), x).kl.sum().item()
    assert joint - marginal == pytest.approx(-0.5 * math.log(1 - 0.6**2), abs=1e-10)


MEANS, WEIGHTS = (-1.0, 0.5, 2.0), (0.2, 0.5, 0.3)


def student_t():
    return dist.StudentT(torch.tensor(4.0, dtype=F64), torch.zeros(D, dtype=F64), 1.0).to_event(1)


def mixture(tril=False):
    from pyrovae.distributions import MixtureOfNormals

    loc = torch.tensor(MEANS, dtype=F64).unsqueeze(1).expand(3, D).contiguous()
    scale = torch.full((3, D), 0.7, dtype=F64)
    if tril:  # of the same marginals: rows of norm 0.7
        scale = torch.linalg.cholesky(
            0.49 * (0.5 * torch.eye(D, dtype=F64) + 0.5).expand(3, D, D)
        ).contiguous()
    return MixtureOfNormals(loc, scale, torch.tensor(WEIGHTS, dtype=F64).log())


def mixture_pdf(z):
    return sum(w * scipy.stats.norm.pdf(z, m, 0.7) for w, m in zip(WEIGHTS, MEANS, strict=True))


@pytest.mark.parametrize(
    ("prior", "pdf"),
    [
        (student_t, lambda z: scipy.stats.t.pdf(z, 4)),
        (mixture, mixture_pdf),
        (lambda: mixture(tril=True), mixture_pdf),
    ],
)
def test_collapse_where_no_kl_is_registered_is_scipys_integral(prior, pdf):
    x = data(4)
    found = diagnostics.collapse(*pair(mean_field, prior()), x)
    kl = torch.zeros(4, D, dtype=F64)
    for n in range(4):
        for i in range(D):
            q = scipy.stats.norm(float(x[n, i] * SCALES[i]), float(NOISE[i]))
            kl[n, i] = scipy.integrate.quad(
                lambda z, q=q: q.pdf(z) * (q.logpdf(z) - math.log(pdf(z))),
                q.mean() - 9 * q.std(), q.mean() + 9 * q.std(), epsabs=1e-11, limit=200,
            )[0]  # fmt: skip
    torch.testing.assert_close(found.kl, kl.mean(0), rtol=0, atol=1e-8)
    wrong = diagnostics.collapse(*pair(mean_field), x).kl  # against N(0, 1): the control
    assert (wrong - found.kl).abs().min() > 1e-3


def test_collapse_of_whole_numbers():
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]], dtype=F64)

    def categorical(x):
        from pyrovae.distributions import CategoricalVector

        return CategoricalVector(x[:, :1, None] * logits)

    from pyrovae.distributions import CategoricalVector

    x = data(30)
    found = diagnostics.collapse(*pair(categorical, CategoricalVector(torch.zeros_like(logits))), x)
    log_q = (x[:, :1, None] * logits).log_softmax(-1)
    exact = (log_q.exp() * (log_q + math.log(2))).sum(-1).mean(0)
    torch.testing.assert_close(found.kl, exact, rtol=0, atol=1e-10)
    assert found.collapsed.tolist() == [False, False, True]


def test_a_site_that_is_a_number_and_one_that_is_a_matrix():
    def scalar(x):
        return dist.Normal(x[:, 0], 0.5)

    def matrix(x):
        return dist.Normal(x[:, :1, None].expand(-1, 2, 2), 0.5).to_event(2)

    x = data(20)
    kl = 0.5 * (0.25 - 1 + x[:, 0].square() - math.log(0.25))
    for q, shape in ((scalar, ()), (matrix, (2, 2))):

        def model(x, shape=shape):
            with pyro.plate("data", len(x)):
                p = dist.Normal(torch.zeros(shape, dtype=F64), 1.0).to_event(len(shape))
                z = pyro.sample("z", p)
                pyro.sample("x", dist.Normal(z.reshape(len(x), -1).sum(-1), 1.0), obs=x[:, 0])

        guide = pair(q)[1]
        found = diagnostics.collapse(model, guide, x)
        torch.testing.assert_close(found.kl, kl.mean().expand(max(1, math.prod(shape))))
        whole = diagnostics.total_correlation(model, guide, x)
        assert whole.kl_by_dimension.shape == found.kl.shape
        if not shape:
            assert whole.total_correlation == pytest.approx(0, abs=1e-12)  # of one number


def test_total_correlation_of_whole_numbers_is_that_of_the_table():
    """q(z) of two bits, by enumeration; 800 draws a datum, each term within 5 standard errors."""
    from pyrovae.distributions import CategoricalVector

    def categorical(x):
        return CategoricalVector(torch.stack([x[:, :1] * 0, 3 * x[:, :1]], -1).expand(-1, 2, 2))

    x = data(12)
    p = CategoricalVector(torch.zeros(2, 2, dtype=F64))
    found = diagnostics.total_correlation(*pair(categorical, p), x, num_draws=800)
    each = categorical(x).probs  # (N, 2, 2)
    rows = torch.einsum("ni,nj->nij", each[:, 0], each[:, 1])
    joint, alone = rows.mean(0), each.mean(0)
    total = (joint * (joint.log() - torch.outer(*alone).log())).sum().item()
    information = (rows * (rows.log() - joint.log())).sum((1, 2)).mean().item()
    numbers = (alone * (alone.log() + math.log(2))).sum().item()
    for name, exact in (
        ("total_correlation", total),
        ("mutual_information", information),
        ("dimension_wise_kl", numbers),
    ):
        assert abs(getattr(found, name) - exact) < 5 * getattr(found, f"{name}_se")
    assert total > 20 * found.total_correlation_se  # 0 is far off: the control


def two_sites(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("u", dist.Normal(z, 1.0))


def two_sites_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        u = pyro.sample("u", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(u, 1.0), obs=x)


@pytest.mark.parametrize(
    "posterior",
    [{"posterior": "mixture-of-normals"}, {"posterior": "flow-posterior"}],
)
def test_refusals_say_what_to_use_instead(posterior):
    vae, x = build(data_shape=(3,), latent_dim=2, **posterior), torch.zeros(4, 3)
    with pytest.raises(ValueError, match="use active_units, which needs draws alone, or elbo_surg"):
        diagnostics.collapse(vae.model, vae.guide, x)
    with pytest.raises(ValueError, match="products of univariate.*use elbo_surgery"):
        diagnostics.total_correlation(vae.model, vae.guide, x)


def test_more_refusals():
    x = data(5)
    for function in (diagnostics.collapse, diagnostics.total_correlation):
        with pytest.raises(ValueError, match=r"one latent site.*\['z', 'u'\]: use active_units"):
            function(two_sites_model, two_sites, x[:, 0].float())
        with pytest.raises(ValueError, match="at least two data; got 1"):
            function(*pair(mean_field), x[:1])
    for wrong in ({"threshold": -1.0}, {"threshold": math.nan}, {"delta": 1.0}):
        with pytest.raises(ValueError, match="threshold >= 0 and delta in"):
            diagnostics.collapse(*pair(mean_field), x, **wrong)
    with pytest.raises(ValueError, match="use active_units"):  # KL is infinite: no closed form
        diagnostics.collapse(
            *pair(mean_field, dist.HalfNormal(torch.ones(D, dtype=F64)).to_event(1)),
            torch.full((5, D), 9.0, dtype=F64),
        )
    with pytest.raises(ValueError, match="num_draws to be a whole number >= 2; got 1"):
        diagnostics.total_correlation(*pair(mean_field), x, num_draws=1)
    for q, p in ((full_rank, None), (mean_field, mixture())):
        with pytest.raises(ValueError, match="products of univariate.*use elbo_surgery"):
            diagnostics.total_correlation(*pair(q, p), x)
    vae = build(
        data_shape=(3,), latent_dim=2, prior="conditional-normal",
        prior_options={"context_dim": 1}, likelihood_options={"context_dim": 1},
        posterior_options={"context_dim": 1},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"one prior p\(z\) for all data"):
        diagnostics.total_correlation(vae.model, vae.guide, torch.zeros(4, 3), torch.randn(4, 1))


def by_loops(x, z):
    """Each of the three terms at draws z (K, N, D), density by density."""
    q = torch.distributions.Normal(x * SCALES, NOISE)
    own = q.log_prob(z).sum(-1)
    every = torch.stack([q.log_prob(row.expand_as(x)) for row in z.reshape(-1, D)])  # (KN, N, D)
    joint = (every.sum(-1).logsumexp(1) - math.log(len(x))).reshape(own.shape)
    alone = (every.logsumexp(1) - math.log(len(x))).reshape(*own.shape, D)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    terms = own - joint, joint - alone.sum(-1), (alone - prior).sum(-1)
    return [t.mean().item() for t in terms], (alone - prior).mean((0, 1))


def parts(found):
    return [found.mutual_information, found.total_correlation, found.dimension_wise_kl]


def test_the_three_terms_are_those_of_loops_and_sum_to_the_kl(monkeypatch):
    x = data(30)
    monkeypatch.setattr("pyrovae.diagnostics.dimensions.PAIRS", 7 * 30 * D)  # 7 draws a block
    found = diagnostics.total_correlation(*pair(mean_field), x, num_draws=3)
    from pyrovae.distributions import seeded

    with seeded(0):
        z = mean_field(x).sample((3,))  # the very draws
    terms, by_dimension = by_loops(x, z)
    assert parts(found) == pytest.approx(terms, abs=1e-12)
    torch.testing.assert_close(found.kl_by_dimension, by_dimension, rtol=0, atol=1e-12)
    assert found.kl == pytest.approx(sum(parts(found)), abs=1e-12)
    assert found.kl_by_dimension.sum() == pytest.approx(found.dimension_wise_kl, abs=1e-12)
    assert abs(found.kl - by_hand(x).sum(-1).mean().item()) < 5 * found.kl_se
    surgery = diagnostics.elbo_surgery(*pair(mean_field), x, num_draws=3)
    assert found.mutual_information == pytest.approx(surgery.mutual_information, abs=1e-10)
    assert surgery.aggregate_kl == pytest.approx(sum(parts(found)[1:]), abs=1e-10)


@pytest.mark.parametrize("rho", [0.8, 0.0])
def test_total_correlation_of_a_gaussian_aggregate(rho):
    """Guide N(x, s^2 I) and x of covariance C, exactly: q(z) tends to N(0, C + s^2 I).

    TC = -log det(corr) / 2. The sum of the numbers' own KLs is known too, and so is I(n; z). The
    mixture's distance from its limit is the 0.02: over three seeds of x the total correlation was
    too high by 0.03 to 0.04 with N = 400, by -0.003 to 0.010 with 1,500 (standard error 0.008).
    """
    x = data(1500, 2)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / len(x))).T
    cov = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=F64)
    x = white @ torch.linalg.cholesky(cov).T

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.6).to_event(1))

    found = diagnostics.total_correlation(model, guide, x, num_draws=2)
    total = cov + 0.36 * torch.eye(2, dtype=F64)
    corr = rho / 1.36
    exact = -0.5 * math.log(1 - corr**2)
    assert found.total_correlation == pytest.approx(
        exact, abs=0.02 + 4 * found.total_correlation_se
    )
    own = 0.5 * (1.36 - 1 - math.log(1.36))
    assert found.dimension_wise_kl == pytest.approx(
        2 * own, abs=0.02 + 4 * found.dimension_wise_kl_se
    )
    information = 0.5 * torch.logdet(total / 0.36).item()
    assert found.mutual_information == pytest.approx(
        information, abs=0.02 + 4 * found.mutual_information_se
    )
    shuffled = torch.stack([x[:, 0], x[:, 1].roll(1)], 1)  # breaks the correlation: the control
    broken = diagnostics.total_correlation(model, guide, shuffled, num_draws=2).total_correlation
    assert broken < 0.05 and (rho == 0 or found.total_correlation > 4 * broken)


def test_standard_errors_are_those_of_other_seeds():
    x = data(40)
    found = [diagnostics.total_correlation(*pair(mean_field), x, seed=s) for s in range(60)]
    for name in ("kl", "mutual_information", "total_correlation", "dimension_wise_kl"):
        spread = torch.tensor([getattr(f, name) for f in found]).std().item()
        stated = torch.tensor([getattr(f, f"{name}_se") for f in found]).mean().item()
        assert 0.7 < spread / stated < 1.4  # 60 seeds: sd of a sd is 9 %


def test_total_correlation_is_the_numbers_information_less_the_whole():
    """TC = sum_i I(n; z_i) - I(n; z), of guides that factorise: at the same draws, exactly."""
    x = data(30)
    found = diagnostics.total_correlation(*pair(mean_field), x, num_draws=2)
    from pyrovae.distributions import seeded

    with seeded(0):
        z = mean_field(x).sample((2,))
    q = torch.distributions.Normal(x * SCALES, NOISE)
    alone = torch.stack([q.log_prob(t.expand_as(x)).logsumexp(0) for t in z.reshape(-1, D)])
    each = (q.log_prob(z).reshape(-1, D) - alone + math.log(30)).mean(0).sum().item()
    assert found.total_correlation == pytest.approx(each - found.mutual_information, abs=1e-12)


# traversals


def linear(z):
    """E[x|z] of shape (2, 2): every number of z can be told apart."""
    return (z @ torch.tensor([[1.0, 0, 0, 0], [0, 10, 0, 0], [0, 0, 100, 1]]).to(z)).unflatten(
        -1, (2, 2)
    )


def test_one_number_moves_and_the_others_are_held():
    z = torch.tensor([0.5, -1.0, 2.0])
    x = diagnostics.traversals(linear, z)
    assert x.shape == (3, 7, 2, 2) and x.dtype == z.dtype
    for i in range(3):
        for j, value in enumerate(torch.linspace(-2.5, 2.5, 7)):
            moved = z.clone()
            moved[i] = value
            torch.testing.assert_close(x[i, j], linear(moved))
    assert (x[0, 0] - x[0, 6]).abs().max() == pytest.approx(5.0)
    assert (x[0] - x[0, :1])[..., 1].abs().max() == 0  # the second column knows nothing of z_0
    assert torch.equal(z, torch.tensor([0.5, -1.0, 2.0]))


def test_dims_and_values():
    z, values = torch.zeros(3), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    x = diagnostics.traversals(linear, z, dims=[2, 0], values=values)
    assert x[0, :, 1, 0].tolist() == [100.0, 200.0] and x[1, :, 0, 0].tolist() == [3.0, 4.0]
    alike = diagnostics.traversals(linear, z, dims=(1,), values=[5.0])
    assert alike.flatten().tolist() == [0.0, 50.0, 0.0, 0.0]


def test_of_a_vae_with_context_and_of_a_distribution():
    vae = build(
        data_shape=(3,), latent_dim=2, likelihood_options={"context_dim": 1},
        posterior_options={"context_dim": 1},
    )  # fmt: skip
    c = torch.tensor([0.7])
    x = diagnostics.traversals(vae.decode, torch.zeros(2), c, dims=[1], values=[-1.0, 1.0])
    assert vae.training and not x.requires_grad
    z = torch.tensor([[0.0, -1.0], [0.0, 1.0]])
    with torch.no_grad():
        expected = vae.decode(z, torch.full((2, 1), 0.7)).mean
    torch.testing.assert_close(x[0], expected)
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.5))
    held = diagnostics.traversals(lambda z: net(z), torch.ones(2), modules=[net])
    assert (held[0, 0] != 0).all() and net.training  # evaluated without dropout, and set back
    own = diagnostics.traversals(lambda z: dist.Normal(net[0](z), 1.0).to_event(1), torch.ones(2))
    torch.testing.assert_close(own, held)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"z": torch.zeros(2, 3)}, r"latents z of one datum, \(d,\); got \(2, 3\): take one row"),
        ({"dims": [3]}, r"whole numbers from 0 to 2; got \[3\]"),
        ({"dims": []}, "dims to be whole numbers"),
        ({"values": torch.zeros(2, 5)}, r"values of shape \(num,\) or \(3, num\)"),
        ({"values": []}, "values of shape"),
        ({"decode": lambda z: z.sum()}, r"decode to return 21 rows.*got \(\)"),
        ({"decode": lambda z: z[:2]}, "decode to return 21 rows"),
    ],
)
def test_bad_traversals_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.traversals(**{"decode": linear, "z": torch.zeros(3)} | arguments)
