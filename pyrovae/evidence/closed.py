"""The evidence of a linear-Gaussian pair, in closed form."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrovae.evidence.latents import Problem, problem
from pyrovae.evidence.results import ExactEvidence

TOLERANCE = 1e-8  # relative deviation from a quadratic that rounding leaves in float64


@dataclass(frozen=True)
class Quadratic:
    """f(z) = a + b'z + z'Hz / 2, one a datum.

    Attributes:
        a: (N,).
        b: (N, d).
        h: (N, d, d).
        error: the largest deviation of f from it at other points, (N,).
    """

    a: Tensor
    b: Tensor
    h: Tensor
    error: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """Return f at z (K, N, d): (K, N)."""
        return (
            self.a
            + torch.einsum("nd,knd->kn", self.b, z)
            + 0.5 * torch.einsum("knd,nde,kne->kn", z, self.h, z)
        )

    def expectation(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Return E[f(z)] under moments (N, d), (N, d, d): f(mean) + tr(H covariance) / 2."""
        return self(mean[None])[0] + 0.5 * torch.einsum("nde,ned->n", self.h, covariance)


def probe(f: Callable[[Tensor], Tensor], n: int, d: int) -> Quadratic:
    """Fit a quadratic to f, (K, N, d) -> (K, N), at 1 + 2d + d (d - 1) / 2 points; test it at more.

    For a quadratic, differences of any step give its coefficients exactly.
    """
    unit = torch.eye(d, dtype=torch.float64)
    i, j = torch.triu_indices(d, d, 1)
    points = torch.cat([torch.zeros(1, d, dtype=torch.float64), unit, -unit, unit[i] + unit[j]])
    values = f(points[:, None].expand(-1, n, d))
    a, plus, minus, both = values.split([1, d, d, len(i)])
    a = a[0]
    b = ((plus - minus) / 2).T
    h = torch.diag_embed((plus + minus - 2 * a).T)
    h[:, i, j] = h[:, j, i] = (both - plus[i] - plus[j] + a).T
    quadratic = Quadratic(a, b, h, torch.zeros_like(a))
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(8, 1, d, dtype=torch.float64, generator=generator)
    other = (other * torch.tensor([0.5, 3.0], dtype=torch.float64).repeat(4)[:, None, None]).expand(
        -1, n, d
    )
    error = (f(other) - quadratic(other)).abs().amax(0)
    return Quadratic(a, b, h, error)


def is_quadratic(quadratic: Quadratic, scale: Tensor) -> bool:
    """Did f deviate by rounding alone, given the size of its values?"""
    return bool((quadratic.error <= TOLERANCE * (1 + scale)).all())


def normal_of(
    f: Callable[[Tensor], Tensor], n: int, d: int
) -> tuple[Quadratic, Tensor, Tensor] | None:
    """Return (f, mean, covariance) of the normal whose log-density f is, up to a constant.

    None where f, (K, N, d) -> (K, N), is no concave quadratic.
    """
    found = probe(f, n, d)
    scale = found.a.abs() + found.b.abs().sum(-1) + found.h.abs().sum((-1, -2))
    if not is_quadratic(found, scale):
        return None
    factor, info = torch.linalg.cholesky_ex(-found.h)
    if bool(info.any()):
        return None
    covariance = torch.cholesky_inverse(factor)
    return found, (covariance @ found.b.unsqueeze(-1)).squeeze(-1), covariance


def solve(work: Problem) -> ExactEvidence | None:
    """Return the closed form, or None where log p(x, z) is no concave quadratic in z."""
    if work.discrete:
        return None
    found = normal_of(work.log_joint, len(work.x), work.dim)
    if found is None:
        return None
    f, mean, covariance = found
    log_det = torch.linalg.slogdet(covariance)[1]
    log_evidence = f(mean[None])[0] + 0.5 * work.dim * math.log(2 * math.pi) + 0.5 * log_det
    return ExactEvidence(
        log_evidence, f.error, "linear-gaussian", mean, covariance,
        work.log_joint_of_sites,
    )  # fmt: skip


def linear_gaussian(
    model: Callable, guide: Callable, x: Tensor, *c: Tensor, modules: Sequence[nn.Module] = ()
) -> ExactEvidence:
    """Return log p(x) where log p(x, z) is a quadratic in z, found by probing it.

    With f(z) = log p(x, z) of maximum z* and Hessian H,
    log p(x) = f(z*) + (d/2) log 2 pi - (1/2) log det(-H), and p(z|x) = N(z*, (-H)^-1).
    No class is looked for: any pair whose log joint is quadratic is served. Computes in float64.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c); only its sites matter.
        x: data (N, ...).
        *c: context, N rows each.
        modules: those that the functions hold in their closures.

    Raises:
        ValueError: log p(x, z) is no concave quadratic, or the pair is not valid.

    Source: Tipping & Bishop (1999), eq. 6; Bishop (2006), section 2.3.3.
    """
    with problem(model, guide, x, c, modules) as work:
        found = solve(work)
    if found is None:
        raise ValueError(
            "expected log p(x, z) to be a concave quadratic in z; it is not: use "
            "evidence.quadrature (at most 3 latent dimensions) or evidence.iwae"
        )
    return found
