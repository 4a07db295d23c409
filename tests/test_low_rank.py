"""Normals of low rank plus a diagonal: marginals over any entries, and float32."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from pyro import distributions as dist

from pyrovae.distributions import LowRankNormal, seeded

F64 = torch.float64


def low_rank(shape=(2, 3), rank=2, n=4):
    with seeded(5):
        loc, factor = torch.randn(n, *shape), torch.randn(n, *shape, rank)
        scale, value = 0.1 + torch.rand(n, *shape), torch.randn(n, *shape)
        mask = torch.rand(n, *shape) < 0.6
    mask[0], mask[1:2] = True, False
    return [t.double() for t in (loc, factor, scale, value)], mask


def test_marginals_of_any_entries_are_scipys():
    (loc, factor, scale, value), mask = low_rank()
    got = LowRankNormal(loc, factor, scale, 2).log_prob_of(value, mask)
    whole = LowRankNormal(loc, factor, scale, 2).log_prob(value)
    for i in range(4):
        seen = mask[i].flatten().numpy()
        w = factor[i].flatten(0, 1).numpy()
        cov = w @ w.T + np.diag(scale[i].flatten().numpy() ** 2)
        m, x = loc[i].flatten().numpy(), value[i].flatten().numpy()
        expected = scipy.stats.multivariate_normal.logpdf(x, m, cov)
        np.testing.assert_allclose(whole[i], expected, rtol=1e-12)
        if seen.any():
            expected = scipy.stats.multivariate_normal.logpdf(
                x[seen], m[seen], cov[np.ix_(seen, seen)]
            )
        else:
            expected = 0.0
        np.testing.assert_allclose(got[i], expected, rtol=1e-12, atol=1e-15)
    conditional = torch.where(mask, LowRankNormal(loc, factor, scale, 2).variance, 0).sum()
    assert conditional > 0 and not torch.allclose(got, whole)  # negative control: masks matter


def test_a_marginal_integrates_the_density():
    """Not by linear algebra: quadrature over the entry that is missing."""
    (loc, factor, scale, value), _ = low_rank(shape=(2,), rank=1, n=1)
    d = LowRankNormal(loc, factor, scale)
    axis = torch.linspace(-30, 30, 6001, dtype=F64)
    pairs = torch.stack([value[0, 0].expand(6001), axis], -1).unsqueeze(1)
    integral = d.log_prob(pairs).exp().sum() * (axis[1] - axis[0])
    mask = torch.tensor([True, False])
    torch.testing.assert_close(d.log_prob_of(value, mask).exp().squeeze(), integral)


def test_missing_entries_may_be_nan_and_leave_gradients():
    (loc, factor, scale, value), mask = low_rank()
    leaves = [t.requires_grad_() for t in (loc, factor, scale)]
    d = LowRankNormal(*leaves, 2)
    expected = d.log_prob_of(value, mask)
    holes = torch.where(mask, value, math.nan)
    got = d.log_prob_of(holes, mask)
    torch.testing.assert_close(got, expected)
    gradients = torch.autograd.grad(got.sum(), leaves)
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert not bool(gradients[0][~mask].any())
    with pytest.raises(ValueError, match="support"):
        d.log_prob(holes)
    lifted = d.log_prob_of(holes.expand(3, 4, 2, 3), mask)
    torch.testing.assert_close(lifted, expected.expand(3, 4))


def test_small_noise_in_float32():
    """A pixel's floor under factors of 1: torch's difference of squares loses whole nats."""
    with seeded(2):
        loc, factor = torch.zeros(784), torch.rand(784, 3)
        scale = torch.full((784,), 0.5 / 255)
        value = LowRankNormal(loc, factor, scale).sample()
    doubled = [t.double() for t in (loc, factor, scale)]
    exact = LowRankNormal(*doubled).log_prob(value.double())
    theirs = dist.LowRankMultivariateNormal(doubled[0], doubled[1], doubled[2].square())
    torch.testing.assert_close(theirs.log_prob(value.double()), exact)
    assert (LowRankNormal(loc, factor, scale).log_prob(value) - exact).abs() < 0.05
    theirs = dist.LowRankMultivariateNormal(loc, factor, scale.square())
    assert (theirs.log_prob(value) - exact).abs() > 1  # negative control


def test_draws_of_low_rank_have_its_covariance():
    (loc, factor, scale, _), _ = low_rank(n=1)
    d = LowRankNormal(loc, factor, scale, 2)
    with seeded(3):
        x = d.rsample((40_000,)).reshape(40_000, 6)
    w = factor.reshape(6, 2)
    cov = w @ w.T + scale.reshape(6).square().diag()
    error = ((cov.square() + cov.diagonal().outer(cov.diagonal())) / len(x)).sqrt()
    assert bool(((x.T.cov() - cov).abs() < 4.5 * error).all())  # p < 1e-5 each
    torch.testing.assert_close(d.variance.flatten(), cov.diagonal())
