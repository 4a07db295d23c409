"""The von Mises-Fisher distribution, on the unit sphere."""

import functools
import math

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import register_kl
from torch.distributions.utils import lazy_property

from pyrovae.distributions.bijections import unit

SPHERE = "the unit sphere"
REACH = 14.0  # widths on each side of the mode that the quadratures cover
NODES = 80  # of the quadrature over all angles
SLOPE_NODES = 64  # of that over the angles on one side


def von_mises_fisher(direction: Tensor, raw: Tensor) -> "VonMisesFisher":
    """Return vMF(direction / |direction|, softplus(raw)), whatever the two real tensors are.

    The direction 0 stands for the first axis.

    Args:
        direction: (..., d).
        raw: (...).
    """
    return VonMisesFisher(unit(direction), torch.nn.functional.softplus(raw))


def check_sphere(dim: int) -> None:
    """Refuse the sphere in R^1, which is two points."""
    if dim < 2:
        raise ValueError(
            f"expected a sphere in at least 2 dimensions; got {dim}: for two points take "
            "OneHotCategorical with latent_dim=2"
        )


class VonMisesFisher(TorchDistribution):
    """C_d(k) exp(k m'z) on the unit sphere of R^d, m a unit vector and k >= 0; k = 0 is uniform.

    Davidson et al. (2018) and their sources give C_d(k) by Bessel functions, which torch has not at
    orders that depend on d. Here, t being the angle between z and m,

        1 / C_d(k) = |S^(d-2)| e^k J(k),   J(k) = int_0^pi exp(k (cos t - 1)) sin^(d-2) t dt

    by Gauss-Legendre nodes around the mode of the integrand, in float64: right to 1e-12 at any k
    and d, with derivatives. With |z| = |m| = 1, k (m'z - 1) = -k |z - m|^2 / 2, which keeps its
    digits in float32 where k is large.

    Args:
        loc: mean direction m (..., d), of length 1.
        concentration: k (...).

    Raises:
        ValueError: d < 2, no unit vector, or a negative concentration.

    Example:
        >>> north = torch.tensor([0.0, 0.0, 1.0])
        >>> VonMisesFisher(north, torch.tensor(0.0)).log_prob(north)  # -log 4 pi
        tensor(-2.5310)
    """

    arg_constraints = {"loc": constraints.sphere, "concentration": constraints.nonnegative}
    support = constraints.sphere
    has_rsample = True

    def __init__(
        self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None
    ) -> None:
        check_sphere(loc.shape[-1])
        batch = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc = loc.expand(*batch, -1)
        self.concentration = concentration.expand(batch)
        self._given = concentration  # not expanded: one quadrature for a whole batch of one law
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(
        self, batch_shape: torch.Size, _instance: "VonMisesFisher | None" = None
    ) -> "VonMisesFisher":
        """Return the distribution with its parameters expanded to the batch shape."""
        new = type(self)(self.loc.expand(*batch_shape, -1), self._given, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @lazy_property
    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log of the integral over the sphere of exp(k (m'z - 1)), E[1 - m'z], E[(1 - m'z)^2].

        In float64, of the shape of the concentration that was given.
        """
        d = self.event_shape[0]
        k = self._given.double()
        low, high = _range(k.detach(), d)
        x, w = _gauss_legendre(NODES, k.device)
        t = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * x
        off = 2 * (t / 2).sin().square()  # 1 - cos t
        weighted = (w * (high - low).unsqueeze(-1)).log() - k.unsqueeze(-1) * off
        weighted = weighted + (d - 2) * t.sin().log()
        p = weighted.softmax(-1)
        half = (d - 1) / 2
        log_area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)  # |S^(d-2)|
        return log_area + weighted.logsumexp(-1), (p * off).sum(-1), (p * off.square()).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return k (m'value - 1) + log C_d(k) + k, shape the broadcast batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        squared = (value - self.loc).square().sum(-1)
        return -0.5 * self.concentration * squared - self._moments[0].to(squared.dtype)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw z = cos(t) m + sin(t) v, v a unit vector orthogonal to m.

        The angle t is drawn by the rejection of Wood (1994), and has the implicit derivative
        dt/dk = -(dF/dk) / f(t), F its distribution function and f its density. With m, z turns by
        the rotation that takes m to m + dm along the great circle: its law turns likewise, so the
        gradient is unbiased, and never larger than |dm|. (Projecting a fixed Gaussian, or the
        reflection of Davidson et al., has the same law; but the one's gradient has an infinite
        variance on the sphere in R^3, and the other's is infinite at one m.)
        """
        shape = self._extended_shape(sample_shape)
        dtype = self.loc.dtype
        with torch.no_grad():
            k = self.concentration.double().expand(shape[:-1])
            t = _draw_angle(k, shape[-1])
            loc = self.loc.double()
            v = torch.randn(shape, dtype=torch.float64, device=loc.device)
            for _ in range(2):  # once leaves rounding where v is nearly parallel to m
                v = v - (v * loc).sum(-1, keepdim=True) * loc / loc.square().sum(-1, keepdim=True)
                v = v / v.norm(dim=-1, keepdim=True)
            v = v.to(dtype)
        if torch.is_grad_enabled() and self.concentration.requires_grad:
            slope = _slope(t, k, self._moments[1].detach(), shape[-1])
            t = t + slope * (self.concentration - self.concentration.detach())
        v = v - (v * self.loc).sum(-1, keepdim=True) * self.loc.detach()  # v itself, turning
        t = t.unsqueeze(-1)
        return t.cos().to(dtype) * self.loc + t.sin().to(dtype) * v

    def entropy(self) -> Tensor:
        """Return E[-log p(z)], shape batch_shape."""
        log_z, off, _ = self._moments
        return (self.concentration * off + log_z).to(self.loc.dtype)

    @property
    def mean(self) -> Tensor:
        """A(k) m, shape (*batch_shape, d), A the mean of m'z."""
        return (1 - self._moments[1]).to(self.loc.dtype).unsqueeze(-1) * self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of each coordinate, shape (*batch_shape, d)."""
        _, off, squared = self._moments
        along = (squared - off.square()).to(self.loc.dtype).unsqueeze(-1)
        across = ((2 * off - squared) / (self.event_shape[0] - 1)).to(along.dtype).unsqueeze(-1)
        m2 = self.loc.square()
        return along * m2 + across * (1 - m2)


@register_kl(VonMisesFisher, VonMisesFisher)
def _kl_von_mises_fisher(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    """KL(vMF(m, k) || vMF(n, l)) = A(k) (k - l m'n) + log C(k) - log C(l), the broadcast shape.

    With l = 0 it is the KL to the uniform distribution of Davidson et al. (2018), eq. 13.
    """
    log_z_p, off, _ = p._moments
    log_z_q = q._moments[0]
    apart = 0.5 * (p.loc - q.loc).square().sum(-1)  # 1 - m'n
    kl = q.concentration * (off + (1 - off) * apart) - p.concentration * off + log_z_q - log_z_p
    return kl.to(apart.dtype)


@functools.lru_cache
def _gauss_legendre(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return nodes and weights (n,) of the integral over [0, 1], in float64."""
    x, w = (torch.from_numpy(a).to(device) for a in np.polynomial.legendre.leggauss(n))
    return (x + 1) / 2, w / 2


def _range(k: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Return the ends of the angles that have any mass: the mode +- REACH widths, in [0, pi].

    The mode of exp(k cos t) sin^m t has k sin^2 t = m cos t; -(log)'' there is r if m > 0, and k
    if m = 0.
    """
    m = d - 2
    r = (m * m + 4 * k.square()).sqrt()
    tiny = torch.finfo(k.dtype).tiny
    mode = torch.atan2((2 * m / (m + r).clamp(min=tiny)).sqrt(), 2 * k / (m + r).clamp(min=tiny))
    reach = REACH * r.clamp(min=tiny).rsqrt()
    reach = torch.where(reach > 1.5, math.pi, reach)  # far off, the tails are no normal's
    return (mode - reach).clamp(min=0), (mode + reach).clamp(max=math.pi)


def _draw_angle(k: Tensor, d: int) -> Tensor:
    """Draw the angle between z and m for concentrations k (...), in float64: Wood (1994).

    His W = cos t is kept as y = 1 - W, which has digits left where k is large.
    """
    flat = k.reshape(-1)
    half = (d - 1) / 2
    beta = dist.Beta(*torch.full((2,), half, dtype=k.dtype, device=k.device))
    b_all = (d - 1) / (2 * flat + (4 * flat.square() + (d - 1) ** 2).sqrt())
    y = torch.empty_like(flat)
    left = torch.arange(len(flat), device=k.device)
    while len(left):
        b, e = b_all[left], beta.sample(left.shape)
        proposal = 2 * b * e / (1 - (1 - b) * e)
        gap = 2 * b / (1 + b)  # 1 - x0
        ratio = (gap + (1 - gap) * proposal) * (1 + b).square() / (4 * b)
        log_accept = flat[left] * (gap - proposal) + (d - 1) * ratio.log()
        rejected = log_accept < torch.rand_like(b).log()  # not where k is NaN: the loop must end
        y[left[~rejected]] = proposal[~rejected]
        left = left[rejected]
    return 2 * (y / 2).clamp(max=1).sqrt().asin().reshape(k.shape)


def _slope(angle: Tensor, k: Tensor, mean_off: Tensor, d: int) -> Tensor:
    """Return dt/dk = -(dF/dk) / f at angles t, with dF/dk = int_0^t (cos s - A) f(s) ds.

    Over all angles that integral is 0. So it is taken over [0, t] where cos t > A, and over
    [t, pi] elsewhere: its integrand has one sign, and f(s) / f(t) does not overflow.

    Args:
        angle: t (...).
        k: concentrations (...).
        mean_off: 1 - A, of a shape that expands to that of k.
        d: dimension of the space around the sphere.
    """
    low, high = _range(k, d)
    below = 2 * (angle / 2).sin().square() < mean_off
    start = torch.where(below, torch.minimum(low, angle), angle)
    end = torch.where(below, angle, torch.maximum(high, angle))
    x, w = _gauss_legendre(SLOPE_NODES, k.device)
    t = angle.unsqueeze(-1)
    s = start.unsqueeze(-1) + (end - start).unsqueeze(-1) * x
    log_ratio = -2 * k.unsqueeze(-1) * ((s + t) / 2).sin() * ((s - t) / 2).sin()
    if d > 2:
        tiny = torch.finfo(k.dtype).tiny
        log_ratio = log_ratio + (d - 2) * (s.sin().clamp(min=tiny) / t.sin().clamp(min=tiny)).log()
    centred = mean_off.unsqueeze(-1) - 2 * (s / 2).sin().square()  # cos s - A
    integral = (w * centred * log_ratio.exp()).sum(-1) * (end - start)
    return torch.where(below, -integral, integral)
