import math

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from torch.distributions import kl_divergence

from pyrovae.distributions import (
    ContinuousBernoulli,
    MixtureOfNormals,
    diagonal_normal,
    seeded,
)

F64 = torch.float64


def components(full: bool):
    with seeded(2):
        loc = torch.randn(7, 3, dtype=F64)
        scale = 0.3 + torch.rand(7, 3, dtype=F64)
        if full:
            scale = torch.diag_embed(scale) + torch.randn(7, 3, 3, dtype=F64).tril(-1)
        return [t.requires_grad_() for t in (loc, scale, torch.randn(7, dtype=F64))]


def torch_mixture(loc, scale, logits):
    part = (
        dist.MultivariateNormal(loc, scale_tril=scale)
        if scale.dim() == 3
        else diagonal_normal(loc, scale)
    )
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), part)


@pytest.mark.parametrize("full", [False, True])
def test_mixture_is_torchs_in_value_and_gradient(full):
    z = torch.randn(4, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) * 3
    results = []
    for make in (MixtureOfNormals, torch_mixture):
        parameters = components(full)
        value = z.clone().requires_grad_()
        log_p = make(*parameters).log_prob(value)
        log_p.square().sum().backward()
        gradients = [p.grad.tril() if p.dim() == 3 else p.grad for p in (*parameters, value)]
        results.append([log_p.detach(), *gradients])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("full", [False, True])
def test_mixture_moments_and_draws(full):
    parameters = [p.detach() for p in components(full)]
    ours, theirs = MixtureOfNormals(*parameters), torch_mixture(*parameters)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
    with seeded(1):
        z = ours.sample((40_000,))
    error = (ours.variance / len(z)).sqrt()
    assert bool(((z.mean(0) - ours.mean).abs() < 4.5 * error).all())  # p < 1e-5 each
    spread = z.sub(ours.mean).square()
    error = spread.std(0) / len(z) ** 0.5
    assert bool(((spread.mean(0) - ours.variance).abs() < 4.5 * error).all())


def test_mixture_in_float32_errs_as_documented():
    loc, scale, logits = (p.detach() for p in components(full=False))
    z = torch_mixture(loc, 0.05 * scale, logits).sample((500,))
    exact = torch_mixture(loc, 0.05 * scale, logits).log_prob(z)
    got = MixtureOfNormals(*(t.float() for t in (loc, 0.05 * scale, logits))).log_prob(z.float())
    # about 1e-7 |z - centre|^2 / s^2, |z - centre| < 5 and s > 0.015
    assert (got.double() - exact).abs().max() < 1e-7 * (5 / 0.015) ** 2


def test_mixture_never_exceeds_its_peak():
    """Rounding, where the means lie far apart in units of their scale, must not reward that."""
    loc, scale = torch.tensor([[-10.0], [10.0]]), torch.full((2, 1), 0.005)
    z = loc + 0.0005 * torch.randn(2, 500).T.reshape(500, 2, 1)
    peak = -math.log(2) - math.log(0.005) - 0.5 * math.log(2 * math.pi)
    assert MixtureOfNormals(loc, scale, torch.zeros(2)).log_prob(z).max() <= peak + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_continuous_bernoulli_integrates_to_one_at_every_logit(dtype):
    logits = torch.tensor([-60, -20, -5, -0.2, -0.1, -1e-3, 0, 1e-6, 0.09, 0.11, 3, 16, 40.0])
    nodes, weights = (torch.tensor(a, dtype=F64) for a in np.polynomial.legendre.leggauss(80))
    x = ((nodes + 1) / 2).to(dtype)[:, None]
    density = ContinuousBernoulli(logits=logits.to(dtype)).log_prob(x).exp()
    integral = (weights / 2) @ density.double()
    tolerance = 1e-12 if dtype == F64 else 1e-5
    torch.testing.assert_close(integral, torch.ones(13, dtype=F64), rtol=0, atol=tolerance)
    theirs = dist.ContinuousBernoulli(logits=logits[3:11].double())  # where torch's clamp is far
    ours = ContinuousBernoulli(logits=logits[3:11].double())
    torch.testing.assert_close(
        ours.log_prob(x.double()), theirs.log_prob(x.double()), rtol=1e-6, atol=1e-6
    )


def test_mixture_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"expected loc \(K, D\).*got \(3, 2\), \(3,\)"):
        MixtureOfNormals(torch.zeros(3, 2), torch.ones(3), torch.zeros(3))


def pair_of_normals():
    with seeded(4):
        tril = torch.randn(5, 3, 3, dtype=F64).tril(-1)
        tril = (tril + torch.diag_embed(0.2 + torch.rand(5, 3, dtype=F64))).requires_grad_()
        values = (torch.randn(5, 3), tril, torch.randn(3), 0.5 + torch.rand(3))
        m, tril, u, s = (v.to(F64).detach().requires_grad_() for v in values)
    return m, tril, u, s


def test_kl_full_rank_diagonal_is_that_of_full_covariances():
    results = []
    for full in (False, True):
        m, tril, u, s = pair_of_normals()
        q = dist.MultivariateNormal(u, scale_tril=torch.diag_embed(s)) if full else None
        kl = kl_divergence(dist.MultivariateNormal(m, scale_tril=tril), q or diagonal_normal(u, s))
        kl.square().sum().backward()
        results.append([kl.detach(), m.grad, tril.grad.tril(), u.grad, s.grad])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    # negative control: counted twice, it would not pass
    assert not torch.allclose(2 * results[0][0], results[1][0])


def test_kl_of_other_families_stays_unregistered():
    m, tril, *_ = pair_of_normals()
    laplace = dist.Laplace(torch.zeros(3, dtype=F64), 1.0).to_event(1)
    with pytest.raises(NotImplementedError):
        kl_divergence(dist.MultivariateNormal(m, scale_tril=tril), laplace)


def test_seeded_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeded(9):
        first = torch.rand(1)
    assert torch.equal(torch.rand(2), expected)
    with seeded(9):
        assert torch.equal(torch.rand(1), first)
    torch.manual_seed(0)
    with seeded(None):
        torch.rand(2)
    assert not torch.equal(torch.rand(2), expected)
