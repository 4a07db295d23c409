"""SemiSupervisedVAE: bounds of log p(x) and log p(x, y) by quadrature and enumeration."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from torch.nn.functional import one_hot

from pyrovae import build, evidence, likelihoods, log_weights, nets, posteriors, priors
from pyrovae.distributions import diagonal_normal, seeded
from pyrovae.importance import posterior_draws
from pyrovae.pairs import ConditionalVAE, SemiSupervisedVAE
from pyrovae.testing import check_pair

D, CLASSES = 4, 3
BITS = (torch.rand(8, D, generator=torch.Generator().manual_seed(1234)) > 0.5).double()
LABELS = torch.tensor([0, 1, 2, -1, -1, 2, -1, -1])
NET = nets.mlp(hidden=(5,), activation="tanh")


def of_parts(
    classifier=posteriors.OneHotCategorical, posterior=posteriors.MeanFieldNormal, **options
):
    """One latent number beside y, classes that are not equally likely, weights that are not 0."""
    pair = SemiSupervisedVAE(
        priors.StandardNormal(1),
        likelihoods.Bernoulli(1, (D,), NET, context_dim=CLASSES),
        posterior((D,), 1, NET, context_dim=CLASSES),
        classifier((D,), CLASSES, NET),
        priors.OneHotCategorical(CLASSES, learnt=True),
        **options,
    ).double()
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for name, p in pair.named_parameters():
            size = 0.3 if name.startswith("posterior") else 0.7
            p.copy_(size * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        pair.posterior.net.output.bias[1:] += 0.8  # q(z|x, y) wide, so that no weight is large
    return pair.eval()


def given_class(pair, x, k):
    """Exactly, (N,): E_q(z|x,y=k)[log p(x|y,z) + log p(z) - log q(z|x,y)], by Gauss and Hermite."""
    nodes, weights = (torch.as_tensor(t) for t in np.polynomial.hermite.hermgauss(60))
    y = one_hot(torch.full((len(x),), k), CLASSES).double()
    q, p_z = pair.posterior(x, y), diagonal_normal(torch.zeros(1).double(), torch.ones(1).double())
    total = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        z = q.mean + math.sqrt(2) * node * q.stddev
        inside = pair.likelihood(z, y).log_prob(x) + p_z.log_prob(z) - q.log_prob(z)
        total = total + weight / math.sqrt(math.pi) * inside
    return total


def exact_bound(pair, x, labels):
    """Eqs. 6 and 7 of Kingma et al. (2014), each datum, (N,)."""
    inner = torch.stack([given_class(pair, x, k) for k in range(CLASSES)], 1)
    log_p = pair.class_prior.logits.log_softmax(-1)
    log_q = pair.classifier(x).logits[:, 0]
    known = (inner + log_p)[torch.arange(len(x)), labels.clamp(min=0)]
    unknown = (log_q.exp() * (inner + log_p - log_q)).sum(1)
    return torch.where(labels < 0, unknown, known)


def estimates(pair, elbo, x, labels, runs=40, copies=50):
    """Means of the ELBO over the data, (runs,), and its gradient, (runs, P)."""
    many = x.repeat(copies, 1), labels.repeat(copies)
    leaves = list(pair.parameters())
    values, gradients = [], []
    for seed in range(runs):
        pyro.set_rng_seed(seed)
        value = -elbo.differentiable_loss(pair.model, pair.guide, *many) / len(many[0])
        values.append(value.detach())
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, leaves)]))
    return torch.stack(values), torch.stack(gradients)


def assert_within(found, expected, errors=5.0):
    """A t of 39 degrees of freedom exceeds 5 with probability 1.3e-5; there are some 100 of them.

    A coordinate that no draw moves has a standard error of 0, but for rounding.
    """
    error = found.std(0) / math.sqrt(len(found))
    assert bool(((found.mean(0) - expected).abs() <= errors * error + 1e-9).all())


ELBOS = {
    "enumerated": TraceEnum_ELBO(max_plate_nesting=1),
    "sampled": Trace_ELBO(),
}
every_elbo = pytest.mark.parametrize("elbo", ELBOS.values(), ids=ELBOS)


def exactly(pair, x, labels):
    value = exact_bound(pair, x, labels).mean()
    gradient = torch.autograd.grad(value, list(pair.parameters()))
    return value.detach(), torch.cat([g.flatten() for g in gradient])


@every_elbo
def test_value_and_gradient_are_those_of_quadrature(elbo):
    pair = of_parts()
    value, gradient = exactly(pair, BITS, LABELS)
    values, gradients = estimates(pair, elbo, BITS, LABELS)
    assert_within(values, value)
    assert_within(gradients, gradient)
    assert (values.std() / math.sqrt(len(values))) < 0.05 and float(gradient.norm()) > 0.1


@every_elbo
def test_other_labels_are_seen(elbo):
    """Negative control: the labels in another order."""
    pair = of_parts()
    value, gradient = exactly(pair, BITS, LABELS.roll(1))
    values, gradients = estimates(pair, elbo, BITS, LABELS)
    with pytest.raises(AssertionError):
        assert_within(values, value)
    with pytest.raises(AssertionError):
        assert_within(gradients, gradient)


class WithoutKL(Messenger):
    """Leave out log p(y) - log q(y|x)."""

    def _pyro_sample(self, msg):
        if msg["name"] == "y":
            msg["scale"] = msg["scale"] * 1e-12


@every_elbo
def test_a_kl_of_y_left_out_is_seen(elbo):
    """Negative control."""
    pair = of_parts()
    value, _ = exactly(pair, BITS, LABELS)
    with WithoutKL():
        values, _ = estimates(pair, elbo, BITS, LABELS)
    with pytest.raises(AssertionError):
        assert_within(values, value)


@pytest.mark.parametrize("posterior", ["FullRankNormal", "LowRankNormal", "MixtureOfNormals"])
def test_other_posteriors_go_through_all_classes_at_once(posterior):
    """Summed over classes and drawn: one mean, within 5 standard errors of their difference."""
    pair = of_parts(posterior=getattr(posteriors, posterior))
    summed, drawn = (estimates(pair, elbo, BITS, LABELS)[0] for elbo in ELBOS.values())
    error = math.sqrt(float(summed.var() + drawn.var()) / len(summed))
    assert abs(float(summed.mean() - drawn.mean())) < 5 * error < 0.2


def test_straight_through_has_the_same_value():
    pair = of_parts(posteriors.StraightThrough)
    values, gradients = estimates(pair, Trace_ELBO(), BITS, LABELS)
    assert_within(values, exact_bound(pair, BITS, LABELS).mean().detach())
    assert bool(gradients.isfinite().all())


# Evidence


def log_evidence(pair, x, labels):
    """log p(x) or log p(x, y), (N,): each class by quadrature of the `ConditionalVAE` given it."""
    given = ConditionalVAE(pair.prior, pair.likelihood, pair.posterior, CLASSES)
    log_p_y = pair.class_prior.logits.log_softmax(-1).detach()[0]
    each = []
    for k in range(CLASSES):
        c = torch.full((len(x),), k)
        found = evidence.quadrature(given.model, given.guide, x, c)
        each.append(found.log_evidence + log_p_y[k])
    each = torch.stack(each, 1)
    known = each[torch.arange(len(x)), labels.clamp(min=0)]
    return torch.where(labels < 0, each.logsumexp(1), known)


def test_evidence_is_of_x_alone_or_of_x_and_y():
    """20,000 draws; one of 8 data is 5 standard errors off with probability 5e-6."""
    pair = of_parts()
    expected = log_evidence(pair, BITS, LABELS)
    found = evidence.iwae(pair.model, pair.guide, BITS, LABELS, num_particles=20_000)
    z = (found.log_evidence - expected) / found.standard_error
    assert float(z.abs().max()) < 5 and float(found.standard_error.max()) < 0.02
    hidden = evidence.iwae(pair.model, pair.guide, BITS, num_particles=20_000)  # no label at all
    expected = log_evidence(pair, BITS, torch.full_like(LABELS, -1))
    assert float(((hidden.log_evidence - expected) / hidden.standard_error).abs().max()) < 5
    assert bool((exact_bound(pair, BITS, LABELS) < log_evidence(pair, BITS, LABELS)).all())


def test_evidence_of_other_labels_differs():
    """Negative control: labels in another order, and those that are known taken for unknown."""
    pair = of_parts()
    found = evidence.iwae(pair.model, pair.guide, BITS, LABELS, num_particles=20_000)
    for labels in (LABELS.roll(1), torch.full_like(LABELS, -1)):
        z = (found.log_evidence - log_evidence(pair, BITS, labels)) / found.standard_error
        assert float(z.abs().max()) > 50


def of_discrete_z():
    """z too is one-hot, so that all latents can be enumerated."""
    pair = build(
        data_shape=(D,), latent_dim=4, prior="one-hot-categorical", hidden=(5,),
        posterior="one-hot-categorical", pair="semi-supervised-vae",
        pair_options={"num_classes": CLASSES},
    )  # fmt: skip
    return pair.double().eval()


def test_evidence_by_enumeration_of_y_and_z():
    pair = of_discrete_z()
    log_p_z = pair.prior().logits[0]
    each = torch.empty(CLASSES, 4, len(BITS)).double()
    for k in range(CLASSES):
        for j in range(4):
            z, y = (one_hot(torch.full((len(BITS),), i), n) for i, n in ((j, 4), (k, CLASSES)))
            log_p_x = pair.likelihood(z.double(), y.double()).log_prob(BITS)
            each[k, j] = log_p_x + log_p_z[j] - math.log(CLASSES)
    each = each.logsumexp(1).detach()
    known = each[LABELS.clamp(min=0), torch.arange(len(BITS))]
    expected = torch.where(LABELS < 0, each.logsumexp(0), known)
    found = evidence.enumeration(pair.model, pair.guide, BITS, LABELS)
    torch.testing.assert_close(found.log_evidence, expected, rtol=0, atol=1e-10)
    sampled = evidence.iwae(pair.model, pair.guide, BITS, LABELS, num_particles=5000)
    z = (sampled.log_evidence - expected) / sampled.standard_error
    assert float(z.abs().max()) < 5
    report = check_pair(pair.model, pair.guide, BITS, LABELS)
    assert report.ok, str(report)
    assert "TraceEnum_ELBO does" in " ".join(str(report).split())


def test_a_known_label_costs_nothing_to_draw():
    pair = of_parts()
    drawn = posterior_draws(pair.model, pair.guide, BITS, LABELS, num_draws=50)
    y = drawn.latents["y"]
    seen = LABELS >= 0
    assert torch.equal(y[:, seen].argmax(-1), LABELS[seen].expand(50, -1))
    assert bool((y[:, ~seen].std(0) > 0).any(-1).all())
    of_labels = drawn.log_likelihood["label"]
    expected = pair.class_prior.logits.log_softmax(-1)[0, LABELS.clamp(min=0)] * seen
    torch.testing.assert_close(of_labels, expected.detach().expand(50, -1))


# The classification


def test_training_adds_the_classification_and_nothing_else_does():
    pair = of_parts(alpha=2.5)
    log_q = pair.classifier(BITS).logits[:, 0].log_softmax(-1)
    known = LABELS >= 0
    expected = 2.5 * log_q[known, LABELS[known]].sum()
    for elbo in ELBOS.values():
        losses = []
        for mode in (True, False):
            pair.train(mode)
            with seeded(3):
                losses.append(elbo.differentiable_loss(pair.model, pair.guide, BITS, LABELS))
        torch.testing.assert_close(losses[1] - losses[0], expected)
    weights = [
        log_weights(pair.train(mode).model, pair.guide, BITS, LABELS, num_particles=3)
        for mode in (True, False)
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    without = of_parts(alpha=0.0).train()
    with seeded(3):
        loss = Trace_ELBO().loss(without.model, without.guide, BITS, LABELS)
    with seeded(3):
        assert loss == Trace_ELBO().loss(pair.model, pair.guide, BITS, LABELS)
