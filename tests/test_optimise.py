"""Optimizers and schedules: Adam's own arithmetic, and what is done to its gradients."""

import math

import pytest
import torch
from typer.testing import CliRunner

from pyrovae import build, fit
from pyrovae.cli import app
from pyrovae.optimise import NormalisedAdam, Plateau, adam, adamw, cosine, descend, warm_up


def walked(make, gradients, lr=0.01):
    """Two tensors after one step for each pair of gradients."""
    tensors = [torch.nn.Parameter(torch.tensor([1.0, -2.0])), torch.nn.Parameter(torch.ones(3))]
    optimizer = make(tensors, lr=lr)
    for pair in gradients:
        for tensor, gradient in zip(tensors, pair, strict=True):
            tensor.grad = gradient.clone()
        optimizer.step()
    return torch.cat([t.detach() for t in tensors])


def gradients(steps=7):
    generator = torch.Generator().manual_seed(1234)
    scales = [10.0 ** (i % 3) for i in range(steps)]
    return [(s * torch.randn(2, generator=generator), torch.randn(3, generator=generator) / s)
            for s in scales]  # fmt: skip


def by_formula(steps, lr=0.01, decay=0.0, b1=0.9, b2=0.999):
    """Kingma & Ba (2015), algorithm 1; with decay, Loshchilov & Hutter (2019), algorithm 2."""
    x = torch.tensor([1.0, -2.0, 1.0, 1.0, 1.0])
    m, v = torch.zeros(5), torch.zeros(5)
    for t, pair in enumerate(steps, 1):
        g = torch.cat(pair)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        x = x - lr * decay * x - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + 1e-8)
    return x


def test_adam_and_adamw_are_the_papers():
    steps = gradients()
    torch.testing.assert_close(walked(adam, steps), by_formula(steps))
    torch.testing.assert_close(walked(adamw, steps), by_formula(steps, decay=0.01))
    assert not torch.allclose(walked(adam, steps), by_formula(steps, decay=0.01))  # control


def test_normalised_adam_divides_each_tensors_gradient_by_its_norm():
    steps = gradients()
    normalised = [tuple(g / (g.norm() + 1e-7) for g in pair) for pair in steps]
    torch.testing.assert_close(walked(NormalisedAdam, steps), by_formula(normalised))
    assert not torch.allclose(walked(NormalisedAdam, steps), by_formula(steps), atol=1e-4)


def test_a_gradient_of_zero_or_none_is_left():
    still = torch.nn.Parameter(torch.ones(2))
    unused = torch.nn.Parameter(torch.ones(2))
    still.grad = torch.zeros(2)
    NormalisedAdam([still, unused], lr=0.1).step()
    assert torch.equal(still.detach(), torch.ones(2)) and torch.equal(unused, still)


def test_schedules():
    assert [cosine(t) for t in (0.0, 0.5)] == [1.0, 0.5] and cosine(1.0) == pytest.approx(0)
    assert [warm_up(t) for t in (0.0, 0.025, 0.05, 0.9)] == [0.0, 0.5, 1.0, 1.0]


def test_descend_follows_a_schedule():
    """Plain gradient descent on x^2/2: x is the product of 1 - lr factor(t)."""
    x = torch.nn.Parameter(torch.tensor([1.0]))

    def closure():
        (x**2 / 2).sum().backward()
        return float(x.detach() ** 2 / 2)

    descend(lambda epoch: [(closure, 1.0)] * 4, [x], epochs=2, steps_per_epoch=4, lr=0.5,
            optimizer=torch.optim.SGD, schedule=cosine)  # fmt: skip
    expected = math.prod(1 - 0.5 * cosine(t / 8) for t in range(8))
    assert float(x.detach()) == pytest.approx(expected, rel=1e-5)


def test_the_command_line_names_them(tmp_path):
    run = tmp_path / "run"
    command = ["train", "--epochs", "1", "--optimizer", "normalised-adam", "--schedule", "warm-up"]
    result = CliRunner().invoke(app, [*command, "--run", str(run)])
    assert result.exit_code == 0, result.output
    text = (run / "config.json").read_text()
    assert '"optimizer": "normalised-adam"' in text and '"schedule": "warm-up"' in text
    for option, message in (
        (["--optimizer", "sgd"], "optimizer to be one of adam, adamw, normalised-adam; got 'sgd'"),
        (["--schedule", "step"], "one of constant, cosine, plateau, warm-up; got 'step'"),
        (["--compile", "maybe"], "compile to be 'auto', 'always' or 'never'; got 'maybe'"),
    ):
        result = CliRunner().invoke(app, ["train", *option, "--run", str(tmp_path / "other")])
        assert result.exit_code == 2 and message in result.output
        assert not (tmp_path / "other").exists()


def test_a_plateau_lowers_the_rate_only_after_so_many_epochs_without_a_better_loss():
    schedule = Plateau(patience=3, factor=0.1, least=0.05)
    rates = []
    for loss in (5.0, 4.0, 4.0, 4.5, 3.9, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0):
        schedule.after_epoch(loss)
        rates.append(schedule(0.9))
    assert rates == [1.0] * 7 + [0.1] * 2 + [0.1, 0.05]  # 3.9 came in time; then 3 and 3 more
    again = Plateau(patience=3, factor=0.1, least=0.05)
    again.load_state_dict(schedule.state_dict())
    assert (again.rate, again.best, again.waited) == (0.05, 3.9, 0)
    for wrong in ({"patience": 0}, {"factor": 1.0}, {"least": -0.1}):
        with pytest.raises(ValueError, match=f"expected {next(iter(wrong))} to be"):
            Plateau(**wrong)


def test_fit_follows_a_plateau_by_the_validation_loss():
    """And leaves the schedule that it was given alone."""
    pair = build(data_shape=(4,), latent_dim=2, hidden=(8,))
    x = torch.ones(32, 4)
    schedule = Plateau(patience=1, factor=0.5)
    history = fit(
        pair.model, pair.guide, x, validation=1 - x, epochs=6, lr=0.1, schedule=schedule
    )  # fmt: skip
    assert history["lr"][0] == 0.1 and history["lr"][-1] <= 0.025  # it learns the opposite
    assert schedule.rate == 1.0 and schedule.waited == 0


def test_each_step_has_noise_of_its_own():
    """By epoch and step: the draws of two epochs of two steps are four."""
    drawn = []
    pair = build(data_shape=(4,), latent_dim=2, hidden=(8,))
    pair.likelihood.net.register_forward_pre_hook(
        lambda module, args: drawn.append(args[0].detach().clone()) if module.training else None
    )
    fit(pair.model, pair.guide, torch.ones(8, 4), epochs=2, batch_size=4, lr=1e-9)
    steps = torch.stack([z for z in drawn if len(z) == 4][-4:])
    assert len(steps.flatten(1).unique(dim=0)) == 4
