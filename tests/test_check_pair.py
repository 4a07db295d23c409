"""`check_pair` names the cause in each broken pair, and passes those that are right."""

import math
import re
from functools import partial

import broken_pairs as broken
import pairs_of_users as users
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import LIKELIHOODS, POSTERIORS, PRIORS
from cases.pairing import compatible, shipped
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from pyrovae import build, log_weights, testing
from pyrovae.testing import check_pair


@pytest.fixture(autouse=True)
def _store():
    with pyro.get_param_store().scope():
        yield


BROKEN = [
    (broken.missing_to_event, "z", r"to_event"),
    (broken.missing_plate, "z", r"in the model it stands outside the data's plate"),
    (broken.extra_latent, "u", r"the guide samples it but the model does not"),
    (broken.missing_latent, "z", r"latent in the model but the guide does not sample it"),
    (
        broken.scaled_on_one_side, "z",
        r"site 'z': TraceMeanField uses the guide's scale 0\.1, the model's is 1\.0",
    ),
    (broken.masked_on_one_side, "z", r"guide's mask, True at row 0, the model's is False"),
    (
        broken.batch_centring, "z",
        r"the guide's log-density of row 0 changes .* rows 0\.\.2 alone: it depends on other rows",
    ),
    (broken.data_order, "z", r"in reverse order: it depends on the order of the data"),
    (broken.a_parameter_for_each_row, "guide", r"the guide cannot be run with rows 0\.\.2 alone"),
    (broken.no_rsample, "z", r"the guide's MixtureSameFamily has no rsample, so Trace_ELBO falls"),
    (
        broken.bottom_up, "top, z",
        r"a bottom-up guide: p\(z\|...\) on 'top', drawn from 'z'",
    ),
    (broken.grey_pixels, "x", r"support of Bernoulli \(Boolean\); got 30 of 30 .*binarise them"),
    (partial(broken.grey_pixels, True), "x", r"support of Bernoulli \(Boolean\); got 30 of 30"),
    (
        broken.shared_names, "encoder$$$weight",
        r"'encoder\$\$\$weight': the parameter store holds another tensor .* is never trained",
    ),
    (broken.shared_names_within, "net$$$weight", r"holds another tensor under this name"),
    (
        broken.scale_grows_with_the_batch, "z",
        r"the scale is 0\.006 on 6 rows and 0\.003 on 3: expected",
    ),
    (broken.plates_of_two_sizes, "z", r"the guide's plate scales by 1, the model's by 166\.667"),
    (broken.likelihood_alone_is_scaled, "z", r"their ratio depends on the batch size"),
    (
        broken.not_finite, "x",
        r"its log-density in the model is -inf at row 3; not finite at 1 of 6 rows",
    ),
    (broken.not_a_number, "z", r"its log-density in the guide is nan at row 4"),
    (broken.not_a_number, "pair", r"alone, row 4 fails and others do not"),
    (broken.off_support, "z", r"off the support GreaterThanEq.* of the model's Exponential"),
    (broken.crashes, "pair", r"TypeError"),
    (partial(broken.off_by_a_constant, 0.01), "z", r"integrates to 1\.0101 .* off by 0\.01"),
    (partial(broken.off_by_a_constant, -0.01), "z", r"integrates to 0\.99005 .* off by -0\.01"),
    (partial(broken.off_by_a_constant, -0.01), "z", r"E\[w\] exceeds p\(x\) by 0\.00"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "site", "message"), BROKEN, ids=lambda v: getattr(v, "__name__", None)
)
def test_broken_pairs_are_named(make, site, message):
    report = check_pair(*make())
    assert not report.ok
    found = [f for f in report.failures if f.site == site and re.search(message, f.message)]
    assert found, str(report)


def of_parts(vae, n=6):
    return vae.model, vae.guide, vae.sample(n)


def grid():
    """Every prior, every posterior and every likelihood, each with the first that it goes with.

    All pairs of prior and posterior are trained in test_catalogue, and their ELBOs compared in
    test_objectives.
    """
    bernoulli = LIKELIHOODS[0]
    pairs = compatible(tuple(PRIORS), tuple(POSTERIORS), bernoulli)
    firsts = {p: (p, q) for p, q in reversed(pairs)}, {q: (p, q) for p, q in reversed(pairs)}
    some = dict.fromkeys(pair for first in firsts for pair in first.values())
    return [(p, q, bernoulli) for p, q in some] + [
        (PRIORS[0], POSTERIORS[0], like) for like in LIKELIHOODS[1:]
    ]


def named(case):
    return case.id


@pytest.mark.parametrize(("prior", "posterior", "likelihood"), grid(), ids=named)
def test_every_shipped_pair_passes(prior, posterior, likelihood):
    report = check_pair(*of_parts(shipped(prior, posterior, likelihood)))
    assert report.ok, str(report)
    assert "float64" in report.subject


class Decoder(nn.Module):
    def __init__(self, z_dim, hidden_dim):
        super().__init__()
        self.fc1, self.fc21 = nn.Linear(z_dim, hidden_dim), nn.Linear(hidden_dim, broken.D)

    def forward(self, z):
        return torch.sigmoid(self.fc21(nn.functional.softplus(self.fc1(z))))


class Encoder(nn.Module):
    def __init__(self, z_dim, hidden_dim):
        super().__init__()
        self.fc1 = nn.Linear(broken.D, hidden_dim)
        self.fc21, self.fc22 = nn.Linear(hidden_dim, z_dim), nn.Linear(hidden_dim, z_dim)

    def forward(self, x):
        hidden = nn.functional.softplus(self.fc1(x))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


def pyro_example():
    """Pyro's examples/vae/vae.py, small, as two functions."""
    decoder, encoder, z_dim = Decoder(3, 8), Encoder(3, 8), 3

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], z_dim, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], z_dim, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = decoder(z)
            pyro.sample("obs", dist.Bernoulli(loc_img).to_event(1), obs=x)
            return loc_img

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = encoder(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))

    return model, guide, broken.bits()


class Model(PyroModule):
    def __init__(self):
        super().__init__()
        self.decoder = PyroModule[nn.Linear](broken.LATENT, broken.D)
        self.scale = PyroParam(torch.tensor(0.5), constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", broken.prior())
            pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(broken.D, broken.LATENT)
        self.width = nn.Parameter(torch.zeros(broken.LATENT))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            q = dist.Normal(self.encoder(x), self.width.exp()).to_event(1)
            pyro.sample("z", q)


def pyro_modules():
    return Model(), Guide(), broken.data()


def conditional(size=None):
    return *users.conditional(*users.networks(), size), *users.batch()


def beta_on_both_sides():
    def scaled(function):
        def run(x):
            with poutine.scale(scale=4.0):
                function(x)

        return run

    def model(x):
        with broken.plate(x):
            with poutine.scale(scale=4.0):
                z = pyro.sample("z", broken.prior())
            pyro.sample("x", broken.likelihood(z), obs=x)

    return model, scaled(broken.guide), broken.data()


def mixture(amortised):
    """p(k) p(x | k), with the exact posterior of k or an amortised one."""
    logits, locs = torch.tensor([0.3, -0.2, 0.0]), torch.tensor([-2.0, 0.0, 1.5])
    encoder = nn.Linear(broken.D, 3)

    def likelihood(k):
        return dist.Normal(locs[k][..., None].expand(*k.shape, broken.D), 1.0).to_event(1)

    def model(x):
        with broken.plate(x):
            k = pyro.sample("k", dist.Categorical(logits=logits))
            pyro.sample("x", likelihood(k), obs=x)

    def guide(x):
        if amortised:
            pyro.module("encoder", encoder)
            q = encoder(x)
        else:
            q = logits + likelihood(torch.arange(3)).log_prob(x[:, None])
        with broken.plate(x):
            pyro.sample("k", dist.Categorical(logits=q))

    return model, guide, broken.data()


def masked():
    def mask(function):
        def run(x):
            with poutine.mask(mask=x[:, 0] > 0):
                function(x)

        return run

    return mask(broken.model), mask(broken.guide), broken.data()


def large_scale():
    """784 dimensions are not needed to see that a weight of every site is no beta."""
    model, guide, x = pyro_example()
    return poutine.scale(model, scale=1 / 6), poutine.scale(guide, scale=1 / 6), x


RIGHT = {
    "two functions": lambda: (broken.model, broken.guide, broken.data()),
    "two rows": lambda: (broken.model, broken.guide, broken.data(2)),
    "exact in 1-d": partial(broken.off_by_a_constant, 0.0),
    "Pyro's example": pyro_example,
    "PyroModules": pyro_modules,
    "conditional": conditional,
    "conditional, of 1,000": partial(conditional, 1000),
    "beta on both sides": beta_on_both_sides,
    "exact mixture": partial(mixture, False),
    "amortised mixture": partial(mixture, True),
    "two layers, top down": broken.top_down,
    "masked on both sides": masked,
    "modules": lambda: broken.named_modules(*broken.networks()) + (broken.data(),),
    "scaled as a whole": large_scale,
}


@pytest.mark.parametrize("make", RIGHT.values(), ids=RIGHT.keys())
def test_pairs_that_are_right_pass(make):
    report = check_pair(*make())
    assert report.ok, str(report)


def rows(report, verdict):
    return {r.name: r.detail for r in report.rows if r.verdict == verdict}


def test_notes():
    beta = check_pair(*beta_on_both_sides())
    assert rows(beta, "note") == {"scales": "a beta-ELBO with beta = 4 for 'z'"}
    discrete = rows(check_pair(*mixture(True)), "note")
    assert "TraceEnum_ELBO does" in discrete["reparameterisation"]
    assert "does not apply" in discrete["TraceMeanField_ELBO"]
    vae = build(data_shape=(4,), latent_dim=3, prior="mixture-of-normals", hidden=(3,))
    sampled = rows(check_pair(*of_parts(vae)), "note")
    assert "sampled KL, none is registered for" in sampled["closed KL"]
    vae = build(data_shape=(4,), latent_dim=3, hidden=(3,))

    def unregistered(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.posterior(x))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", vae.likelihood(pyro.sample("z", vae.prior())), obs=x)

    loose = rows(check_pair(model, unregistered, vae.sample(5), modules=[vae]), "note")
    assert "8 parameters, the first 'likelihood" in loose["module names"]


def test_the_estimators_have_values_of_their_own():
    """The exact posterior: every estimator is log p(x), in closed form."""
    model, guide, x = broken.off_by_a_constant(0.0)
    pyro.param("bias", torch.tensor(0.0))
    report = check_pair(model, guide, x)
    covariance = torch.eye(broken.D) + torch.ones(broken.D, broken.D)
    log_p = dist.MultivariateNormal(torch.zeros(broken.D), covariance).log_prob(x)
    found = {r.name: r for r in report.rows if r.value is not None}
    assert list(found) == [
        "Trace_ELBO", "IWAE-1", "log_weights, K = 8", "TraceMeanField_ELBO", "IWAE-1000", "log p(x)"
    ]  # fmt: skip
    for name, row in found.items():
        tolerance = 1e-4 + 6 * (row.standard_error or 1e-4)
        assert row.value == pytest.approx(float(log_p.mean()), abs=tolerance), name
    assert found["Trace_ELBO"].gradient < 1e-6
    assert found["log p(x)"].value == pytest.approx(float(log_p.mean()), abs=1e-6)


def test_values_are_per_datum_of_the_whole_set():
    few, many = (check_pair(*conditional(size)) for size in (None, 1000))
    for a, b in zip(few.rows, many.rows, strict=True):
        assert (a.value is None) == (b.value is None)
        if a.value is not None:
            assert a.value == pytest.approx(b.value)


def test_nothing_is_left_changed():
    vae = build(data_shape=(4,), latent_dim=2, hidden=(3,))
    model, guide, x = pyro_modules()
    model(x), guide(x)
    pyro.param("mine", torch.tensor(3.0))
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    store = pyro.get_param_store()
    names = set(store.keys())
    before = {k: (id(p), p.detach().clone(), p.dtype) for k, p in store.named_parameters()}
    modules = [vae, model, guide]
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in modules]
    for pair in (of_parts(vae), (model, guide, x)):
        assert check_pair(*pair).ok
    assert torch.equal(torch.rand(1), expected)
    assert set(store.keys()) == names
    for k, p in store.named_parameters():
        assert id(p) == before[k][0] and torch.equal(p, before[k][1]) and p.dtype == before[k][2]
    for m, state in zip(modules, states, strict=True):
        assert m.training and all(p.grad is None for p in m.parameters())
        assert all(torch.equal(v, state[k]) and v.dtype == state[k].dtype
                   for k, v in m.state_dict().items())  # fmt: skip


def test_the_store_is_seen():
    """A parameter of the caller's store is the one that is checked."""
    model, guide, x = broken.off_by_a_constant(0.0)
    pyro.param("bias", torch.tensor(2.0))
    report = check_pair(model, guide, x)
    values = {r.name: r.value for r in report.rows}
    assert values["Trace_ELBO"] == pytest.approx(values["log p(x)"] - 2.0**2 * 6 / 2, abs=2)


def test_pairs_in_float32_alone():
    """Constants that no module holds keep a pair in float32."""
    weight = torch.randn(broken.LATENT, broken.D)

    def model(x):
        with broken.plate(x):
            z = pyro.sample("z", broken.prior())
            pyro.sample("x", dist.Normal(z.float() @ weight, 1.0).to_event(1), obs=x)

    def guide(x):
        with broken.plate(x):
            pyro.sample("z", dist.Normal(x.float() @ weight.T, 1.0).to_event(1))

    report = check_pair(model, guide, broken.data())
    assert report.ok and "float32" in report.subject, str(report)


def test_the_same_seed_gives_the_same_report():
    pair = pyro_example()
    first, same, other = (str(check_pair(*pair, seed=seed)) for seed in (0, 0, 1))
    assert first == same != other


def test_bad_data_are_refused():
    for x, message in [
        (torch.zeros(0, broken.D), "at least one row"),
        (torch.zeros(1, broken.D), "at least 2 rows; got 1"),
        (torch.full((3, broken.D), math.nan), "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_pair(broken.model, broken.guide, x)


def test_the_first_64_rows_are_used():
    report = check_pair(broken.model, broken.guide, broken.data(100))
    assert "64 rows" in report.subject and report.ok


def test_the_table():
    report = check_pair(*broken.scaled_on_one_side())
    lines = str(report).splitlines()
    assert lines[0].startswith("model model, guide scaled_on_one_side")
    assert re.match(r"estimator or law +value +standard error +gradient diff\. +verdict", lines[1])
    assert max(map(len, lines[1:])) < 150
    starts = {
        line.index(word) for line in lines[2:] for word in (" ok ", " FAILS ") if word in line
    }
    assert len(starts) == 1  # aligned
    assert isinstance(report, testing.Report)


@pytest.mark.slow
def test_false_alarms():
    """200 runs on pairs that are right, of seeds 0 to 199: at most one alarm."""
    makers = [*RIGHT.values(), lambda: of_parts(build(data_shape=(4,), latent_dim=2, hidden=(3,)))]
    alarms = []
    for seed in range(200):
        torch.manual_seed(seed)
        with pyro.get_param_store().scope():
            report = check_pair(*makers[seed % len(makers)](), seed=1000 * seed)
        alarms += [(seed, f.message) for f in report.failures]
    print(f"{len(alarms)} alarms in 200 runs: {alarms}")
    assert len(alarms) <= 1, alarms


def test_a_global_latent_beside_others_is_told_of():
    """It is no broken rule: what is asked of a datum is asked given one draw of it."""
    model, guide, x = broken.global_latent()
    report = check_pair(model, guide, x)
    assert report.ok, str(report)
    (row,) = [r for r in report.rows if r.name == "global latents"]
    assert row.verdict == "note" and "w: outside the data's plate" in row.detail
    with pytest.raises(ValueError, match="site 'w': .* outside the data's plate"):
        log_weights(model, guide, x)
