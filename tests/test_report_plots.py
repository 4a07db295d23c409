"""The report's charts and mosaics: what is drawn is what was given."""

import numpy as np
import pytest
import torch

from pyrovae import plots
from pyrovae.plots import maps, mosaics


def test_khat_histogram_splits_at_the_threshold():
    khat = torch.tensor([-torch.inf, 0.1, 0.5, 0.66, 0.67, 0.9, torch.inf])
    axes = plots.khat_histogram(khat, 0.667).axes[0]
    bars = [(p.get_x(), p.get_x() + p.get_width(), p.get_height()) for p in axes.patches]
    assert sum(b[2] for b in bars if b[1] <= 0.667 + 1e-6) == 4
    assert sum(b[2] for b in bars if b[0] >= 0.667 - 1e-6) == 3
    assert sum(b[2] for b in bars) == 7


def test_gap_bars_are_as_long_as_the_gaps():
    axes = plots.gap_bars(["a", "b"], [(2.0, 0.1), (3.0, 0.1)], [(1.0, 0.2), (0.5, 0.2)]).axes[0]
    spans = {(round(p.get_y()), p.get_x(), p.get_x() + p.get_width()) for p in axes.patches}
    assert spans == {(0, 0.0, 2.0), (0, 2.0, 3.0), (1, 0.0, 3.0), (1, 3.0, 3.5)}


def test_evidence_intervals_lie_above_the_elbo():
    elbo, estimate = torch.tensor([-5.0, -9.0]), torch.tensor([-3.0, -8.5])
    high = torch.tensor([torch.inf, -8.0])
    axes = plots.evidence_intervals(elbo, estimate, estimate - 1, high).axes[0]
    marks = {tuple(map(float, line.get_xydata()[0])) for line in axes.lines[:2]}
    assert marks == {(1.0, 0.5), (2.0, 2.0)}  # in the order of the gap
    segments = [s for c in axes.collections for s in c.get_segments()]
    assert sorted((s[0, 1], s[1, 1]) for s in segments) == [(-0.5, 1.0), (1.0, 2.0)]


@pytest.mark.parametrize("shape", [(6, 6), (1, 6, 4), (3, 6, 6), (7,), (2, 3, 4)])
def test_mosaics_of_any_shape(shape):
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(1234))
    x[0].view(-1)[0] = torch.nan
    figure = plots.mosaic([x, x[:3]], ["one", "two"], [list("abcde"), []], least=8)
    axes = figure.axes[0]
    assert len(axes.images or axes.lines) == 8
    figure.canvas.draw()
    assert {t.get_text() for t in axes.texts} == {"one", "two", *"abcde"}


def test_sprites_keep_colours_and_say_what_is_missing():
    x = torch.zeros(3, 3, 2, 2)
    x[1, 0] = 1.0  # red
    x[2, :, 0, 0] = torch.nan
    found = mosaics.sprite(x, columns=2)
    assert found.shape == (4, 4, 3)
    assert found[0, 2].tolist() == [255, 0, 0] and found[0, 0].tolist() == [0, 0, 0]
    assert found[2, 0].tolist() == [0xF3, 0xD9, 0xC4] and found[2, 1].tolist() == [0, 0, 0]
    grey = mosaics.sprite(torch.tensor([[[0.0, 1.0]]]), columns=1)
    assert grey.tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("d", [1, 2, 4])
def test_the_plane_of_the_latents(d):
    z = torch.randn(50, d, generator=torch.Generator().manual_seed(1234)) * torch.arange(d, 0, -1)
    points, names = maps.plane(z)
    assert points.shape == (50, 2) and len(names) == 2
    if d > 2:  # principal components: uncorrelated, the first with the larger variance
        covariance = torch.cov(points.T)
        assert covariance[0, 0] > covariance[1, 1] and abs(covariance[0, 1]) < 1e-9
        top = torch.linalg.eigvalsh(torch.cov(z.double().T))[-2:].flip(0)
        torch.testing.assert_close(covariance.diagonal(), top)
    else:
        torch.testing.assert_close(points[:, :d], z.double())
    figure, at = plots.latent_map(points, names, torch.arange(50) % 12)
    assert bool(((at > 0) & (at < 1)).all())
    pixels = figure.axes[0].transData.transform(points.numpy()) / figure.bbox.size
    np.testing.assert_allclose(at.numpy(), np.stack([pixels[:, 0], 1 - pixels[:, 1]], 1), atol=1e-6)
