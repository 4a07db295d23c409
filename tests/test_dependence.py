"""Where KLs in closed form are wrong: found for any pair, by what depends on what."""

import broken_pairs as broken
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from typer.testing import CliRunner

from pyrovae import build, fit
from pyrovae.cli import app
from pyrovae.importance import analytic_kl_problem
from pyrovae.objectives import FreeBits

D = 3


@pytest.fixture(autouse=True)
def _store():
    with pyro.get_param_store().scope():
        yield


def data():
    return torch.randn(6, D, generator=torch.Generator().manual_seed(1234))


def normal(loc, scale=0.5):
    return dist.Normal(loc, scale).to_event(1)


def model_of(p_a):
    """b ~ N(0, I), a ~ p_a(b), x ~ N(a, 1)."""

    def model(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", normal(torch.zeros(D), 1.0))
            a = pyro.sample("a", p_a(b))
            pyro.sample("x", normal(a, 1.0), obs=x)

    return model


def guide_of(order, loc_b=lambda x, a: 0.5 * a, loc_a=lambda x, b: 0.5 * x):
    """Draws "ab" or "ba"; the later one may depend on the first."""

    def guide(x):
        gain = pyro.param("gain", torch.tensor(1.0))
        z = {"a": torch.zeros_like(x), "b": torch.zeros_like(x)}
        with pyro.plate("data", len(x)):
            for name in order:
                loc = loc_a(x, z["b"]) if name == "a" else loc_b(x, z["a"])
                z[name] = pyro.sample(name, normal(gain * loc))

    return guide


def on_b(b):
    return normal(1.5 * b)


class Off(torch.autograd.Function):
    """The identity, whose gradient is none."""

    @staticmethod
    def forward(ctx, b):
        return b.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None


def mean_field_is_off(model, guide, x, runs=60):
    """By how many standard errors TraceMeanField_ELBO is off Trace_ELBO."""
    many = x.repeat(50, 1)
    with torch.no_grad(), pyro.validation_enabled(False):
        values = [
            torch.tensor([elbo.loss(model, guide, many) for _ in range(runs)])
            for elbo in (Trace_ELBO(), TraceMeanField_ELBO())
        ]
    error = sum(v.var() / runs for v in values).sqrt()
    return float((values[0].mean() - values[1].mean()).abs() / error)


WRONG = [
    (model_of(on_b), guide_of("ab"), "the gradient shows it"),
    (model_of(lambda b: normal(1.5 * b.detach())), guide_of("ab"), "the model detaches b"),
    (model_of(on_b), guide_of("ab", lambda x, a: 0.5 * a.detach()), "the guide detaches a"),
    (model_of(lambda b: normal(b.sign())), guide_of("ab"), "no gradient, but another value"),
    (model_of(lambda b: normal(Off.apply(b))), guide_of("ab"), "a gradient that is none"),
]


@pytest.mark.parametrize(
    ("model", "guide", "why"), WRONG, ids=lambda v: v if type(v) is str else ""
)
def test_a_bottom_up_guide_is_found_and_is_wrong(model, guide, why):
    """More than 8 standard errors off."""
    found = analytic_kl_problem(model, guide, data())
    assert found is not None
    assert found.startswith("sites 'a', 'b': expected, for KLs in closed form")
    assert "p(a|...) on 'b', drawn from 'a'" in found
    assert "take Trace_ELBO (--objective trace), or draw 'b' before 'a' in the guide" in found
    assert mean_field_is_off(model, guide, data()) > 8


RIGHT = [
    (model_of(on_b), guide_of("ba"), "in the model's order"),
    (model_of(on_b), guide_of("ba", loc_a=lambda x, b: x + b), "in its order, dependent"),
    (model_of(lambda b: normal(torch.zeros(D))), guide_of("ab"), "the model's are independent"),
    (model_of(on_b), guide_of("ab", lambda x, a: 0.5 * x), "the guide's are independent"),
    (
        model_of(lambda b: dist.StudentT(5.0, 1.5 * b, 0.5).to_event(1)), guide_of("ab"),
        "the KL has no closed form, and is sampled",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "guide", "why"), RIGHT, ids=lambda v: v if type(v) is str else ""
)
def test_what_is_right_is_let_through(model, guide, why):
    """Whatever the order of the names; 4.5 standard errors, P < 1e-4 for all."""
    assert analytic_kl_problem(model, guide, data()) is None
    assert mean_field_is_off(model, guide, data()) < 4.5


def test_weights_that_are_still_zero_count():
    """Training would make the density depend on b, and the check is made before it."""
    pair = bottom_up()
    for p in (*pair.between.parameters(), *pair.posterior.parts[1].parameters()):
        p.data.zero_()
    assert analytic_kl_problem(pair.model, pair.guide, torch.ones(2, 4)) is not None


def test_every_crossing_of_three_levels_is_named():
    pair = bottom_up(levels=3)
    found = analytic_kl_problem(pair.model, pair.guide, torch.ones(2, 4))
    for a, b in ((1, 2), (1, 3), (2, 3)):
        assert f"p(z{a}|...) on 'z{b}', drawn from 'z{a}'" in found
    pair = bottom_up(levels=3, skip=False)
    found = analytic_kl_problem(pair.model, pair.guide, torch.ones(2, 4))
    assert "p(z1|...) on 'z2'" in found and "p(z1|...) on 'z3'" not in found


def bottom_up(**options):
    return build(data_shape=(4,), latent_dim=2, hidden=(7,), pair="hierarchical-vae",
                 pair_options={"kind": "bottom-up"} | options)  # fmt: skip


@pytest.mark.parametrize("objective", [None, TraceMeanField_ELBO(), FreeBits(per="site")])
def test_fit_refuses_closed_kls_where_they_are_wrong(objective, tmp_path):
    pair = bottom_up()
    before = [p.detach().clone() for p in pair.parameters()]
    with pytest.raises(ValueError, match="sites 'z1', 'z2': expected, for KLs in closed form"):
        fit(pair.model, pair.guide, torch.ones(8, 4), objective=objective, epochs=2,
            run=tmp_path / "run")  # fmt: skip
    assert all(torch.equal(p, q) for p, q in zip(pair.parameters(), before, strict=True))
    with pytest.raises(ValueError, match="sites 'z', 'top'"):
        model, guide, x = broken.bottom_up()
        fit(model, guide, x, objective=objective, epochs=2)


def test_the_command_line_says_what_to_do(tmp_path):
    command = ["train", "--pair", "hierarchical-vae", "--pair-option", "kind=bottom-up"]
    result = CliRunner().invoke(app, [*command, "--epochs", "1", "--run", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "take Trace_ELBO (--objective trace)" in " ".join(result.output.split())


def test_fit_trains_where_they_are_right_or_sampled():
    for model, guide, x in (broken.bottom_up(), broken.top_down()):
        fit(model, guide, x, objective=Trace_ELBO(), epochs=2)
    fit(*broken.top_down(), objective=TraceMeanField_ELBO(), epochs=2)
