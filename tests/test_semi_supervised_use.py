"""SemiSupervisedVAE in use: what labels teach, draws, which labels are kept, what is refused."""

import json

import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch.nn.functional import one_hot
from typer.testing import CliRunner

from pyrovae import build, data, evidence, fit, likelihoods, log_weights, posteriors, priors
from pyrovae.cli import app
from pyrovae.pairs import SemiSupervisedVAE
from pyrovae.pairs.semi_supervised import keep_balanced
from pyrovae.training import experiment, rundir

D, CLASSES = 4, 3

PATTERNS = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1.0]])


def noisy(n):
    """Patterns of two classes with one bit in ten wrong, and their classes."""
    generator = torch.Generator().manual_seed(1234)
    y = torch.arange(n) % 2
    wrong = torch.rand(n, 6, generator=generator) < 0.1
    return torch.where(wrong, 1 - PATTERNS[y], PATTERNS[y]), y


def taught(labels, x):
    pair = build(
        data_shape=(6,), latent_dim=1, hidden=(16,), pair="semi-supervised-vae",
        pair_options={"num_classes": 2, "alpha": 5.0},
    )  # fmt: skip
    fit(pair.model, pair.guide, (x, labels), objective=TraceEnum_ELBO(), epochs=25, lr=0.02)
    return pair


def test_a_few_labels_name_the_classes():
    x, y = noisy(400)
    few = keep_balanced(y, 6, 2)
    assert float((taught(few, x).classify(x).argmax(-1) == y).double().mean()) > 0.95
    turned = torch.where(few < 0, few, 1 - few)  # negative control: the other names
    assert float((taught(turned, x).classify(x).argmax(-1) == y).double().mean()) < 0.05


# Draws


def of_patterns():
    """x given y is the pattern of y, whatever z; q(y|x) is sure of it."""
    pair = build(
        data_shape=(6,), latent_dim=1, hidden=(), pair="semi-supervised-vae",
        pair_options={"num_classes": 2},
    )  # fmt: skip
    with torch.no_grad():
        layer = pair.likelihood.net.output
        layer.bias.zero_()
        layer.weight[:, 0] = 0
        layer.weight[:, 1:] = 60 * (PATTERNS.T - 0.5)
        pair.classifier.net.output.weight.copy_(20 * (PATTERNS - 0.5))
        pair.classifier.net.output.bias.zero_()
    return pair


def test_samples_and_reconstructions_are_of_their_labels():
    pair, c = of_patterns(), torch.tensor([0, 1, 1, 0, 1])
    assert torch.equal(pair.sample(5, c), PATTERNS[c])
    torch.testing.assert_close(pair.sample(5, c, mean=True), PATTERNS[c], rtol=0, atol=1e-6)
    mixed = pair.sample(200, torch.where(torch.arange(200) < 100, 1, -1))
    assert bool((mixed[:100] == PATTERNS[1]).all())
    share = float((mixed[100:] == PATTERNS[0]).all(-1).double().mean())
    assert 0.3 < share < 0.7  # Binomial(100, 1/2) / 100 is outside with probability 3e-5
    x = PATTERNS[c]
    torch.testing.assert_close(pair.reconstruct(x, 1 - c), PATTERNS[1 - c], rtol=0, atol=1e-6)
    torch.testing.assert_close(pair.reconstruct(x), x, rtol=0, atol=1e-6)
    torch.testing.assert_close(pair.classify(x), one_hot(c, 2).float(), rtol=0, atol=1e-6)
    side_by_side = torch.cat([one_hot(c, 2).float(), torch.randn(5, 1)], 1)
    torch.testing.assert_close(pair.decode(side_by_side).mean, x, rtol=0, atol=1e-6)


# The context


def labels_of(n=100):
    return torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(1234))


def kept(seed=0, labelled=20, labels=None, **options):
    pair = build(
        data_shape=(D,), latent_dim=1, pair="semi-supervised-vae", seed=seed, **options,
        pair_options={"num_classes": CLASSES, "labelled": labelled},
    )  # fmt: skip
    return pair.context(labels_of() if labels is None else labels, train=True)


def test_a_balanced_few_labels_are_kept():
    labels, few = labels_of(), kept()
    shown = few >= 0
    assert torch.equal(few[shown], labels[shown])
    assert int(shown.sum()) == 20 and sorted(few[shown].bincount().tolist()) == [6, 7, 7]
    assert torch.equal(few, kept(hidden=(3,), posterior="full-rank-normal")), "the seed says which"
    assert not torch.equal(few, kept(seed=1))
    assert torch.equal(kept(labelled=None), labels)
    pair = build(data_shape=(D,), latent_dim=1, pair="semi-supervised-vae")
    assert bool((pair.context(labels, train=False) == -1).all())


def test_alpha_is_of_all_data_by_the_labels_that_are_known():
    """Eq. 9: 0.1 N times the mean over the labelled data."""
    options = {"labelled": 20, "num_data": 400}
    common = {"data_shape": (D,), "pair": "semi-supervised-vae"}
    assert build(**common, pair_options=options).alpha == pytest.approx(2.0)
    assert build(**common, pair_options=options | {"alpha": 1.0}).alpha == pytest.approx(20.0)
    assert build(**common).alpha == 0.1


# The command line


def invoke(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


COMMAND = [
    "train", "--pair", "semi-supervised-vae", "--objective", "trace-enum", "--epochs", 1,
    "--hidden", 8, "--latent-dim", 2, "--pair-option", "labelled=100",
]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
def test_by_the_command_line_training_is_given_a_few_labels(tmp_path, monkeypatch, seed):
    given = []

    def stop(model, guide, train, *, validation, **options):
        given.extend([train[1], validation[1], model.__self__.alpha])
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "fit", stop)
    for _ in range(2):
        invoke(*COMMAND, "--seed", seed, "--run", tmp_path / "a", code=130)
    c, held_out, alpha, again, *_ = given
    assert torch.equal(c, again) and bool((held_out == -1).all())
    shown = c >= 0
    assert c[shown].bincount().tolist() == [10] * 10
    labels = data.load("digits", seed=seed).labels["train"].long()
    assert torch.equal(c[shown], labels[shown])
    assert alpha == pytest.approx(0.1 * 1439 / 100)


def test_figures_of_held_out_data_are_of_x_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("pyrovae.plots.save_all", lambda *args: [])
    run = tmp_path / "a"
    assert "labels are given" not in invoke(*COMMAND, "--run", run).stdout
    few = ["--num-particles", 30, "--limit", 20, "--json"]
    test, train = (
        json.loads(invoke("evaluate", run, *few, "--split", split).stdout)
        for split in ("test", "train")
    )
    pair = rundir.load(run)
    digits = data.load("digits", values="levels")
    expected = evidence.summarise(pair.model, pair.guide, digits.test[:20], num_particles=30)
    assert test["elbo"] == pytest.approx(float(expected.elbo.mean()), rel=1e-5)
    assert test["context"] is None
    shown = pair.context(digits.labels["train"].long(), train=True)[:20] >= 0
    assert train["context"] == ("labels" if bool(shown.any()) else None)


# What is refused

X = torch.zeros(2, D)


def on(*batch):
    pair = build(data_shape=(D,), latent_dim=1, pair="semi-supervised-vae", hidden=())
    return lambda: pair.guide(*batch)


def by_names(**options):
    build_options = {k: options.pop(k) for k in ("prior", "posterior") if k in options}
    return lambda: build(
        data_shape=(D,), latent_dim=2, pair="semi-supervised-vae", pair_options=options,
        **build_options,
    )  # fmt: skip


def by_hand(**changed):
    parts = {
        "prior": priors.StandardNormal(1),
        "likelihood": likelihoods.Bernoulli(1, (D,), context_dim=CLASSES),
        "posterior": posteriors.MeanFieldNormal((D,), 1, context_dim=CLASSES),
        "classifier": posteriors.OneHotCategorical((D,), CLASSES),
    }
    return lambda: SemiSupervisedVAE(**parts | changed)


def masked():
    return likelihoods.Masked(likelihoods.Bernoulli(1, (D,), context_dim=CLASSES))


def seeing(cls, dim, **options):
    return cls((D,), dim, missing=True, **options)


WRONG = {
    "real labels": (on(X, torch.zeros(2)), r"\(2,\) as context.*got \(2,\) of torch.float32"),
    "one-hot labels": (on(X, torch.zeros(2, 3).long()), r"got \(2, 3\) of torch.int64"),
    "too few": (on(X, torch.tensor([1])), r"expected labels \(2,\)"),
    "two contexts": (on(X, torch.tensor([1, 1]), X), r"got \(2,\) of torch.int64, \(2, 4\)"),
    "a label too large": (on(X, torch.tensor([-1, 10])), "from 0 to 9, or -1.*got 10 in row 1"),
    "a label below -1": (on(X, torch.tensor([-2, 0])), "got -2 in row 0"),
    "too few of a class": (
        lambda: kept(labelled=9, labels=torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])),
        "leave 3 of class 2; the training data have 2",
    ),
    "no label kept": (by_names(labelled=0), "labelled to be a positive whole number; got 0"),
    "alpha": (by_names(alpha=-0.1), "alpha to be finite and >= 0; got -0.1"),
    "one class": (by_names(num_classes=1), "num_classes to be a whole number >= 2; got 1"),
    "classifier": (by_names(classifier="normal"), "classifier to be one of one-hot-categ"),
    "a prior of the posterior": (by_names(prior="vamp-prior"), "posterior that takes no context"),
    "a prior with context": (
        by_hand(prior=priors.ConditionalNormal(1, CLASSES)), "a prior p.z. that takes no context",
    ),
    "other classes": (
        by_hand(classifier=posteriors.OneHotCategorical((D,), 5)),
        "likelihood of context_dim 5.*got Bernoulli with 3",
    ),
    "other classes of p(y)": (
        by_hand(class_prior=priors.OneHotCategorical(4)), "1 group of 3' and .*1 group of 4'",
    ),
    "other classes of q(z|x, y)": (
        by_hand(posterior=posteriors.MeanFieldNormal((D,), 1)),
        "posterior of context_dim 3.*got MeanFieldNormal with 0",
    ),
    "latent_dim": (
        by_hand(prior=priors.StandardNormal(2)),
        "one latent_dim; got {'prior': 2, 'likelihood': 1, 'posterior': 1}",
    ),
    "data_shape": (
        by_hand(classifier=posteriors.OneHotCategorical((5,), CLASSES)), "parts of one data_shape",
    ),
    "space": (by_names(posterior="von-mises-fisher"), "parts of one space"),
    "a posterior without missing entries": (
        by_hand(likelihood=masked()), "take missing entries.*got MeanFieldNormal",
    ),
    "a classifier without": (
        by_hand(
            likelihood=masked(),
            posterior=seeing(posteriors.MeanFieldNormal, 1, context_dim=CLASSES),
        ),
        "take missing entries.*got OneHotCategorical",
    ),
    "a count": (lambda: of_patterns().sample(-1), "n to be a whole number"),
    "labels of samples": (
        lambda: of_patterns().sample(3, torch.tensor([1])), r"expected labels \(3,\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("act", "message"), WRONG.values(), ids=WRONG)
def test_bad_input_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_missing_entries_are_left_out():
    pair = build(
        data_shape=(D,), latent_dim=2, likelihood="masked:bernoulli", hidden=(4,),
        pair="semi-supervised-vae", pair_options={"num_classes": CLASSES},
    )  # fmt: skip
    x, labels = torch.ones(8, D), torch.arange(8) % 4 - 1
    x[::2, 1] = torch.nan
    fit(pair.model, pair.guide, (x, labels), objective=TraceEnum_ELBO(), epochs=2)
    weights = log_weights(pair.model, pair.guide, x, labels, num_particles=4)
    assert bool(weights.isfinite().all())
    assert pair.classify(x).sum(-1).allclose(torch.ones(len(x)))
