"""Objectives that couple a batch: FreeBits, Capacity, BetaTC, InfoVAE, MMD; each written out."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from fixed_noise import LATENT, D, Given, N, Noisy, batch, evaluated
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy.special import logsumexp
from scipy.stats import norm
from torch import nn

from pyrovae import build, fit, objectives
from pyrovae.distributions import seeded
from pyrovae.importance import particles
from pyrovae.objectives import MMD, BetaTC, Capacity, FreeBits, InfoVAE
from pyrovae.objectives.aggregate import mmd2

COUPLING = [
    FreeBits(0.3),
    FreeBits(0.3, per="site"),
    Capacity(3.0, 2.0),
    BetaTC(),
    InfoVAE(),
    MMD(),
]
each = pytest.mark.parametrize("objective", COUPLING, ids=lambda o: type(o).__name__)


class Written(Noisy):
    """`Noisy` whose prior's draws are given too, by a second context."""

    def model(self, x, noise, of_prior):
        pyro.module("noisy", self)
        with self.around(x), self.plate(x):
            z = pyro.sample("z", Given(self.loc, torch.ones_like(noise), of_prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x, noise, of_prior):
        super().guide(x, noise)


def rows():
    x, noise = batch()
    generator = torch.Generator().manual_seed(99)
    return x, noise, torch.randn(N, LATENT, generator=generator).double()


def terms(theta, x, noise, of_prior):
    """log p(x|z), q's mean and scale, z, draws of the prior, its mean: from a flat vector."""
    sizes = [(2,), (4, 2), (4,), (4, 4), (4,)]
    parts = np.split(theta, np.cumsum([math.prod(s) for s in sizes])[:-1])
    loc, wd, bd, we, be = (p.reshape(s) for p, s in zip(parts, sizes, strict=True))
    mean, log_scale = np.split(x @ we.T + be, 2, axis=1)
    scale = np.exp(log_scale)
    z = mean + scale * noise
    logits = z @ wd.T + bd
    likelihood = (x * logits - np.logaddexp(0, logits)).sum(1)
    return likelihood, mean, scale, z, loc + of_prior, loc


def kl_of(mean, scale, loc):
    return 0.5 * (scale**2 + (mean - loc) ** 2 - 1) - np.log(scale)


def free_bits(nats, per):
    def total(theta, *data):
        likelihood, mean, scale, _, _, loc = terms(theta, *data)
        kl = kl_of(mean, scale, loc).mean(0)
        groups = kl if per == "dimension" else kl.sum(keepdims=True)
        return likelihood.sum() - len(likelihood) * np.maximum(nats, groups).sum()

    return total


def capacity(gamma, at):
    def total(theta, *data):
        likelihood, mean, scale, _, _, loc = terms(theta, *data)
        kl = kl_of(mean, scale, loc).sum(1).mean()
        return likelihood.sum() - len(likelihood) * gamma * abs(kl - at)

    return total


def beta_tc(beta, alpha, gamma, estimator, size):
    def total(theta, *data):
        likelihood, mean, scale, z, _, loc = terms(theta, *data)
        b = len(z)
        own = norm.logpdf(z, mean, scale).sum(1)
        joint, product = np.zeros(b), np.zeros(b)
        for i in range(b):
            log_q = norm.logpdf(z[i], mean, scale)  # (B, d)
            weight = np.full(b, 1 / (size * b))
            if estimator == "stratified":
                weight = np.where(np.arange(b) == i, 1 / size, (size - 1) / (size * (b - 1)))
            joint[i] = logsumexp(log_q.sum(1), b=weight)
            product[i] = logsumexp(log_q, b=weight[:, None], axis=0).sum()
        prior = norm.logpdf(z, loc, 1.0).sum(1)
        penalty = alpha * (own - joint) + beta * (joint - product) + gamma * (product - prior)
        return (likelihood - penalty).sum()

    return total


def info(alpha, weight, h, biased=False):
    def kernel(a, b):
        return math.exp(-((a - b) ** 2).sum() / (2 * h**2))

    def total(theta, *data):
        likelihood, mean, scale, z, y, loc = terms(theta, *data)
        n = len(z)
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j or biased]
        mmd = sum(kernel(z[i], z[j]) + kernel(y[i], y[j]) - 2 * kernel(z[i], y[j])
                  for i, j in pairs) / len(pairs)  # fmt: skip
        kl = kl_of(mean, scale, loc).sum()
        return likelihood.sum() - (1 - alpha) * kl - n * (alpha + weight - 1) * mmd

    return total


WRITTEN = [
    (FreeBits(2.0), free_bits(2.0, "dimension")),
    (FreeBits(30.0, per="site"), free_bits(30.0, "site")),
    (Capacity(3.0, 2.0), capacity(3.0, 2.0)),
    (Capacity(3.0, 40.0), capacity(3.0, 40.0)),
    (BetaTC(3.0, 0.5, 2.0, num_data=50), beta_tc(3.0, 0.5, 2.0, "weighted", 50)),
    (BetaTC(3.0, 0.5, 2.0, "stratified", 50), beta_tc(3.0, 0.5, 2.0, "stratified", 50)),
    (BetaTC(3.0, 0.5, 2.0), beta_tc(3.0, 0.5, 2.0, "weighted", 1)),
    (BetaTC(3.0, 0.5, 2.0, "stratified"), beta_tc(3.0, 0.5, 2.0, "weighted", 1)),
    (InfoVAE(0.3, 4.0, bandwidth=1.3), info(0.3, 4.0, 1.3)),
    (MMD(40.0), info(1.0, 40.0, math.sqrt(2))),
]


def vector(pair):
    return torch.cat([p.detach().flatten() for p in pair.parameters()]).numpy()


@pytest.mark.parametrize(("objective", "total"), WRITTEN, ids=lambda v: type(v).__name__)
def test_value_and_gradient_are_those_written_out(objective, total):
    """In numpy and scipy, the gradient by central differences."""
    pair, data = Written(), rows()
    loss, gradient = evaluated(pair, objective, *data)
    theta, arrays = vector(pair), [t.numpy() for t in data]
    assert -loss == pytest.approx(total(theta, *arrays), rel=1e-12)
    step = 1e-5
    differences = [
        (total(theta + step * e, *arrays) - total(theta - step * e, *arrays)) / (2 * step)
        for e in np.eye(len(theta))
    ]
    torch.testing.assert_close(-gradient, torch.tensor(differences), rtol=1e-6, atol=1e-6)


def test_other_formulas_are_told_apart():
    """Negative controls: max datum by datum, an absolute value datum by datum, pairs of itself."""
    pair, data = Written(), rows()
    theta, arrays = vector(pair), [t.numpy() for t in data]
    likelihood, mean, scale, _, _, loc = terms(theta, *arrays)
    kl = kl_of(mean, scale, loc)
    each_max = likelihood.sum() - np.maximum(2.0, kl).sum()
    each_abs = likelihood.sum() - 3.0 * np.abs(kl.sum(1) - 2.0).sum()
    biased = info(1.0, 40.0, math.sqrt(2), biased=True)(theta, *arrays)
    for objective, wrong in ((FreeBits(2.0), each_max), (Capacity(3.0, 2.0), each_abs),
                             (MMD(40.0), biased)):  # fmt: skip
        assert -evaluated(pair, objective, *data)[0] != pytest.approx(wrong, rel=1e-3)
    assert kl.mean(0).min() < 2.0 < kl.mean(0).max()  # one number below, one above


# masks, scales and plates


@each
def test_masked_data_count_nothing(objective):
    x, noise, of_prior = rows()
    x[:, 0] = (torch.arange(N) < 12).double()
    some = [t[:12] for t in (x, noise, of_prior)]
    got = evaluated(Written(mask=lambda x: x[:, 0] > 0), objective, x, noise, of_prior)
    expected = evaluated(Written(), objective, *some)
    assert got[0] == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-9, atol=1e-10)
    whole = evaluated(Written(), objective, x, noise, of_prior)
    assert got[0] != pytest.approx(whole[0], rel=1e-2)  # negative control


@each
def test_a_plate_of_more_data_multiplies_the_whole(objective):
    data = rows()
    expected = evaluated(Written(), of_size(objective, 3 * N), *data)
    got = evaluated(Written(size=3 * N), objective, *data)
    assert got[0] == pytest.approx(3 * expected[0], rel=1e-12)
    torch.testing.assert_close(got[1], 3 * expected[1], rtol=1e-9, atol=1e-9)


def of_size(objective, num_data):
    return BetaTC(num_data=num_data) if isinstance(objective, BetaTC) else objective


@pytest.mark.parametrize("objective", COUPLING[:3], ids=lambda o: type(o).__name__)
def test_a_scale_a_datum_is_so_many_copies(objective):
    """Whole numbers as scales: the loss of data that are there as often."""
    data, often = rows(), torch.arange(N) % 3 + 1
    got = evaluated(Written(scale=often.double()), objective, *data)
    expected = evaluated(Written(), objective, *(t.repeat_interleave(often, 0) for t in data))
    assert got[0] == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-9, atol=1e-9)
    assert got[0] != pytest.approx(2 * evaluated(Written(), objective, *data)[0], rel=1e-3)


# free bits


@pytest.mark.parametrize("per", ["dimension", "site"])
def test_no_free_bits_are_the_elbo(per):
    data = rows()
    expected = evaluated(Written(), TraceMeanField_ELBO(), *data)
    got = evaluated(Written(), FreeBits(0.0, per), *data)
    assert got[0] == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-9, atol=1e-12)
    other = evaluated(Written(), FreeBits(2.0, per), *data)  # negative control
    assert (per == "site") == (other[0] == pytest.approx(expected[0], rel=1e-9))


def test_below_the_threshold_the_kl_has_no_gradient():
    """Exactly none: of the number that is below, and of all of them where all are."""
    data, pair = rows(), Written()
    evaluated(pair, FreeBits(2.0), *data)
    free = kl_of(*(terms(vector(pair), *(t.numpy() for t in data))[i] for i in (1, 2, 5))).mean(0)
    moved = pair.loc.grad != 0  # the prior's mean is in the KL alone
    assert moved.tolist() == (free > 2.0).tolist() and moved.any() and not moved.all()
    none = evaluated(pair, FreeBits(50.0), *data)[1]
    likelihood = particles(pair.model, pair.guide, *data).log_likelihood.sum()
    gradients = torch.autograd.grad(-likelihood, list(pair.parameters())[1:])
    assert torch.equal(none[:2], torch.zeros(2).double())
    torch.testing.assert_close(none[2:], torch.cat([g.flatten() for g in gradients]))


class TwoSites(nn.Module):
    """p(z2) p(z1|z2) p(x|z1, z2) with q(z2|x) q(z1|x, z2), normal; z1 masked for some."""

    def __init__(self, mask=None):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.up, self.side, self.down = nn.Linear(4, 2), nn.Linear(6, 2), nn.Linear(2, 2)
        self.out = nn.Linear(4, 4)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) / 2
        self.double()
        self.mask = mask

    def model(self, x):
        pyro.module("two", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            with pyro.poutine.mask(mask=True if self.mask is None else self.mask):
                z1 = pyro.sample("z1", dist.Normal(self.down(z2), 0.7).to_event(1))
            logits = self.out(torch.cat([z1, z2], 1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("two", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(self.up(x), 0.5).to_event(1))
            with pyro.poutine.mask(mask=True if self.mask is None else self.mask):
                mean = self.side(torch.cat([x, z2], 1))
                pyro.sample("z1", dist.Normal(mean, 0.4).to_event(1))


@pytest.mark.parametrize("mask", [None, torch.arange(N) < 15])
@pytest.mark.parametrize("per", ["site", "dimension"])
def test_of_two_levels(per, mask):
    """Each site and number a group; the lower KL at the upper draw, of the data that have it."""
    two, x = TwoSites(mask), rows()[0]
    with seeded(3):
        loss = FreeBits(2.0, per).loss(two.model, two.guide, x)
    with seeded(3), torch.no_grad():
        found = particles(two.model, two.guide, x)
        z = {s.name: s.value for s in found.latents}
        upper = 0.5 * (0.25 + two.up(x) ** 2 - 1) - math.log(0.5)
        apart = two.side(torch.cat([x, z["z2"]], 1)) - two.down(z["z2"])
        lower = 0.5 * (0.4**2 / 0.49 + apart**2 / 0.49 - 1) - math.log(0.4 / 0.7)
    total = found.log_likelihood.sum()
    for kl in (upper, lower if mask is None else lower[mask]):
        groups = kl.mean(0) if per == "dimension" else kl.mean(0).sum(0, keepdim=True)
        total = total - len(kl) * groups.clamp(min=2.0).sum()
    assert -loss == pytest.approx(total.item(), rel=1e-12)
    kls = torch.cat([upper.sum(1, keepdim=True), lower.sum(1, keepdim=True)], 1).mean(0)
    assert kls.min() < 2.0 < kls.max()
    with seeded(3):  # Capacity: one KL, of both
        held = Capacity(2.0, 1.5).loss(two.model, two.guide, x)
    kl = upper.sum(1) + (lower.sum(1) if mask is None else lower.sum(1) * mask)
    expected = found.log_likelihood.sum() - N * 2.0 * (kl.mean() - 1.5).abs()
    assert -held == pytest.approx(expected.item(), rel=1e-12)


def test_a_kl_without_closed_form_is_that_of_the_draw():
    vae = build(data_shape=(4,), latent_dim=2, hidden=(5,), posterior="flow-posterior",
                posterior_options={"flow": "planar"}, seed=3).double()  # fmt: skip
    x = rows()[0]
    for objective in (FreeBits(0.0, per="site"), InfoVAE(0.0, 1.0)):
        with seeded(4):
            expected = Trace_ELBO().loss(vae.model, vae.guide, x)
        with seeded(4):
            assert objective.loss(vae.model, vae.guide, x) == pytest.approx(expected, rel=1e-9)


# priors


@pytest.mark.parametrize(
    ("objective", "elbo"),
    [
        (FreeBits(0.0), TraceMeanField_ELBO()),
        (Capacity(1.0, 0.0), TraceMeanField_ELBO()),
        (InfoVAE(0.0, 1.0), TraceMeanField_ELBO()),
        (BetaTC(1.0), Trace_ELBO()),
        (BetaTC(1.0, estimator="stratified", num_data=99), Trace_ELBO()),
    ],
    ids=lambda o: type(o).__name__,
)
def test_of_a_prior_given_context_they_are_the_elbo_too(objective, elbo):
    """p(z|c) of the row's own c, in value and gradient."""
    vae = build(data_shape=(4,), latent_dim=2, hidden=(5,), pair="conditional-vae", seed=3,
                prior="conditional-normal").double()  # fmt: skip
    x, labels = rows()[0], torch.arange(N) % 10
    found = []
    for loss, c in ((elbo, labels), (objective, labels), (objective, labels.flip(0))):
        with seeded(4):
            found.append(evaluated(vae, loss, x, c))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-9)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-7, atol=1e-9)
    assert found[2][0] != pytest.approx(found[0][0], rel=1e-4)  # negative control


def test_mmd_trains_a_prior_whose_draws_have_a_gradient():
    """A mixture's have none: only the KL of InfoVAE trains it, as its docstring says."""
    trained = {}
    for prior in ("learned-normal", "vamp-prior"):
        for objective in (MMD(), InfoVAE(0.0)):
            vae = build(data_shape=(4,), latent_dim=2, hidden=(5,), prior=prior, seed=3)
            objective.loss_and_grads(vae.model, vae.guide, rows()[0].float())
            moved = any(p.grad is not None and p.grad.any() for p in vae.prior.parameters())
            trained[prior, type(objective)] = moved
    assert [key for key, moved in trained.items() if not moved] == [("vamp-prior", MMD)]


# what they say, and what they refuse


def test_they_say_that_they_couple_a_batch():
    coupling = {FreeBits, Capacity, BetaTC, InfoVAE, MMD}
    for name in objectives.__all__:
        cls = getattr(objectives, name)
        assert getattr(cls, "couples_batch", False) == (cls in coupling)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FreeBits(-0.1), r"nats to be finite and in \[0, inf\]; got -0.1"),
        (lambda: FreeBits(math.nan), "nats to be finite"),
        (lambda: FreeBits(math.inf), "nats to be finite"),
        (lambda: FreeBits(per="row"), "'dimension' or 'site'; got 'row'"),
        (lambda: Capacity(gamma=-1.0), "gamma to be finite"),
        (lambda: Capacity(capacity=-1.0), "capacity to be finite"),
        (lambda: Capacity(steps_per_epoch=0), "steps_per_epoch to be a positive whole"),
        (lambda: BetaTC(beta=-1.0), "beta to be finite"),
        (lambda: BetaTC(alpha=math.inf), "alpha to be finite"),
        (lambda: BetaTC(gamma=math.nan), "gamma to be finite"),
        (lambda: BetaTC(estimator="mws"), "'weighted' or 'stratified'; got 'mws'"),
        (lambda: BetaTC(num_data=0), "num_data to be a positive whole number; got 0"),
        (lambda: BetaTC(num_data=9.0), "num_data to be a positive whole number; got 9.0"),
        (lambda: InfoVAE(alpha=1.5), r"alpha to be finite and in \[-inf, 1\]; got 1.5"),
        (lambda: InfoVAE(0.5, 0.4), r"alpha \+ weight >= 1; got 0.5 \+ 0.4"),
        (lambda: InfoVAE(weight=math.inf), "weight to be finite"),
        (lambda: InfoVAE(bandwidth=0.0), "bandwidth to be positive and finite; got 0.0"),
        (lambda: MMD(-1.0), r"alpha \+ weight >= 1"),
        (lambda: mmd2(torch.zeros(1, 2), torch.zeros(3, 2)), "two draws in each sample; got 1 and"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("objective", "pair", "rows_used", "message"),
    [
        (BetaTC(), Noisy(), 1, "BetaTC expected at least two data in a batch; got one: .*batch_si"),
        (InfoVAE(), Noisy(), 1, "InfoVAE expected at least two data in a batch"),
        (MMD(), Noisy(), 1, "MMD expected at least two data in a batch"),
        (BetaTC(num_data=5), Noisy(), N, "num_data >= 20, the batch's data; got 5"),
        (BetaTC(), Noisy(scale=torch.ones(N).double()), N, "BetaTC expected one scale for all"),
        (MMD(), Noisy(scale=torch.ones(N).double()), N, "MMD expected one scale for all data"),
    ],
)
def test_batches_that_are_refused(objective, pair, rows_used, message):
    x, noise = (t[:rows_used] for t in batch())
    with pytest.raises(ValueError, match=message):
        objective.loss(pair.model, pair.guide, x, noise)


@pytest.mark.parametrize("objective", [BetaTC(), InfoVAE(), MMD()], ids=lambda o: type(o).__name__)
def test_several_latent_sites_have_no_one_aggregate_posterior(objective):
    two = TwoSites()
    with pytest.raises(ValueError, match=r"expected one latent site; got \['z2', 'z1'\]: the aggr"):
        objective.loss(two.model, two.guide, rows()[0])


@each
def test_draws_without_a_gradient_are_refused_by_svi_too(objective):
    vae = build(data_shape=(4,), latent_dim=3, prior="one-hot-categorical", hidden=(5,),
                posterior="one-hot-categorical")  # fmt: skip
    with pytest.raises(ValueError, match=r"expected draws with a gradient \(rsample\).*Trace_ELBO"):
        objective.loss_and_grads(vae.model, vae.guide, rows()[0].float())


@each
def test_latents_of_the_guide_alone_are_refused(objective):
    vae = build(data_shape=(4,), latent_dim=2, hidden=(5,))

    def guide(x):
        with pyro.plate("other", len(x)):
            law = dist.Normal(torch.zeros(len(x)), 1.0)
            pyro.sample("a", law, infer={"is_auxiliary": True})
        vae.guide(x)

    with pytest.raises(ValueError, match="in the model too; got auxiliary ones"):
        objective.loss(vae.model, guide, rows()[0].float())


def test_groups_and_products_that_are_none():
    x = rows()[0].float()
    full = build(data_shape=(4,), latent_dim=2, hidden=(5,), posterior="full-rank-normal")
    with pytest.raises(ValueError, match="site 'z': expected products .* take per='site'"):
        FreeBits().loss(full.model, full.guide, x)
    with pytest.raises(ValueError, match="site 'z': expected a guide that is a product .*InfoVAE"):
        BetaTC().loss(full.model, full.guide, x)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="FreeBits expected a latent site; got a guide without"):
        FreeBits().loss(model, lambda x: None, x)


@pytest.mark.parametrize("objective", [BetaTC(), InfoVAE(), MMD()])
def test_a_last_batch_of_one_is_refused_at_the_start(objective):
    vae = build(data_shape=(D,), latent_dim=LATENT, hidden=(4,))
    x, _ = batch()
    before = [p.clone() for p in vae.parameters()]
    with pytest.raises(ValueError, match="20 data in batches of 19 leave 1 for the last: take"):
        fit(vae.model, vae.guide, x, objective, epochs=2, batch_size=19)
    assert all(map(torch.equal, before, vae.parameters()))
    fit(vae.model, vae.guide, x, objective, epochs=1, batch_size=18)
    fit(vae.model, vae.guide, x, FreeBits(), epochs=1, batch_size=19)
