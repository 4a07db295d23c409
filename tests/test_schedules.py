"""Factors that change as training goes on: by SVI's steps, by fit's epochs, on the command line."""

import csv
import json
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from scipy.special import expit
from typer.testing import CliRunner

from pyrovae import build, fit
from pyrovae.cli import app
from pyrovae.distributions import mixed, seeded
from pyrovae.importance import particles
from pyrovae.nets.naming import typed
from pyrovae.objectives import MMD, BetaELBO, BetaTC, Capacity, FreeBits, InfoVAE, with_beta
from pyrovae.objectives.divided import divided_kl
from pyrovae.objectives.schedules import Constant, Cyclic, Linear, Sigmoid
from pyrovae.training import experiment

TIMES = [0.0, 0.3, 1.0, 2.5, 4.0, 7.99, 8.0, 8.5, 30.0]


def small(seed=3, **options):
    vae = build(data_shape=(4,), latent_dim=2, hidden=(5,), seed=seed, **options)
    return vae, (torch.rand(20, 4, generator=torch.Generator().manual_seed(1234)) > 0.4).float()


class Noted:
    """A quarter, and the times that it was asked for; no `Schedule`, or names would find it."""

    def __init__(self):
        self.times = []

    def __call__(self, t):
        self.times.append(t)
        return 0.25


# the functions of time


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), lambda t: 1.0),
        (Linear(4.0), lambda t: t / 4 if t < 4 else 1.0),
        (Sigmoid(4.0, 6.0), lambda t: expit(6 * (t / 4 - 0.5))),
        # Fu et al. (2019): tau = mod(t, T/M) / (T/M); tau / R up to R, 1 from there
        (Cyclic(8.0, 0.5), lambda t: min(1.0, math.fmod(t, 8.0) / 8.0 / 0.5)),
        (Cyclic(8.0, 1.0), lambda t: (t / 8.0) % 1),
    ],
)
def test_schedules_are_those_written_out(schedule, expected):
    for t in TIMES:
        assert schedule(t) == pytest.approx(expected(t), rel=1e-12, abs=1e-15)
        assert 0 <= schedule(t) <= 1
    assert schedule(math.inf) == 1.0
    assert Sigmoid(4.0)(4.0) == pytest.approx(0.993, abs=5e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(0.0), "length to be positive and finite; got 0.0"),
        (lambda: Linear(math.inf), "length to be positive and finite; got inf"),
        (lambda: Cyclic(-1.0), "length to be positive and finite; got -1.0"),
        (lambda: Cyclic(8.0, 0.0), "rise to be positive"),
        (lambda: Cyclic(8.0, 1.5), r"rise in \(0, 1\]; got 1.5"),
        (lambda: Sigmoid(math.nan), "length to be positive"),
        (lambda: Sigmoid(8.0, -2.0), "steepness to be positive and finite; got -2.0"),
        (lambda: BetaELBO(-1.0), r"beta to be finite and in \[0, inf\]; got -1.0"),
        (lambda: BetaELBO(math.inf), "beta to be finite"),
        (lambda: BetaELBO(kl="exact"), "'analytic' or 'sampled'; got 'exact'"),
        (lambda: BetaELBO(num_particles=0), "num_particles to be a positive whole number"),
        (lambda: BetaELBO(steps_per_epoch=1.5), "steps_per_epoch to be a positive whole number"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("constant", Constant()), ("linear:5", Linear(5.0)), ("cyclic:10,0.4", Cyclic(10.0, 0.4)),
     ("sigmoid", Sigmoid())],
)  # fmt: skip
@pytest.mark.parametrize("objective", [BetaELBO, Capacity])
def test_schedules_by_name(objective, text, expected):
    assert typed("objective", objective, {"schedule": text}, ())["schedule"] == expected
    with pytest.raises(ValueError, match="schedule to be one of constant, cyclic, linear, sigmoid"):
        typed("objective", objective, {"schedule": "cosine"}, ())


# beta by SVI


def gradient(vae, objective, *pair_and_data):
    vae.zero_grad(set_to_none=True)
    with seeded(5):
        loss = objective.loss_and_grads(*pair_and_data)
    grads = [p.grad.flatten() for p in vae.parameters() if p.grad is not None]
    return loss, torch.cat(grads)


@pytest.mark.parametrize(("kl", "engine"),
                         [("analytic", TraceMeanField_ELBO), ("sampled", Trace_ELBO)])  # fmt: skip
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_beta_is_with_beta_around_pyros_elbo(kl, engine, beta, num_particles):
    vae, x = small()
    pair = with_beta(vae.model, beta), with_beta(vae.guide, beta)
    expected = gradient(vae, engine(num_particles=num_particles), *pair, x)
    objective = BetaELBO(beta, kl=kl, num_particles=num_particles)
    got = gradient(vae, objective, vae.model, vae.guide, x)
    assert got[0] == expected[0] and torch.equal(got[1], expected[1])
    with seeded(5):
        assert objective.loss(vae.model, vae.guide, x) == pytest.approx(got[0], rel=1e-6)
    other = gradient(vae, BetaELBO(beta + 0.1, kl=kl, num_particles=num_particles),
                     vae.model, vae.guide, x)  # fmt: skip
    assert other[0] != pytest.approx(got[0], rel=1e-4)  # negative control


def test_the_score_functions_gradient_of_beta_is_exact_in_the_mean():
    """One-hot z of 3 categories: the sum over them against 30,000 draws of each datum."""
    vae = build(data_shape=(4,), latent_dim=3, prior="one-hot-categorical", hidden=(5,), seed=3,
                posterior="one-hot-categorical").double()  # fmt: skip
    x, beta = small()[1][:4].double(), 3.0
    z = torch.eye(3).double().unsqueeze(1).expand(3, 4, 3)
    q, p = vae.posterior(x), vae.prior()
    log_q = q.log_prob(z)
    value = vae.likelihood(z).log_prob(x) + beta * (p.log_prob(z) - log_q)
    exact = -(log_q.exp() * value).sum()
    weights = list(vae.posterior.parameters()) + list(vae.likelihood.parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(exact, weights)])
    found = {3.0: [], 1.0: []}
    for factor, rows in found.items():
        for seed in range(60):
            vae.zero_grad(set_to_none=True)
            with seeded(seed):
                BetaELBO(factor, kl="sampled").loss_and_grads(
                    vae.model, vae.guide, x.repeat(500, 1)
                )
            rows.append(torch.cat([w.grad.flatten() for w in weights]) / 500)

    def distance(rows):
        rows = torch.stack(rows)
        return ((rows.mean(0) - expected).abs() / (rows.std(0) / 60**0.5 + 1e-9)).max()

    assert distance(found[3.0]) < 5  # of 87 numbers, t with 59 degrees of freedom: p < 5e-4
    assert distance(found[1.0]) > 20  # negative control


def test_a_schedule_moves_at_every_step_of_svi():
    vae, x = small()
    objective = BetaELBO(4.0, Linear(2.0), steps_per_epoch=2)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), objective)
    for beta in (0.0, 1.0, 2.0, 3.0, 4.0, 4.0):
        pair = with_beta(vae.model, beta), with_beta(vae.guide, beta)
        with seeded(5):
            expected = TraceMeanField_ELBO().loss(*pair, x)
        for _ in range(2):  # looking does not move it
            with seeded(5):
                assert svi.evaluate_loss(x) == pytest.approx(expected, rel=1e-6)
        with seeded(5):
            assert svi.step(x) == pytest.approx(expected, rel=1e-6)


def test_a_capacity_grows_at_every_step_of_svi():
    vae, x = small()
    objective = Capacity(2.0, 10.0, Linear(4.0))
    for t in range(6):
        with seeded(5):
            loss = objective.loss_and_grads(vae.model, vae.guide, x)
        with seeded(5):
            found = particles(vae.model, vae.guide, x)
        kl = divided_kl(found.latents[0], "site").mean()
        penalty = 2.0 * (kl - 10.0 * min(1.0, t / 4)).abs()
        assert -loss == pytest.approx((found.log_likelihood.sum() - 20 * penalty).item(), rel=1e-5)


# beta by fit


def weights_after(objective, **options):
    vae, x = small()
    history = fit(vae.model, vae.guide, x, objective=objective, epochs=3, batch_size=8, **options)
    return torch.cat([p.detach().flatten() for p in vae.parameters()]), history


def test_fit_takes_the_objectives_beta_or_its_own():
    constant, history = weights_after(BetaELBO(3.0))
    assert torch.equal(constant, weights_after(TraceMeanField_ELBO(), beta=3.0)[0])
    assert history["beta"] == [3.0, 3.0, 3.0]
    overridden, history = weights_after(BetaELBO(3.0, Linear(2.0)), beta=0.5)
    assert torch.equal(overridden, weights_after(TraceMeanField_ELBO(), beta=0.5)[0])
    assert history["beta"] == [0.5, 0.5, 0.5]
    warmed, history = weights_after(BetaELBO(3.0, Linear(2.0)))
    assert history["beta"] == [0.0, 1.5, 3.0]
    by_epoch = weights_after(TraceMeanField_ELBO(), beta=lambda e: 3.0 * min(1.0, e / 2))[0]
    assert not torch.equal(warmed, constant) and not torch.equal(warmed, by_epoch)  # by steps


@pytest.mark.parametrize("make", [lambda s: BetaELBO(2.0, s), lambda s: Capacity(2.0, 3.0, s)])
def test_a_schedule_moves_at_every_step_of_fit(make):
    """3 epochs of 3 batches: thirds of an epoch, in order."""
    noted = Noted()
    weights_after(make(noted))
    steps = [t for t in noted.times if t != int(t)]
    assert steps == pytest.approx([1 / 3, 2 / 3, 4 / 3, 5 / 3, 7 / 3, 8 / 3])


def test_validation_is_at_a_beta_of_one():
    vae, x = small()
    history = fit(vae.model, vae.guide, x, objective=BetaELBO(7.0, Linear(9.0)), epochs=1,
                  validation=x)  # fmt: skip
    vae.eval()
    with seeded(mixed(0, 0)):  # of the first batch
        expected = TraceMeanField_ELBO().loss(vae.model, vae.guide, x) / 20
    assert history["validation_loss"] == [pytest.approx(expected, rel=1e-6)]
    with seeded(0):  # negative control
        other = BetaELBO(7.0).loss(vae.model, vae.guide, x) / 20
    assert other != pytest.approx(expected, rel=1e-3)


def test_fit_leaves_the_objective_as_it_was():
    for objective in (BetaELBO(2.0, Linear(2.0)), Capacity(2.0, 3.0, Linear(2.0)), BetaTC()):
        weights_after(objective, validation=small()[1])
        assert getattr(objective, "beta", None) is None
        assert getattr(objective, "num_data", None) is None
        assert not hasattr(objective, "clock") or objective.clock.epoch is None


def test_fit_tells_how_many_data_there_are():
    """N is all rows, not the batch's; a number that was given stays."""
    told = []

    class Asking(BetaTC):
        def estimate(self, *args):
            told.append(self.num_data)
            return super().estimate(*args)

    weights_after(Asking())
    weights_after(Asking(num_data=400))
    assert set(told) == {20, 400}
    # the loss of "weighted" moves by (gamma d - alpha - beta (d - 1)) log N, d = 2
    few, many = (weights_after(BetaTC(5.0, num_data=n))[1]["loss"][0] for n in (20, 400))
    assert many - few == pytest.approx(-(2 - 1 - 5) * math.log(20), rel=1e-4)


# the command line


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("beta", ["beta=4", "schedule=linear:5"], BetaELBO(4, Linear(5.0))),
        ("beta-elbo", ["kl=sampled", "schedule=cyclic:1,0.5"],
         BetaELBO(kl="sampled", schedule=Cyclic(1.0, 0.5))),
        ("capacity", ["gamma=10", "capacity=5", "schedule=sigmoid:2"],
         Capacity(10, 5, Sigmoid(2.0))),
        ("free-bits", ["nats=0.5", "per=site"], FreeBits(0.5, "site")),
        ("beta-tc", ["beta=3", "estimator=stratified"], BetaTC(3, estimator="stratified")),
        ("info-vae", ["alpha=0.5", "weight=20", "bandwidth=2"], InfoVAE(0.5, 20, 2)),
        ("mmd", ["weight=100"], MMD(100)),
    ],
)  # fmt: skip
def test_each_by_the_command_line(name, options, expected, tmp_path, monkeypatch):
    """It is made as asked, trains on the digits, and the run says what it was."""
    monkeypatch.setattr("pyrovae.plots.save_all", lambda *args: [])  # they take most of the time
    made, make = [], experiment._objective
    monkeypatch.setattr(experiment, "_objective", lambda *a: made.append(make(*a)) or made[-1])
    words = ["train", "--objective", name, "--epochs", 2, "--hidden", 20, "--latent-dim", 4,
             "--run", tmp_path / "run"]  # fmt: skip
    words += [word for option in options for word in ("--objective-option", option)]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, (result.output, result.stderr)
    (objective,) = made
    assert type(objective) is type(expected) and settings(objective) == settings(expected)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["training"]
    assert config["objective"] == name and len(config["objective_options"]) == len(options)
    with (tmp_path / "run" / "history.csv").open() as file:
        first, second = (float(row["reconstruction"]) for row in csv.DictReader(file))
    assert second > first + 0.5


def settings(objective):
    """What an objective was made with."""
    names = ("peak", "schedule", "analytic_kl", "gamma", "capacity", "nats", "per", "factors",
             "estimator", "num_data", "alpha", "weight", "bandwidth")  # fmt: skip
    return {name: getattr(objective, name, None) for name in names}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("schedule=cosine:5", "schedule to be one of constant, cyclic, linear, sigmoid"),
        ("schedule=linear:0", "length to be positive and finite"),
        ("gamma=2", "expected options of objective beta among"),
        ("beta=-1", "beta to be finite and in"),
    ],
)
def test_what_the_command_line_cannot_make(option, message, tmp_path):
    words = ["train", "--objective", "beta", "--objective-option", option, "--run", tmp_path / "r"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())


# fit's validation, and what it leaves behind


def test_validation_is_at_the_end_of_a_schedule():
    """Or a capacity that grows would make later epochs seem worse, and keep the first weights."""
    vae, x = small()
    objective = Capacity(50.0, 2.0, Linear(3.0))
    history = fit(vae.model, vae.guide, x, objective=objective, epochs=1, validation=x)
    vae.eval()
    losses = []
    for schedule in (Constant(), Linear(3.0)):  # the second is the negative control: t = 0
        with seeded(mixed(0, 0)):
            losses.append(Capacity(50.0, 2.0, schedule).loss(vae.model, vae.guide, x) / 20)
    assert history["validation_loss"] == [pytest.approx(losses[0], rel=1e-6)]
    assert losses[1] != pytest.approx(losses[0], rel=1e-3)
    history = fit(vae.model, vae.guide, x, objective=objective, epochs=6, lr=0.01, validation=x)
    assert history.best_epoch == 6


def test_validation_may_have_more_data_than_training():
    vae, x = small()
    history = fit(vae.model, vae.guide, x[:8], objective=BetaTC(), epochs=1, validation=x)
    vae.eval()
    with seeded(mixed(0, 0)):  # of the first batch
        expected = BetaTC(num_data=20).loss(vae.model, vae.guide, x) / 20
    assert history["validation_loss"] == [pytest.approx(expected, rel=1e-6)]


def test_the_best_epoch_under_a_sigmoid_is_not_the_last_by_force():
    vae, x = small()
    losses = fit(vae.model, vae.guide, x, objective=BetaELBO(1.0, Sigmoid(1.0, 12.0)), epochs=8,
                 lr=0.3, validation=1 - x)  # fmt: skip
    found = losses["validation_loss"]
    assert found.index(min(found[1:])) != 7  # else it would show nothing
    assert losses.best_epoch == 1 + found.index(min(found[1:]))


def test_fit_does_not_move_the_objectives_own_clock():
    objective = Capacity(2.0, 3.0, Linear(2.0))
    weights_after(objective, validation=small()[1])
    assert objective.clock.steps == 0
