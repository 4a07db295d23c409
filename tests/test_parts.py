"""The contract: every part runs through the same laws, and a class with no case fails the suite."""

import copy
import re

import cases
import numpy as np
import pytest
import torch
from cases import basic
from pyro import distributions as dist

from pyrovae import likelihoods, posteriors, priors, testing
from pyrovae.distributions import seeded

by_id = pytest.mark.parametrize("case", cases.PARTS, ids=lambda case: case.id)


def without_case(module):
    """The classes of a module that no row names."""
    return {
        name
        for name in module.__all__
        if getattr(module, name) not in {case.cls for case in cases.PARTS}
    }


def log_density(case, part):
    """(got, reference) of a part at draws of its own."""
    inputs = cases.inputs(part)
    with torch.no_grad(), seeded(3):
        d = part(*inputs)
        value = d.sample() if inputs else d.sample((cases.ROWS,))
        params = part.net(*inputs).numpy() if inputs and hasattr(part, "net") else None
        return d.log_prob(value).numpy(), case.reference(part, params, value.numpy())


@pytest.mark.parametrize("module", [priors, likelihoods, posteriors], ids=lambda m: m.__name__)
def test_every_class_has_a_case(module):
    missing = without_case(module)
    assert not missing, f"add a row to a file of tests/cases for {missing}"


def test_a_new_class_without_a_case_is_found(monkeypatch):
    """Negative control."""
    monkeypatch.setattr(priors, "New", type("New", (priors.StandardNormal,), {}), raising=False)
    monkeypatch.setattr(priors, "__all__", [*priors.__all__, "New"])
    assert without_case(priors) == {"New"}


@by_id
def test_laws(case):
    part = case.build()
    given = () if isinstance(part, likelihoods.Likelihood) else cases.inputs(part)
    report = testing.check_part(part, *given)
    assert report.ok, str(report)


@by_id
def test_log_density_is_the_reference(case):
    got, expected = log_density(case, case.build().double().eval())
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", cases.LIKELIHOODS, ids=lambda case: case.id)
def test_start_at_mean(case):
    part = case.build().double()
    if case.mean is None:
        with pytest.raises(NotImplementedError):
            part(torch.zeros(3, cases.LATENT, dtype=torch.float64)).mean  # noqa: B018
        return
    for name, p in part.named_parameters():
        if "net" in name and "output.bias" not in name:
            p.data.zero_()
    top = getattr(part, "total_count", getattr(part, "num_levels", 2) - 1)
    target = top * torch.tensor(case.mean, dtype=torch.float64).reshape(part.data_shape)
    x = target.expand(9, *part.data_shape)
    part.start_at_mean(x)
    mean = part(torch.randn(3, cases.LATENT, dtype=torch.float64)).mean
    torch.testing.assert_close(mean, x[:3], atol=case.mean_tolerance, rtol=0)


# Negative controls: each must fail, and say why.


class OffByAConstant(likelihoods.Bernoulli):
    def distribution(self, params):
        d = super().distribution(params)
        log_prob = d.log_prob
        d.log_prob = lambda value: log_prob(value) + 0.01
        return d


class NoEvent(priors.Prior):
    def distribution(self, *c):
        return dist.Normal(torch.zeros(self.latent_dim), 1.0)


class Centring(posteriors.MeanFieldNormal):
    def forward(self, x, *c):
        return super().forward(x - x.mean(0), *c)


class Unused(likelihoods.Bernoulli):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = torch.nn.Parameter(torch.zeros(()))


class Unchecked(likelihoods.Bernoulli):
    def distribution(self, params):
        return dist.Bernoulli(logits=params, validate_args=False).to_event(2)


class Forgetful(priors.MixtureOfNormals):
    def state_dict(self, *args, **kwargs):
        return {k: torch.zeros_like(v) for k, v in super().state_dict(*args, **kwargs).items()}


class Single(priors.StandardNormal):
    def distribution(self, *c):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)


def test_a_likelihood_off_by_a_constant_is_caught():
    case = cases.Case(OffByAConstant, basic.bernoulli)
    got, expected = log_density(case, case.build().double())
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got - expected, 0.01)


@pytest.mark.parametrize(
    ("cls", "law", "message"),
    [
        (NoEvent, "shapes", r"expected event_shape \(2,\); got batch_shape \(2,\).*to_event\(1\)"),
        (Centring, "rows", "a row depends on another one"),
        (Unused, "gradients", "parameter extra has no finite gradient"),
        (Unchecked, "support", "expected a ValueError for"),
        (Forgetful, "state dict", "after load_state_dict"),
        (Single, "dtypes", "expected draws in torch.float64 of a part in it"),
    ],
)
def test_broken_parts_are_caught(cls, law, message):
    part = cases.Case(cls, basic.bernoulli).build()
    x = cases.inputs(part)[0] if isinstance(part, posteriors.Posterior) else None
    report = testing.check_part(part, x=x)
    assert not report.ok
    failure = next(f for f in report.failures if f.cause == law)
    assert re.search(message, failure.message), str(report)


def test_report_is_a_table():
    report = testing.check_part(priors.StandardNormal(2))
    lines = str(report).splitlines()
    assert lines[0] == "StandardNormal"
    assert len(lines) == 1 + len(report.rows)
    assert not report.failures


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.StandardNormal(0), "latent_dim to be a positive whole number; got 0"),
        (lambda: priors.MixtureOfNormals(2, 0), "num_components to be a positive whole number"),
        (lambda: likelihoods.Fixed(-1.0), r"Fixed\(sigma\) with sigma > 0; got -1.0"),
        (lambda: likelihoods.Shared(-1.0), "min_scale >= 0"),
        (lambda: likelihoods.Normal(2, (3,), variance="shared"), "variance to be Fixed"),
        (lambda: likelihoods.Binomial(2, (3,), total_count=0), "total_count to be a positive"),
        (
            lambda: priors.VampPrior(3, posteriors.MeanFieldNormal((4,), 2)),
            "a posterior of latent_dim 3; got one of 2",
        ),
        (
            lambda: priors.VampPrior(2, posteriors.MeanFieldNormal((4,), 2), clamp=(1, 0)),
            "low < high",
        ),
        (
            lambda: posteriors.MeanFieldNormal((4,), 2)(torch.zeros(5, 3)),
            r"input of shape \(..., 4\); got \(5, 3\)",
        ),
        (
            lambda: posteriors.MeanFieldNormal((4,), 2)(torch.zeros(5, 4, dtype=torch.float64)),
            "expected torch.float32.*got torch.float64: convert",
        ),
        (
            lambda: posteriors.MeanFieldNormal((4,), 2)(torch.zeros(5, 4), torch.zeros(5, 1)),
            "0 numbers a datum in all; got 1",
        ),
        (
            lambda: likelihoods.Bernoulli(2, (3,)).start_at_mean(torch.zeros(0, 3)),
            r"shape \(N, 3\) with N > 0",
        ),
        (
            lambda: likelihoods.Bernoulli(2, (3,), torch.nn.Linear(2, 3)).start_at_mean(
                torch.zeros(1, 3)
            ),
            "last linear map is its attribute `output`",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("cls", [posteriors.MeanFieldNormal, posteriors.FullRankNormal])
def test_context_enters_the_network(cls):
    part = cls((4,), 2, cases.NET, context_dim=3)
    x, c = torch.randn(5, 4), (torch.randn(5, 1), torch.randn(5, 2))
    plain = part(x, *c).mean
    torch.testing.assert_close(part(x.expand(2, 5, 4), *c).mean[1], plain)
    assert not torch.equal(part(x, c[0] + 1, c[1]).mean, plain)


def test_vamp_prior_moves_with_its_posterior_and_copies_it():
    posterior = posteriors.MeanFieldNormal((4,), 2)
    prior = priors.VampPrior(2, posterior, num_components=3).double()
    assert prior().sample().dtype == torch.float64
    assert set(prior.state_dict()) == {"pseudo_inputs"}
    both = copy.deepcopy(torch.nn.ModuleList([prior, posterior]))
    assert both[0]._posterior[0] is both[1]
    assert both[1] is not posterior


def test_input_scale():
    part = posteriors.MeanFieldNormal((4,), 2, input_scale=0.25)
    x = torch.rand(3, 4)
    plain = posteriors.MeanFieldNormal((4,), 2, part.net)
    torch.testing.assert_close(part(4 * x).mean, plain(x).mean)
