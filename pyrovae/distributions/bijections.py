"""Invertible maps of R^d with parameters a datum, which normalising flows are made of."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

MIN_SLOPE = 1e-3  # least slope of tanh steps: they stay invertible in float32


class Bijection(ABC):
    """z = f(u), both in R^d, with the logarithm of the Jacobian's determinant.

    To write a new one, keep the tensors that it computes with as attributes, and give `forward` and
    `inverse`. Their left dimensions broadcast with those of u and z.
    """

    @abstractmethod
    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return z = f(u) (..., d), and log |det dz/du| (...)."""

    @abstractmethod
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return u (..., d) with f(u) = z, and log |det dz/du| (...) there."""

    def tensors(self) -> list[Tensor]:
        """Return the tensors that f depends on."""
        return [t for t in vars(self).values() if isinstance(t, Tensor)]


class Composed(Bijection):
    """f = f_T o ... o f_1.

    Args:
        steps: f_1, ..., f_T.
    """

    def __init__(self, steps: Sequence[Bijection]) -> None:
        self.steps = tuple(steps)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Apply f_1 first."""
        total = u.new_zeros(u.shape[:-1])
        for step in self.steps:
            u, log_det = step.forward(u)
            total = total + log_det
        return u, total

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Undo f_T first."""
        total = z.new_zeros(z.shape[:-1])
        for step in reversed(self.steps):
            z, log_det = step.inverse(z)
            total = total + log_det
        return z, total

    def tensors(self) -> list[Tensor]:
        """Return those of all steps."""
        return [t for step in self.steps for t in step.tensors()]


class Affine(Bijection):
    """z = loc + scale * u.

    Args:
        loc: (..., d).
        scale: (..., d), positive.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return loc + scale * u."""
        return self.loc + self.scale * u, self.scale.log().sum(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return (z - loc) / scale."""
        return (z - self.loc) / self.scale, self.scale.log().sum(-1)


class Householder(Bijection):
    """z = H_T ... H_1 u, H_t = I - 2 v_t v_t' / |v_t|^2: an orthogonal map.

    Tomczak & Welling (2016). Where v_t = 0 the first axis stands in.

    Args:
        vectors: v_1, ..., v_T (..., T, d).
    """

    def __init__(self, vectors: Tensor) -> None:
        self.unit = unit(vectors)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Reflect in v_1 first."""
        for v in self.unit.unbind(-2):
            u = reflect(u, v)
        return u, u.new_zeros(u.shape[:-1])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Reflect in v_T first."""
        for v in reversed(self.unit.unbind(-2)):
            z = reflect(z, v)
        return z, z.new_zeros(z.shape[:-1])


class Planar(Bijection):
    """z = u + a tanh(w'u + b), with w'a >= -1 + MIN_SLOPE so that it can be inverted.

    Rezende & Mohamed (2015), eq. 10 and appendix A.1: a is `direction` with its part along w
    changed, w'a = m(w'direction). Their m(x) = -1 + softplus(x) has m(0) != 0, so that a small w
    makes a large a; here it is moved and has m(0) = 0. Then direction = 0 gives the identity.

    In v = w'u + b the inverse is one equation v + w'a tanh(v) = w'z + b, which has one root.

    Args:
        w: (..., d).
        direction: (..., d).
        b: (...).
    """

    def __init__(self, w: Tensor, direction: Tensor, b: Tensor) -> None:
        along = (w * direction).sum(-1)
        self.w, self.b = w, b
        self.slope = MIN_SLOPE + functional.softplus(along + _SHIFT)  # at the steepest: 1 + w'a
        squared = w.square().sum(-1).clamp(min=torch.finfo(w.dtype).tiny)
        self.a = direction + ((self.slope - 1 - along) / squared).unsqueeze(-1) * w

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return u + a tanh(w'u + b)."""
        t = ((self.w * u).sum(-1) + self.b).tanh()
        return u + self.a * t.unsqueeze(-1), _slope(t, self.slope).log()

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return z - a tanh(v)."""
        t = solve_tanh((self.w * z).sum(-1) + self.b, self.slope).tanh()
        return z - self.a * t.unsqueeze(-1), _slope(t, self.slope).log()


_SHIFT = math.log(math.expm1(1 - MIN_SLOPE))  # softplus of it is 1 - MIN_SLOPE


class Sylvester(Bijection):
    """z = u + Q R tanh(S Q'u + b), R and S upper triangular, Q's columns orthonormal.

    van den Berg et al. (2018); Q is made of reflections, as in their Householder Sylvester flows.
    The diagonals of R and S are taken through tanh, as in the authors' code, so that r_ii s_ii is
    above -1 (by MIN_SLOPE, here) and the map can be inverted: what is orthogonal to Q stays, and
    y = Q'u solves Q'z = y + R tanh(S y + b) from the last entry to the first, each an equation of
    one number.

    Args:
        vectors: M vectors (..., M, d), M <= d; Q is the first M columns of their reflections.
        r: (..., M, M); what lies below the diagonal is ignored.
        s: (..., M, M), likewise.
        b: (..., M).
    """

    def __init__(self, vectors: Tensor, r: Tensor, s: Tensor, b: Tensor) -> None:
        m, d = vectors.shape[-2:]
        v = unit(vectors)
        eye = torch.eye(m, d, dtype=v.dtype, device=v.device)
        # H_1 ... H_M = I - V' W V, V's rows the unit vectors, W^-1 = I/2 + V V' above its diagonal
        w = torch.linalg.solve_triangular(
            (v @ v.mT).triu(1) + 0.5 * eye[:, :m], v[..., :m], upper=True
        )
        self.q_t = eye - w.mT @ v  # Q', (..., M, d)
        self.r, self.s, self.b = _bounded(r), _bounded(s), b
        diagonals = [t.diagonal(dim1=-2, dim2=-1) for t in (self.r, self.s)]
        self.slope = 1 + diagonals[0] * diagonals[1]

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return u + Q R tanh(S Q'u + b)."""
        t = (_times(self.s, _times(self.q_t, u)) + self.b).tanh()
        return u + _times(self.q_t.mT, _times(self.r, t)), _slope(t, self.slope).log().sum(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return z - Q R tanh(S y + b)."""
        q_z = _times(self.q_t, z)
        y: list[Tensor] = []  # entries i + 1, ..., M - 1
        t: list[Tensor] = []
        for i in reversed(range(q_z.shape[-1])):
            left = q_z[..., i]
            inside = self.b[..., i]
            if y:
                left = left - (self.r[..., i, i + 1 :] * torch.stack(t, -1)).sum(-1)
                inside = inside + (self.s[..., i, i + 1 :] * torch.stack(y, -1)).sum(-1)
            root = solve_tanh(self.s[..., i, i] * left + inside, self.slope[..., i])
            t.insert(0, root.tanh())
            y.insert(0, left - self.r[..., i, i] * t[0])
        all_t = torch.stack(t, -1)
        moved = _times(self.q_t.mT, _times(self.r, all_t))
        return z - moved, _slope(all_t, self.slope).log().sum(-1)


def solve_tanh(target: Tensor, slope: Tensor) -> Tensor:
    """Return the root v of v + (slope - 1) tanh(v) = target, for slope > 0.

    The left side is odd, and for v >= 0 concave (slope > 1) or convex: Newton's steps from the side
    where the tangent does not overshoot come monotonically to the root. They carry no gradient; one
    more step, at the root, has the root's first derivatives (and no right second ones).
    """
    c = slope - 1
    with torch.no_grad():
        size = target.abs()
        v = torch.where(c > 0, size / slope, size - c)
        tolerance = torch.finfo(v.dtype).eps ** 0.75  # the next error is about its square
        for _ in range(60):
            t = v.tanh()
            step = (v + c * t - size) / _slope(t, slope)
            v = v - step
            if not bool((step.abs() > tolerance * (1 + v.abs())).any()):
                break
        v = v.copysign(target)
    t = v.tanh()
    return v - (v + c * t - target) / _slope(t, slope).detach()


def unit(v: Tensor) -> Tensor:
    """Return v / |v| for v (..., d), and for v = 0 the first axis."""
    tiny = torch.finfo(v.dtype).tiny
    size = v.detach().abs().amax(-1, keepdim=True)  # else the squares may overflow
    axis = torch.zeros_like(v)
    axis[..., 0] = 1
    scaled = torch.where(size < tiny, axis, v / size.clamp(min=tiny))
    return scaled / scaled.norm(dim=-1, keepdim=True)


def reflect(z: Tensor, v: Tensor) -> Tensor:
    """Return z - 2 v (v'z), for unit vectors v."""
    return z - 2 * (v * z).sum(-1, keepdim=True) * v


def _slope(t: Tensor, slope: Tensor) -> Tensor:
    """Return 1 + (slope - 1) (1 - t^2), the derivative at tanh(v) = t, without cancellation."""
    square = t.square()
    return slope * (1 - square) + square


def _bounded(r: Tensor) -> Tensor:
    """Return an upper triangular matrix whose diagonal is within +-sqrt(1 - MIN_SLOPE)."""
    diagonal = math.sqrt(1 - MIN_SLOPE) * r.diagonal(dim1=-2, dim2=-1).tanh()
    return r.triu(1) + torch.diag_embed(diagonal)


def _times(a: Tensor, x: Tensor) -> Tensor:
    """Return a x for matrices a and vectors x."""
    return (a @ x.unsqueeze(-1)).squeeze(-1)
