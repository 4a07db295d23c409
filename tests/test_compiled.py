"""The compiled step is the eager one: the same noise, the same weights, at every batch."""

import logging
import shutil

import pyro
import pytest
import torch
from cases import LIKELIHOODS, POSTERIORS, PRIORS
from cases.objectives import OBJECTIVES
from cases.pairing import compatible, shipped
from cases.pairs import PAIRS
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyrovae import build, fit, objectives
from pyrovae.distributions import seeded
from pyrovae.objectives.schedules import Linear
from pyrovae.training import compiled, trainer

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="Inductor needs a C++ compiler",
)
AGREE = 1e-5  # relative by norm, of each tensor, after 100 steps


def bits(n=650, d=6):
    return (torch.rand(n, d, generator=torch.Generator().manual_seed(1234)) > 0.5).float()


def small(**options):
    return build(**{"data_shape": (6,), "latent_dim": 2, "hidden": (5,), "seed": 3} | options)


def trained(pair, batch, mode, **options):
    """Weights after 20 epochs of 5 batches of 128 and a short one of 10, and the last loss."""
    history = fit(pair.model, pair.guide, batch, compile=mode, **({"epochs": 20} | options))
    return {n: p.detach().clone() for n, p in pair.named_parameters()}, history["loss"][-1]


def assert_same(make, batch, **options):
    got, expected = (trained(make(), batch, mode, **options) for mode in ("always", "never"))
    assert got[1] == pytest.approx(expected[1], rel=1e-5)
    for name, tensor in expected[0].items():
        assert (got[0][name] - tensor).norm() <= AGREE * tensor.norm() + 1e-7, name


def test_weights_and_losses_are_the_eager_steps():
    """A schedule moves without another compilation; short batches run eagerly."""
    objective = objectives.BetaELBO(2.0, Linear(10))
    assert_same(small, bits(), objective=objective)


def test_a_bound_of_several_draws_and_a_prior_of_the_guide():
    make = lambda: small(prior="vamp-prior", prior_options={"num_components": 5})  # noqa: E731
    assert_same(make, bits(), objective=objectives.DReG(3), epochs=4)


def test_a_step_that_differs_is_refused(monkeypatch):
    """Negative control: a log-density that is off by a thousandth."""
    right = compiled._decompositions()

    def wrong(*args, **kwargs):
        return 1.001 * next(iter(right.values()))(*args, **kwargs)

    monkeypatch.setattr(compiled, "_decompositions", lambda: dict.fromkeys(right, wrong))
    with pytest.raises(ValueError, match="differs from the eager step's by .* of"):
        trained(small(), bits(), "always", objective=TraceMeanField_ELBO())


def test_what_cannot_be_compiled_is_left_to_pyro(caplog, monkeypatch):
    pair = small(prior="one-hot-categorical", posterior="one-hot-categorical", latent_dim=3)
    with pytest.raises(ValueError, match="cannot be compiled: .*looks at the value of a tensor"):
        trained(pair, bits(), "always", objective=Trace_ELBO())
    monkeypatch.setattr(compiled, "WORTH", 0.0)
    with caplog.at_level(logging.WARNING, logger="pyrovae"):
        trained(pair, bits(), "auto", objective=Trace_ELBO(), epochs=1)
    told = [r.getMessage() for r in caplog.records if r.name.startswith("pyrovae")]
    assert len(told) == 1 and "takes Pyro's time: it cannot be traced" in told[0]


def test_short_trainings_are_not_worth_it():
    """The digits of the first command; MNIST's 20 epochs are."""
    digits = [torch.zeros(64_084)]
    assert not compiled.is_worth_it(digits, 100 * 1_439)
    assert compiled.is_worth_it([torch.zeros(652_824)], 20 * 60_000)


def test_a_schedule_read_in_python_is_not_compiled():
    capacity = objectives.Capacity(schedule=Linear(3))
    with pytest.raises(ValueError, match="Capacity reads its schedule in Python"):
        trained(small(), bits(), "always", objective=capacity)


def test_the_log_density_of_pixels_is_close_enough():
    """log(1 + exp(-|l|)) for log1p(exp(-|l|)) is off by less than 1e-7 nats a pixel, in float32."""
    (density,) = compiled._decompositions().values()
    logits = -torch.linspace(0, 40, 400_001)
    exact = torch.log1p(logits.double().exp())
    error = density(logits, torch.zeros_like(logits), reduction=0).double() - exact
    assert error.abs().max() < 1e-7 and error.mean().abs() < 1e-8
    double = density(logits.double(), torch.zeros_like(logits), reduction=0)
    assert (double - exact).abs().max() < 2e-16
    logits, targets = torch.tensor([[3.0, 3.0, -3.0, 0.0], [1.0, 0.2, 0.7, 0.0]])
    usual = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(density(logits, targets, reduction=0), usual)
    assert density(logits, targets, reduction=1) is NotImplemented  # densities have elements alone


def test_no_setting_is_left_changed():
    from torch._inductor import config

    before = config.fallback_random
    item = pyro.infer.trace_elbo.torch_item
    trained(small(), bits(), "always", epochs=1)
    assert config.fallback_random == before and pyro.infer.trace_elbo.torch_item is item
    assert trainer.LOG.name == "pyrovae.training.trainer"


SLOW = [
    *[("objective", o.id, o, None) for o in OBJECTIVES],
    *[("pair", p.id, None, p) for p in PAIRS],
    *[("prior", p.id, None, (p, q, LIKELIHOODS[0]))
      for p, q in compatible(tuple(PRIORS), tuple(POSTERIORS), LIKELIHOODS[0])],
    *[("likelihood", like.id, None, (PRIORS[0], POSTERIORS[0], like)) for like in LIKELIHOODS],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "objective", "case"), SLOW)
def test_everything_that_compiles_agrees(kind, name, objective, case):
    """20 steps; what does not compile says why: `pytest -n 0 -m slow -s -k everything`."""
    chosen = TraceMeanField_ELBO() if objective is None else objective.make()

    def make():
        with seeded(1):
            if kind == "objective":
                return small()
            return case.build() if kind == "pair" else shipped(*case)

    if kind == "objective":
        batch = (bits(128),)
    elif kind == "pair":
        batch, chosen = case.batch(), case.objective()
    else:
        with seeded(2), torch.no_grad():
            vae = make().eval()
            batch = (vae.likelihood(torch.randn(16, vae.likelihood.latent_dim)).sample(),)
        if not vae.posterior(*batch).has_rsample:
            chosen = Trace_ELBO()
    try:
        assert_same(make, batch, objective=chosen, epochs=20)
    except ValueError as reason:
        print(f"\n{kind} {name}: {reason}")
