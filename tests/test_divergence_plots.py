"""The picture of forward and reverse KL: what is drawn, and the numbers under it."""

import math

import pytest
import torch

from pyrovae.distributions import MixtureOfNormals
from pyrovae.divergences import NormalFamily, fit_reverse
from pyrovae.plots import divergence

F64 = torch.float64


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small tensors: on a busy machine a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def drawn():
    """The picture, and the (target, fits) of its two panels."""
    panels = []
    with pytest.MonkeyPatch.context() as patch:
        fit = divergence._fits

        def remember(target, seed):
            panels.append((target, fit(target, seed)))
            return panels[-1][1]

        patch.setattr(divergence, "_fits", remember)
        figure = divergence.forward_reverse()
    return figure, panels


def deviations(q, target):
    """How many standard deviations of q each mode lies from its mean."""
    off = target.loc - q.mean
    return ((off @ torch.linalg.inv(covariance(q))) * off).sum(-1).sqrt()


def covers(q, target):
    """Both modes are within two standard deviations of q."""
    return bool((deviations(q, target) < 2).all())


def sits_on_one(q, target):
    """q's mean and scale are those of one mode, and the other is over four deviations away."""
    root = target.scale if target.scale.dim() == 3 else torch.diag_embed(target.scale)
    near = (target.loc - q.mean).abs().amax(-1) < 0.1
    alike = (covariance(q) - root @ root.mT).abs().amax((-2, -1)) < 0.1
    far = deviations(q, target) > 4
    return bool((near & alike & far.flip(0)).any())


def covariance(q):
    full = getattr(q, "covariance_matrix", None)
    return torch.diag(q.variance) if full is None else full


@pytest.mark.parametrize("panel", [0, 1])
def test_forward_covers_both_modes_and_reverse_sits_on_one(drawn, panel):
    target, fits = drawn[1][panel]
    assert target.event_shape == (panel + 1,)
    by_forward, by_reverse = fits["forward"], fits["reverse"]
    assert covers(by_forward.q, target) and not sits_on_one(by_forward.q, target)
    assert sits_on_one(by_reverse.q, target) and not covers(by_reverse.q, target)
    # and the numbers say so: each fit is far the better one by its own direction
    assert by_forward.forward + 5 < by_reverse.forward
    assert by_reverse.reverse + 0.3 < by_forward.reverse
    # one mode of weight 0.6 taken for the whole costs -log 0.6
    assert abs(by_reverse.reverse + math.log(0.6)) < 0.01


@pytest.mark.parametrize("panel", [0, 1])
def test_numbers_under_the_picture_are_those_of_the_fits(drawn, panel):
    figure, panels = drawn
    axes = figure.axes[2 + panel]
    fits = panels[panel][1]
    shown = [t.get_text() for t in axes.texts if t.get_text()[0].isdigit()]
    kls = [[getattr(fits[row], column) for column in fits] for row in fits]
    assert shown == [f"{float(kl):.3f}" for row in kls for kl in row]
    bold = [t.get_text() for t in axes.texts if t.get_weight() == "bold"]
    assert bold == [shown[0], shown[3]]


def test_both_panels_show_target_and_two_fits(drawn):
    figure, panels = drawn
    line, plane = figure.axes[:2]
    x = line.lines[0].get_xdata()
    for curve, fit in zip(line.lines, panels[0][1].values(), strict=True):
        density = fit.q.log_prob(torch.tensor(x)[:, None]).exp()
        torch.testing.assert_close(torch.tensor(curve.get_ydata()), density)
    assert len(line.collections) == 1 and len(plane.collections) == 3
    (legend,) = figure.legends
    assert [t.get_text().split(",")[0] for t in legend.get_texts()] == [
        "target p", "forward fit", "reverse fit",
    ]  # fmt: skip
    figure.canvas.draw()


@pytest.mark.parametrize("side, mode", [(-1.0, 0), (1.0, 1)])
def test_reverse_fit_sits_on_the_mode_it_starts_near(side, mode):
    loc = torch.tensor([[-3.0], [3.0]], dtype=F64)
    p = MixtureOfNormals(loc, torch.full_like(loc, 0.8), torch.zeros(2, dtype=F64))
    fit = fit_reverse(p, NormalFamily(1, loc=side).double(), steps=300, lr=0.1)
    assert abs(fit.q.mean - p.loc[mode]) < 0.05
    assert abs(fit.q.stddev - 0.8) < 0.05
    assert abs(fit.reverse - math.log(2)) < 1e-2  # half the mass, taken for the whole
    assert fit.forward > 5
