"""The conditional VAE: log p(x|c) in closed form, its gradient, and digits drawn by class."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyrovae import build, data, evidence, fit, load, log_weights
from pyrovae.objectives import ManualELBO
from pyrovae.pairs import VAE, ConditionalVAE
from pyrovae.posteriors import FullRankNormal
from pyrovae.priors import ConditionalNormal, StandardNormal

LATENT, D, CLASSES, N = 2, 4, 3, 6
NOISE = 0.7
LINEAR = {
    "data_shape": (D,), "latent_dim": LATENT, "likelihood": "normal", "hidden": (),
    "posterior": "full-rank-normal", "likelihood_options": {"variance": f"fixed:{NOISE}"},
    "pair": "conditional-vae",
}  # fmt: skip
GIVEN = {"labels": {"num_classes": CLASSES}, "numbers": {"context_dim": CLASSES}}


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1234), dtype=torch.float64)


def linear_pair(given="labels", prior="conditional-normal", seed=0):
    """x = W z + V c + b + noise, z given c normal; c as the user gives it, and as the parts see it.

    Its guide is the exact posterior, N(S (W'(x - V c - b) / s^2 + m(c) / r^2), S) where the prior's
    scale r is the same for all c.
    """
    pair = build(**LINEAR, prior=prior, pair_options=GIVEN[given], seed=seed).double()
    c = torch.arange(N) % CLASSES if given == "labels" else drawn(N, CLASSES)
    seen = torch.nn.functional.one_hot(c, CLASSES).double() if given == "labels" else c
    w, v, b = decoder(pair)
    mean, scale = conditional_prior(pair, torch.eye(CLASSES).double(), freeze=True)
    origin, _ = conditional_prior(pair, torch.zeros(1, CLASSES).double())
    spread = torch.linalg.inv(scale[0].square().reciprocal().diag() + w.T @ w / NOISE**2)
    from_x = spread @ w.T / NOISE**2
    of_prior = spread / scale[0].square()
    tril = torch.linalg.cholesky(spread)
    with torch.no_grad():
        layer = pair.posterior.net.output
        layer.weight.zero_()
        layer.weight[:LATENT] = torch.cat([from_x, of_prior @ (mean - origin).T - from_x @ v], 1)
        centre = of_prior @ origin[0] - from_x @ b
        below = tril[tuple(torch.tril_indices(LATENT, LATENT, -1))]
        layer.bias.copy_(torch.cat([centre, tril.diagonal().log(), below]))
    return pair, drawn(N, D), c, seen


def decoder(pair):
    """W (D, d), V (D, C) and b (D,) of the likelihood's mean."""
    layer = pair.likelihood.net.output
    return layer.weight[:, :LATENT], layer.weight[:, LATENT:], layer.bias


def conditional_prior(pair, seen, freeze=False):
    """Mean and scale of p(z|c), (n, d); with `freeze`, its scale is first made one for all c."""
    prior = getattr(pair.prior, "prior", pair.prior)
    if isinstance(prior, StandardNormal):
        return torch.zeros(len(seen), LATENT).double(), torch.ones(len(seen), LATENT).double()
    if freeze:
        with torch.no_grad():
            prior.net.output.weight[LATENT:] = 0
    mean, log_variance = prior.net(seen).unbind(-2)
    return mean, (0.5 * log_variance).exp()


def closed_form(pair, x, seen):
    """log N(x; W m(c) + V c + b, W diag r(c)^2 W' + s^2 I), (N,)."""
    w, v, b = decoder(pair)
    mean, scale = conditional_prior(pair, seen)
    wide = w * scale.unsqueeze(1)
    covariance = wide @ wide.mT + NOISE**2 * torch.eye(D).double()
    return dist.MultivariateNormal(mean @ w.T + seen @ v.T + b, covariance).log_prob(x)


linear_pairs = pytest.mark.parametrize(
    ("given", "prior"),
    [(g, p) for g in GIVEN for p in ("conditional-normal", "standard-normal")],
)


@linear_pairs
def test_the_evidence_is_that_of_the_closed_form(given, prior):
    pair, x, c, seen = linear_pair(given, prior)
    exact = closed_form(pair, x, seen).detach()
    found = evidence.linear_gaussian(pair.model, pair.guide, x, c)
    torch.testing.assert_close(found.log_evidence, exact, rtol=0, atol=1e-9)
    # the guide is the posterior, so every weight is log p(x|c), for every draw
    weights = log_weights(pair.model, pair.guide, x, c, num_particles=3)
    torch.testing.assert_close(weights, exact.expand(3, N), rtol=0, atol=1e-9)
    elbo = -Trace_ELBO().loss(pair.model, pair.guide, x, c)
    assert elbo == pytest.approx(float(exact.sum()), abs=1e-8)


@linear_pairs
def test_another_context_has_another_evidence(given, prior):
    """Negative control: the rows of c in another order."""
    pair, x, c, seen = linear_pair(given, prior)
    exact = closed_form(pair, x, seen)
    shuffled = evidence.linear_gaussian(pair.model, pair.guide, x, c.roll(1, 0)).log_evidence
    assert bool(((shuffled - exact).abs() > 1e-3).all())


@linear_pairs
@pytest.mark.parametrize("objective", [ManualELBO, TraceMeanField_ELBO])
def test_the_gradient_is_that_of_the_closed_form(given, prior, objective):
    """At the exact posterior E[grad ELBO] = grad log p(x|c), within 5 se of 40 means of 50 draws.

    A t of 39 degrees exceeds 5 with probability 1.3e-5, and there are 30 parameters at the most.
    """
    pair, x, c, seen = linear_pair(given, prior)
    named = {k: p for k, p in pair.named_parameters() if not k.startswith("posterior")}
    exact = torch.autograd.grad(closed_form(pair, x, seen).sum(), list(named.values()))
    for parameter in pair.posterior.parameters():
        parameter.requires_grad_(False)
    draws = {k: [] for k in named}
    repeated = (x.repeat(50, 1), c.repeat(50, *[1] * (c.dim() - 1)))
    for seed in range(40):
        pyro.set_rng_seed(seed)
        loss = objective().differentiable_loss(pair.model, pair.guide, *repeated) / 50
        for k, g in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            draws[k].append(-g)
    for (k, values), expected in zip(draws.items(), exact, strict=True):
        each = torch.stack(values)
        error = each.std(0) / math.sqrt(len(each))
        assert bool(((each.mean(0) - expected).abs() < 5 * error + 1e-9).all()), k
        assert bool((error < 0.2 * expected.abs().max()).all()), k


def test_the_manual_elbo_is_pyros():
    pair, x, c, _ = linear_pair("labels")
    objective = ManualELBO(num_particles=20_000)
    terms = objective.terms(pair.model, pair.guide, x, c)
    exact = evidence.linear_gaussian(pair.model, pair.guide, x, c).log_evidence
    assert float((terms.elbo - exact).detach().abs().max()) < 0.1  # 5 standard errors
    assert terms.kl.shape == (N,)


def test_labels_are_given_one_hot():
    labels, _, c, seen = linear_pair("labels")
    numbers = build(**LINEAR, prior="conditional-normal", pair_options=GIVEN["numbers"]).double()
    state = {k.replace("prior.prior.", "prior."): t for k, t in labels.state_dict().items()}
    numbers.load_state_dict(state)
    x = drawn(N, D)
    for ours, theirs in (
        (labels.encode(x, c), numbers.encode(x, seen)),
        (labels.decode(x[:, :LATENT], c), numbers.decode(x[:, :LATENT], seen)),
        (labels.prior(c), numbers.prior(seen)),
    ):
        torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(labels.sample(N, c), numbers.sample(N, seen))
    torch.testing.assert_close(labels.sample(N), labels.sample(N, torch.arange(N) % CLASSES))
    assert labels.takes_labels and not numbers.takes_labels
    assert labels.decode(torch.zeros(5, N, LATENT).double(), c).batch_shape == (5, N)


def test_it_is_made_of_parts_too():
    parts = {"data_shape": (D,), "latent_dim": LATENT}
    names = build(**LINEAR, prior="conditional-normal", pair_options=GIVEN["labels"])
    by_hand = ConditionalVAE(
        ConditionalNormal(LATENT, context_dim=CLASSES),
        names.likelihood, FullRankNormal(**parts, context_dim=CLASSES), num_classes=CLASSES,
    )  # fmt: skip
    assert by_hand.sample(4).shape == (4, D)
    assert by_hand.prior(torch.tensor([0, 2])).batch_shape == (2,)


def test_a_run_of_masked_data_loads_again(tmp_path):
    names = LINEAR | {"likelihood": "masked:normal", "pair_options": GIVEN["labels"]}
    pair = build(**names, prior="conditional-normal").double()
    x = torch.where(drawn(N, D) > 1, torch.nan, drawn(N, D))
    c = torch.arange(N) % CLASSES
    fit(pair.model, pair.guide, (x, c), epochs=2, run=tmp_path / "a")
    weights = log_weights(pair.model, pair.guide, x, c, num_particles=4)
    loaded = load(tmp_path / "a")
    torch.testing.assert_close(
        log_weights(loaded.model, loaded.guide, x, c, num_particles=4), weights
    )


def bad(**options):
    return lambda: build(**LINEAR | options)


def on(*batch, given="labels"):
    pair = build(**LINEAR, prior="conditional-normal", pair_options=GIVEN[given])
    return lambda: pair.model(*batch)


X = torch.zeros(2, D)
WRONG = {
    "no label": (on(X), r"expected labels \(N,\) as context; got none: give them"),
    "no numbers": (on(X, given="numbers"), "expected context tensors with 3 numbers a datum"),
    "no numbers, any prior": (
        lambda: build(**LINEAR, pair_options=GIVEN["numbers"]).guide(X),
        r"expected real numbers \(N, 3\) as context; got none",
    ),
    "too few numbers": (on(X, torch.zeros(2, 1), given="numbers"), "with 3 numbers a datum"),
    "real labels": (on(X, torch.zeros(2)), r"labels \(N,\), whole numbers; got \(2,\), torch.fl"),
    "one-hot labels": (on(X, torch.zeros(2, 3).long()), r"got \(2, 3\), torch.int64"),
    "a label too large": (on(X, torch.tensor([0, 3])), "labels from 0 to 2; got 3 in row 1"),
    "a label below 0": (on(X, torch.tensor([-1, 0])), "labels from 0 to 2; got -1 in row 0"),
    "no class": (bad(pair_options={"num_classes": 0}), "num_classes to be a positive whole number"),
    "no context": (bad(pair_options={"context_dim": 0}), "context_dim to be a positive whole"),
    "an unknown option": (bad(pair_options={"classes": 3}), "options of pair conditional-vae am"),
    "a prior of the posterior": (bad(prior="vamp-prior"), "posterior that takes no context"),
    "a part that takes none": (
        lambda: ConditionalVAE(
            StandardNormal(LATENT), build(**LINEAR).likelihood, FullRankNormal((D,), LATENT), 10
        ),
        "context_dim = 10.*got StandardNormal with 0, Normal with 10, FullRankNormal with 0",
    ),
    "parts without context": (
        lambda: ConditionalVAE(*VAE_PARTS()), "context_dim = 1.*got StandardNormal with 0",
    ),
    "another number of rows": (
        lambda: build(**LINEAR).sample(3, torch.tensor([1])), r"context of n = 3 rows; got \(1,\)",
    ),
}  # fmt: skip


def VAE_PARTS():
    pair = build(**LINEAR | {"pair": "vae"})
    assert type(pair) is VAE
    return pair.prior, pair.likelihood, pair.posterior


@pytest.mark.parametrize(("act", "message"), WRONG.values(), ids=WRONG)
def test_bad_input_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()


@pytest.fixture(scope="module")
def of_digits():
    """A pair trained on the digits, and a classifier of real digits with its test accuracy."""
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(0)
    digits = data.load("digits", values="levels")
    labels = {split: y.long() for split, y in digits.labels.items()}
    pair = build(
        data_shape=(8, 8), latent_dim=4, likelihood="binomial", hidden=(64,),
        pair="conditional-vae", prior="conditional-normal",
        posterior_options={"input_scale": 1 / 16},
    )  # fmt: skip
    pair.likelihood.start_at_mean(digits.train)
    fit(pair.model, pair.guide, (digits.train, labels["train"]), epochs=25, lr=5e-3)
    classifier = LogisticRegression(max_iter=2000).fit(
        digits.train.flatten(1).numpy() / 16, labels["train"].numpy()
    )
    test = digits.test.flatten(1).numpy() / 16
    accuracy = float((classifier.predict(test) == labels["test"].numpy()).mean())
    return pair, classifier, accuracy


def share(pair, classifier, c, asked):
    """Of samples given labels c, the share that the classifier says are `asked`."""
    x = pair.sample(len(c), c, seed=5).flatten(1).numpy() / 16
    return float((torch.as_tensor(classifier.predict(x)) == asked).double().mean())


def test_samples_are_of_the_class_that_is_asked_for(of_digits):
    """Of 500 samples 0.986 are of the class asked for, says a classifier right in 0.961 of digits.

    Were they of any class, Binomial(500, 0.1) / 500 would exceed 0.5 with probability < 1e-100.
    Given the next label, less than 0.1 are of the class asked for: they follow the label.
    """
    pair, classifier, accuracy = of_digits
    c = torch.arange(500) % 10
    assert accuracy > 0.9
    found = share(pair, classifier, c, c)
    assert found > 0.8
    assert share(pair, classifier, (c + 1) % 10, c) < 0.1
