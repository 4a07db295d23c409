"""The catalogue: every name has a formula, a paper and a row in README, and every pair trains."""

import dataclasses
from pathlib import Path

import pytest
import torch
from pyro.infer import Trace_ELBO

from pyrovae import build, data, fit, likelihoods, nets, posteriors, priors
from pyrovae.pairs.names import hyphenated
from pyrovae.training.catalogue import Entry, catalogue, describe_parts, entry

README = (Path(__file__).parents[1] / "README.md").read_text()


def problems(one):
    """What is wrong with an entry."""
    if not any(mark in one.formula for mark in "=:"):
        yield f"{one.name}: no formula in the first sentence of its docstring: {one.formula}"
    if not one.papers:
        yield f"{one.name}: its docstring cites no paper, such as 'Kingma & Welling (2014)'"
    if one.row not in README:
        yield f"README's table lacks the row\n{one.row}"


@pytest.mark.parametrize("one", catalogue(), ids=lambda e: f"{e.kind}-{e.name}")
def test_every_part_has_formula_paper_and_row(one):
    assert not list(problems(one))


def test_a_part_without_them_is_found():
    """Negative control."""

    class New(priors.Prior):
        """It is new."""

    assert len(list(problems(entry("priors", "New", New)))) == 3
    stale = dataclasses.replace(catalogue()[0], formula="p(z) = 1")
    assert len(list(problems(stale))) == 1


def test_citations_are_read():
    doc = type("X", (), {"__doc__": "x = 1.\n\nvan den Oord et al. (2016), eq. 2; Ho & Li (1999)."})
    assert entry("nets", "X", doc) == Entry(
        "nets", "X", "x = 1", ("van den Oord et al. 2016", "Ho & Li 1999")
    )


def test_the_whole_catalogue_is_printed():
    told = describe_parts()
    for one in catalogue():
        assert f"  {hyphenated(one.name)} " in told and one.formula in told
        assert all(paper in told for paper in one.papers)


# Every prior with every posterior, on scikit-learn's digits.

DIGITS = data.load("digits", binarize="threshold")
X = DIGITS.train[:384]
NO_GRADIENT = {"OneHotCategorical", "Categorical"}  # of the draws: by the score function
ONE_HOT = {"OneHotCategorical", "StraightThrough"}
FLOWS = ("inverse-autoregressive:2,16", "neural-spline:1,16", "householder", "planar", "sylvester")
POSTERIORS = [
    (name, {"flow": flow} if name == "FlowPosterior" else {})
    for name in posteriors.__all__
    for flow in (FLOWS if name == "FlowPosterior" else FLOWS[:1])
]
SMALL = {"ExemplarPrior": {"num_exemplars": 50}, "VampPrior": {"num_components": 20}}


def go_together(prior, posterior):
    """Do the two live in one space, and does the prior know what to do with the posterior?"""
    if prior == "VampPrior":
        return True
    if prior == "ExemplarPrior":
        return posterior.endswith("Normal") or posterior == "MixtureOfNormals"
    special = {"OneHotCategorical", "Categorical", "GumbelSoftmax", "VonMisesFisher"}
    if prior in special:
        return posterior == prior or (prior == "OneHotCategorical" and posterior in ONE_HOT)
    return posterior not in special | ONE_HOT


def trained(likelihood="bernoulli", x=X, epochs=3, **names):
    """A pair after `epochs`, and its losses."""
    conditional = names.get("prior") == "ConditionalNormal"
    if conditional:
        names["prior_options"] = {"context_dim": 10}
        for part in ("posterior_options", "likelihood_options"):
            names[part] = {**names.get(part, {}), "context_dim": 10}
    vae = build(data_shape=x.shape[1:], latent_dim=4, hidden=(16,), likelihood=likelihood, **names)
    train = x
    if conditional:
        train = (x, torch.nn.functional.one_hot(DIGITS.labels["train"][: len(x)].long(), 10))
    if vae.prior.indexed:
        vae.prior.set_exemplars(x)
        train = (x, torch.arange(len(x)))
    score = names.get("posterior") in NO_GRADIENT
    options = {"objective": Trace_ELBO(num_particles=4)} if score else {}
    return fit(vae.model, vae.guide, train, epochs=epochs, batch_size=64, lr=3e-3, **options)


@pytest.mark.parametrize("prior", priors.__all__)
def test_every_prior_trains_with_every_posterior(prior):
    for posterior, options in POSTERIORS:
        names = {
            "prior": prior, "posterior": posterior, "prior_options": SMALL.get(prior, {}),
            "posterior_options": options,
        }  # fmt: skip
        if go_together(prior, posterior):
            loss = trained(**names)["loss"]
            assert loss[-1] < loss[0] < 100, (prior, posterior, options, loss)
        else:
            with pytest.raises(ValueError, match="over one space of z|expected a posterior"):
                build(data_shape=(8, 8), latent_dim=4, hidden=(16,), **names)


def support_of(name):
    """Data on the support of a likelihood, and options of it, from the digits' 17 levels."""
    levels = data.load("digits", values="levels").train[:384]
    table = torch.cat([levels.flatten(1)[:, 20:22] / 16, X.flatten(1)[:, 20:22]], 1)
    columns = {"columns": [("normal", [0, 1]), ("bernoulli", [2, 3])]}
    binary = {"Bernoulli": (X, {}), "PixelCNN": (X, {"channels": 4, "layers": 2})}
    whole = {"Categorical", "DiscretizedLogistic", "DiscretizedLogisticMixture"}
    holed = torch.where(torch.rand(X.shape) < 0.5, X, torch.nan)
    special = {"Mixed": (table, columns), "masked:bernoulli": (holed, {}), "Binomial": (levels, {})}
    if name in whole:
        return levels, {"num_levels": 17}
    if "Poisson" in name or "NegativeBinomial" in name:
        return levels, {}
    if name == "LogNormal":
        return levels + 1, {}
    return (binary | special).get(name, (levels / 16, {}))


@pytest.mark.parametrize(
    "likelihood", ["masked:bernoulli" if n == "Masked" else n for n in likelihoods.__all__]
)
def test_every_likelihood_trains_on_its_support(likelihood):
    x, options = support_of(likelihood)
    loss = trained(likelihood, x, likelihood_options=options)["loss"]
    assert loss[-1] < loss[0], loss


@pytest.mark.parametrize("net", nets.__all__)
def test_every_net_trains(net):
    loss = trained(net=net)["loss"]
    assert loss[-1] < loss[0], loss


def test_every_name_is_reachable():
    """Without case, hyphens or underscores, as the command line writes them."""
    vae = build(data_shape=(8, 8), latent_dim=3, prior="von-mises-fisher",
                posterior="von_mises_fisher")  # fmt: skip
    assert type(vae.prior).__name__ == type(vae.posterior).__name__ == "VonMisesFisher"
