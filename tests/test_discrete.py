"""Discrete latents: against torch's distributions, sums over every value, and enumeration."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from pyro import distributions as dist
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch.distributions import kl_divergence

from pyrovae import VAE, build, evidence, likelihoods, nets, posteriors, priors, testing
from pyrovae.distributions import (
    CategoricalVector,
    OneHotGroups,
    RelaxedOneHotGroups,
    StraightThroughGroups,
    seeded,
)
from pyrovae.optimise import adam

NET = nets.mlp(hidden=(7,), activation="tanh")
X = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 1.0]])


def logits(*shape, dtype=torch.float64):
    with seeded(3):
        return torch.randn(*shape, dtype=torch.float64).to(dtype)


# Distributions.


def test_one_group_is_torchs_one_hot_categorical():
    a, b = logits(2, 5, 4)
    ours, other = OneHotGroups(a[:, None]), OneHotGroups(b[:, None])
    theirs, their_other = dist.OneHotCategorical(logits=a), dist.OneHotCategorical(logits=b)
    z = theirs.sample((3,))
    same = torch.testing.assert_close
    same(ours.log_prob(z), theirs.log_prob(z))
    same(ours.entropy(), theirs.entropy())
    same(ours.mean, theirs.mean)
    same(ours.variance, theirs.variance)
    same(kl_divergence(ours, other), kl_divergence(theirs, their_other))
    for expand in (True, False):
        same(ours.enumerate_support(expand), theirs.enumerate_support(expand))
    wide, their_wide = ours.expand((3, 5)), theirs.expand((3, 5))
    assert type(wide) is OneHotGroups
    same(wide.log_prob(z), their_wide.log_prob(z))
    same(wide.enumerate_support(), their_wide.enumerate_support())


def test_one_number_is_torchs_categorical():
    a, b = logits(2, 5, 4)
    ours, theirs = CategoricalVector(a[:, None]), dist.Categorical(logits=a)
    z = theirs.sample((3,))
    torch.testing.assert_close(ours.log_prob(z[..., None].double()), theirs.log_prob(z))
    kl = kl_divergence(theirs, dist.Categorical(logits=b))
    torch.testing.assert_close(kl_divergence(ours, CategoricalVector(b[:, None])), kl)


@pytest.mark.parametrize("cls", [OneHotGroups, StraightThroughGroups, CategoricalVector])
def test_sums_over_every_value(cls):
    p, q = cls(logits(2, 5, 3, 2)[0]), cls(logits(2, 5, 3, 2)[1])  # 3 variables of 2 categories
    z = p.enumerate_support()
    assert z.shape == (8, 5, *p.event_shape)
    assert p.enumerate_support(expand=False).shape == (8, 1, *p.event_shape)
    assert len({tuple(row.tolist()) for row in z[:, 0]}) == 8
    assert bool(p.support.check(z).all())
    log_p, log_q = p.log_prob(z), q.log_prob(z)
    weights = log_p.exp()
    same = torch.testing.assert_close
    same(weights.sum(0), torch.ones(5).double())
    same(p.entropy(), -(weights * log_p).sum(0))
    same(kl_divergence(p, q), (weights * (log_p - log_q)).sum(0))
    same(kl_divergence(p.expand((4, 5)), q), kl_divergence(p, q).expand(4, 5))
    mean = (weights[..., None] * z).sum(0)
    same(p.mean, mean)
    same(p.variance, (weights[..., None] * (z - mean).square()).sum(0))
    assert (kl_divergence(p, q) - kl_divergence(q, p)).abs().max() > 0.01  # negative control
    with seeded(0):
        draws = p.sample((20_000,))
    found = (draws[:, None] == z).all(-1).double().mean(0)
    assert ((found - weights).abs() < 5 * (weights * (1 - weights) / 20_000).sqrt()).all()


def test_impossible_categories_are_0_log_0():
    certain = torch.tensor([[0.0, -math.inf]], requires_grad=True)
    p = OneHotGroups(certain)
    assert p.log_prob(torch.tensor([1.0, 0.0])) == 0
    assert p.log_prob(torch.tensor([0.0, 1.0])) < -1e30
    assert p.entropy() == 0
    assert kl_divergence(p, OneHotGroups(torch.zeros(1, 2))).item() == pytest.approx(math.log(2))


def test_other_values_have_no_kl():
    with pytest.raises(ValueError, match="1 group of 4 and one-hot vectors, 2 groups of 2"):
        kl_divergence(OneHotGroups(logits(1, 4)), OneHotGroups(logits(2, 2)))
    with pytest.raises(NotImplementedError):
        kl_divergence(OneHotGroups(logits(2, 2)), CategoricalVector(logits(2, 2)))


def test_straight_through_gradient():
    """Exact for a linear function and for log q(z), in the mean; biased for a quadratic one."""
    a = logits(1, 3).requires_grad_()
    c = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    q = StraightThroughGroups(a)
    every = q.enumerate_support()
    probs = q.log_prob(every).exp()

    def gradients(function):
        with seeded(0):
            z = q.rsample((20_000,))
        got = torch.autograd.grad(function(z).mean(), a, retain_graph=True)[0]
        exact = (probs * function(every)).sum()
        return (got - torch.autograd.grad(exact, a, retain_graph=True)[0]).abs().max()

    assert bool(q.support.check(q.rsample((9,))).all())
    assert gradients(lambda z: z @ c) < 1e-12
    assert gradients(q.log_prob) < 5 / math.sqrt(20_000)
    assert gradients(lambda z: (z @ c).square()) > 0.1


# The relaxation.


def test_one_simplex_is_torchs():
    a, t = logits(5, 4), torch.tensor(0.7).double()
    ours, theirs = RelaxedOneHotGroups(t, a[:, None]), dist.RelaxedOneHotCategorical(t, logits=a)
    z = theirs.sample((3,))
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    assert ours.expand((3, 5)).log_prob(z).shape == (3, 5)
    assert (RelaxedOneHotGroups(t / 2, a[:, None]).log_prob(z) - theirs.log_prob(z)).abs().max() > 1


def test_simplices_are_independent():
    a, t = logits(2, 5, 3, 4)[0], torch.tensor(0.7).double()
    together = RelaxedOneHotGroups(t, a)
    z = together.sample((6,))
    assert z.shape == (6, 5, 12)
    apart = sum(
        RelaxedOneHotGroups(t, a[:, g : g + 1]).log_prob(z[..., 4 * g : 4 * g + 4])
        for g in range(3)
    )
    torch.testing.assert_close(together.log_prob(z), apart)


def test_draws_of_the_relaxation_are_logistic():
    """T logit(z_1) - (log pi_1 - log pi_2) is standard logistic (Maddison et al. 2017)."""
    a, t = logits(2, 2), 0.6
    with seeded(0):
        z = RelaxedOneHotGroups(torch.tensor(t).double(), a).sample((5000,))
    for g in (0, 1):
        logit = z[:, 2 * g].log() - z[:, 2 * g + 1].log()
        shift = float(a[g, 0] - a[g, 1])
        assert scipy.stats.kstest(t * logit - shift, "logistic").pvalue > 1e-4
        assert scipy.stats.kstest(1.15 * t * logit - shift, "logistic").pvalue < 1e-4  # control


@pytest.mark.parametrize("temperature", [0.02, 0.1, 0.5, 5.0])
def test_float32_near_vertices(temperature):
    """Finite where torch's is not, and as float64 says."""
    t, sharp = torch.tensor(temperature), 20 * logits(2, 3, dtype=torch.float32)
    sharp.requires_grad_()
    q = RelaxedOneHotGroups(t, sharp)
    with seeded(0):
        z = q.rsample((2000,))
    log_q = q.log_prob(z)
    assert bool(q.support.check(z).all())
    assert bool(log_q.isfinite().all())
    same = RelaxedOneHotGroups(t.double(), sharp.detach().double()).log_prob(z.detach().double())
    assert ((log_q.double() - same).abs() / (1 + same.abs())).max() < 1e-4
    (log_q.sum() + z.sum()).backward()
    assert bool(sharp.grad.isfinite().all())
    corner = torch.tensor([1.0, 0, 0, 0, 1, 0], requires_grad=True)
    q.log_prob(corner).backward()
    assert bool(corner.grad.isfinite().all())
    if temperature < 0.5:  # negative control
        theirs = dist.RelaxedOneHotCategorical(t, logits=sharp.detach(), validate_args=False)
        assert not bool(theirs.log_prob(theirs.sample((2000,))).isfinite().all())


# Pairs.


def pair(prior, posterior, d=4, seed=0, **options):
    with seeded(seed):
        return VAE(
            getattr(priors, prior)(d, **options),
            likelihoods.Bernoulli(d, (4,), NET),
            getattr(posteriors, posterior)((4,), d, NET, **options),
        )


PAIRS = [
    ("OneHotCategorical", "OneHotCategorical", {}),
    ("OneHotCategorical", "OneHotCategorical", {"groups": 2}),
    ("OneHotCategorical", "StraightThrough", {"groups": 2}),
    ("Categorical", "Categorical", {"num_levels": 3}),
    ("GumbelSoftmax", "GumbelSoftmax", {"groups": 2}),
    ("GumbelSoftmax", "GumbelSoftmax", {"temperature": 0.3}),
]


@pytest.mark.parametrize(("prior", "posterior", "options"), PAIRS)
def test_the_pairs_are_right(prior, posterior, options):
    vae = pair(prior, posterior, **options)
    report = testing.check_pair(vae.model, vae.guide, X)
    assert report.ok, str(report)


def test_evidence_of_the_relaxation():
    """IWAE's, against the integral over the segment (t, 1 - t), by the logit of t."""
    vae, x, k = pair("GumbelSoftmax", "GumbelSoftmax", d=2).double(), X.double(), 20_000
    u = torch.linspace(-60, 60, 6001, dtype=torch.float64)
    z = torch.stack([u.sigmoid(), (-u).sigmoid()], -1)[:, None].expand(-1, 3, 2)
    log_joint = vae.prior().log_prob(z) + vae.likelihood(z).log_prob(x)
    exact = (log_joint + (z.log().sum(-1) + math.log(0.02))).logsumexp(0)
    found = evidence.iwae(vae.model, vae.guide, x, num_particles=k)
    assert ((found.log_evidence - exact).abs() < 5 * found.standard_error).all()
    q = vae.posterior(x)  # negative control: draws of another temperature than the density's
    z = RelaxedOneHotGroups(q.temperature / 2, q.logits).sample((k,))
    log_w = vae.prior().log_prob(z) + vae.likelihood(z).log_prob(x) - q.log_prob(z)
    off = log_w.logsumexp(0) - math.log(k) - exact
    assert (off.abs() > 5 * found.standard_error).all()


@pytest.mark.parametrize(("prior", "posterior", "options"), PAIRS[:4])
def test_evidence_by_enumeration(prior, posterior, options):
    vae = pair(prior, posterior, **options).double()
    found = evidence.exact(vae.model, vae.guide, X.double())
    assert found.method == "enumeration"
    levels = range(options.get("num_levels", 4 // options.get("groups", 1)))
    eye = np.eye(len(levels))
    total = 0.0
    for c in itertools.product(
        levels, repeat=4 if prior == "Categorical" else options.get("groups", 1)
    ):
        z = c if prior == "Categorical" else np.concatenate([eye[i] for i in c])
        p = torch.sigmoid(vae.likelihood.net(torch.tensor(z, dtype=torch.float64)[None]))
        total = total + torch.where(X == 1, p, 1 - p).prod(-1) / len(levels) ** len(c)
    torch.testing.assert_close(found.log_evidence, total.log().detach())
    split = evidence.identity(vae.model, vae.guide, X.double())
    assert split.residual.abs().max() < 1e-10


@pytest.mark.parametrize(("prior", "posterior", "options"), [*PAIRS[:2], PAIRS[3]])
def test_enumerated_elbo_is_exact(prior, posterior, options):
    """TraceEnum_ELBO is the sum over every z, and so are its gradients."""
    vae = pair(prior, posterior, **options).double()
    x = X.double()
    guide = config_enumerate(vae.guide)
    got = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(vae.model, guide, x)
    q = vae.posterior(x)
    z = q.enumerate_support()
    log_q = q.log_prob(z)
    terms = vae.prior().log_prob(z) + vae.likelihood(z).log_prob(x) - log_q
    expected = -(log_q.exp() * terms).sum()
    torch.testing.assert_close(got, expected)
    leaves = [p for p in vae.parameters() if p.requires_grad]
    grads = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (got, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    split = evidence.identity(vae.model, vae.guide, x)
    torch.testing.assert_close(split.elbo.sum(), -got.detach())
    one = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)  # negative control: sampled
    assert (one - expected).abs() > 1e-3


def trained(posterior, elbo, steps=200):
    """Mean exact log p(x) of two patterns, after training; log 1/2 is the best."""
    x = torch.eye(2).repeat_interleave(4, 1).repeat(5, 1)
    with seeded(0):
        vae = VAE(
            priors.OneHotCategorical(4, groups=2),
            likelihoods.Bernoulli(4, (8,), NET),
            posterior((8,), 4, NET, groups=2),
        )
        enumerate_it = isinstance(elbo, TraceEnum_ELBO)
        guide = config_enumerate(vae.guide) if enumerate_it else vae.guide
        optim = adam(list(vae.parameters()), lr=0.05)
        for _ in range(steps):
            optim.zero_grad()
            (elbo.differentiable_loss(vae.model, guide, x) / len(x)).backward()
            optim.step()
    return evidence.exact(vae.model, vae.guide, x[:2]).log_evidence.mean().item()


def test_training():
    straight = trained(posteriors.StraightThrough, TraceMeanField_ELBO())
    summed = trained(posteriors.OneHotCategorical, TraceEnum_ELBO(max_plate_nesting=1))
    assert -0.71 < summed < -math.log(2)
    assert -math.log(4) - 0.1 < straight < -math.log(2)  # one code a pattern at the worst, of 4
    untrained = trained(posteriors.StraightThrough, TraceMeanField_ELBO(), steps=0)
    assert untrained < -5


def test_straight_through_kl_is_closed():
    vae = pair("OneHotCategorical", "StraightThrough", groups=2)
    with seeded(0):
        loss = TraceMeanField_ELBO().differentiable_loss(vae.model, vae.guide, X)
    with seeded(0):
        z = vae.posterior(X).rsample()
    kl = kl_divergence(vae.posterior(X), vae.prior())
    assert not vae.posterior(X).has_enumerate_support  # TraceEnum_ELBO would count it wrongly
    torch.testing.assert_close(loss, (kl - vae.likelihood(z).log_prob(X)).sum())


def test_too_many_values():
    vae = pair("OneHotCategorical", "OneHotCategorical", d=80, groups=40)
    with pytest.raises(ValueError, match="at most 100,000 joint values to enumerate; got 2 to the"):
        evidence.exact(vae.model, vae.guide, X)
    assert testing.check_pair(vae.model, vae.guide, X).ok


def test_by_name():
    vae = build(
        data_shape=(4,), latent_dim=6, prior="one-hot-categorical", posterior="straight-through",
        hidden=(5,), prior_options={"groups": 3}, posterior_options={"groups": 3},
    )  # fmt: skip
    assert vae.encode(X).probs.shape == (3, 3, 2)
    assert vae.sample(5).shape == (5, 4)
    assert vae.reconstruct(X).shape == X.shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.OneHotCategorical(5, groups=2), "latent_dim 5 and groups 2"),
        (lambda: priors.OneHotCategorical(4, groups=4), "at least 2 categories"),
        (lambda: posteriors.StraightThrough((4,), 4, groups=0), "groups 0"),
        (lambda: posteriors.GumbelSoftmax((4,), 4, temperature=0.0), "positive number; got 0.0"),
        (lambda: priors.GumbelSoftmax(4, temperature=math.nan), "positive number; got nan"),
        (lambda: priors.Categorical(4, num_levels=1), "num_levels to be a whole number >= 2"),
        (lambda: posteriors.Categorical((4,), 4, num_levels=2.5), "got 2.5"),
        (
            lambda: pair("OneHotCategorical", "GumbelSoftmax", groups=2),
            "'one-hot vectors, 2 groups of 2'.*'the simplex, 2 groups of 2'",
        ),
        (
            lambda: VAE(
                priors.OneHotCategorical(4, groups=2),
                likelihoods.Bernoulli(4, (4,), NET),
                posteriors.OneHotCategorical((4,), 4, NET),
            ),
            "2 groups of 2'.*'one-hot vectors, 1 group of 4'",
        ),
        (
            lambda: VAE(
                priors.Categorical(4),
                likelihoods.Bernoulli(4, (4,), NET),
                posteriors.Categorical((4,), 4, NET, num_levels=3),
            ),
            "'whole numbers 0 to 9'.*'whole numbers 0 to 2'",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
