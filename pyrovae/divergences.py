"""KL(p || q) = E_p[log p(x) - log q(x)], and what each of its two directions makes of a fit.

Three ways to the number, `closed`, `quadrature` and `monte_carlo`; `forward` and `reverse` take the
first of them that there is. `fit_forward` and `fit_reverse` fit a family q to a target p by either
direction, each as a Pyro pair under `Trace_ELBO`. All in nats.
"""

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from pyrovae.distributions import diagonal_normal, seeded
from pyrovae.optimise import cosine, descend

__all__ = [
    "Estimate", "Fit", "NormalFamily", "Quadrature", "closed", "fit_forward", "fit_reverse",
    "forward", "monte_carlo", "quadrature", "reverse",
]  # fmt: skip

Target = Distribution | Callable[[Tensor], Tensor]

POINTS = {1: 4001, 2: 401}  # of the quadrature, along each axis
REACH = 100.0  # of the quadrature's grid, in standard deviations of p
MISSED = 0.01  # mass of p that the grid may miss


class _NoSuchRoute(ValueError):
    """This way to the number is closed for these two; another may be open."""


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate of KL(p || q), in nats.

    Attributes:
        value: the estimate, of the batch shape.
        standard_error: its standard error, of the same shape.
    """

    value: Tensor
    standard_error: Tensor


@dataclass(frozen=True)
class Quadrature:
    """KL(p || q) by quadrature, in nats.

    Attributes:
        value: the integral, a scalar.
        error: the larger of its difference from the integral over every other point, and of the
            mass of p that the grid misses.
    """

    value: Tensor
    error: Tensor


def closed(p: Distribution, q: Distribution) -> Tensor:
    """Return KL(p || q) in closed form, where torch, Pyro or `pyrovae.distributions` has it.

    It is of the broadcast batch shape, and differentiable in the parameters of p and q.

    Args:
        p: of any batch shape, and the event shape of q.
        q: of a batch shape that broadcasts with p's.

    Raises:
        ValueError: no closed form (no mixture has one), or other shapes.

    Example:
        >>> closed(dist.Normal(1.0, 1.0), dist.Normal(0.0, 1.0))  # (m - u)^2 / 2
        tensor(0.5000)
    """
    _check(p, q)
    try:
        return kl_divergence(p, q)
    except NotImplementedError:
        raise _NoSuchRoute(
            f"expected p and q with a KL in closed form; got {_name(p)} and {_name(q)}, which have "
            "none (a mixture never has): use divergences.quadrature, in 1-d or 2-d, or "
            "divergences.monte_carlo"
        ) from None


def monte_carlo(
    p: Distribution,
    q: Distribution,
    *,
    num_samples: int = 10_000,
    seed: int = 0,
    estimator: str = "plain",
) -> Estimate:
    """Return KL(p || q) as a mean over draws x ~ p, with its standard error. No gradient.

    "plain" is the mean of -log r, r = q(x) / p(x). "positive" is that of (r - 1) - log r, which is
    never negative and, q being near p, varies much less; it has the same mean, since E_p[r] = 1, if
    both are normalised and p > 0 wherever q > 0. Where q is much wider than p (for normals, of more
    than twice its variance) r has no variance, and the standard error means nothing. Schulman
    (2020), "Approximating KL divergence": "plain" is his k1, "positive" his k3.

    Args:
        p: see `closed`.
        q: see `closed`.
        num_samples: draws, at least 2.
        seed: of the draws.
        estimator: "plain" or "positive".

    Returns:
        Estimate, of the broadcast batch shape; +inf where q excludes a draw.

    Raises:
        ValueError: num_samples or estimator out of range, or other shapes.

    Example:
        >>> kl = monte_carlo(dist.Normal(1.0, 1.0), dist.Normal(0.0, 1.0))
        >>> bool((kl.value - 0.5).abs() < 4 * kl.standard_error)
        True
    """
    _check(p, q)
    _check_count("num_samples", num_samples, 2)
    if estimator not in ("plain", "positive"):
        raise ValueError(f"expected estimator to be 'plain' or 'positive'; got {estimator!r}")
    p = p.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))
    with torch.no_grad(), seeded(seed):
        x = p.sample(torch.Size([num_samples]))
        log_r = _log_prob(q, x) - _log_prob(p, x)
    terms = -log_r if estimator == "plain" else (torch.expm1(log_r) - log_r).clamp(min=0)
    value, error = terms.mean(0), terms.std(0) / math.sqrt(num_samples)
    return Estimate(value, error.masked_fill(value == math.inf, 0.0))


def quadrature(p: Distribution, q: Distribution, *, points: int | None = None) -> Quadrature:
    """Return KL(p || q) = integral of p log(p / q), in one or two dimensions. No gradient.

    By the trapezoid rule in u, x = m + s sinh(u), with the mean m and the standard deviation s of p
    along each axis, which reaches 100 s. Its error falls exponentially with `points` for smooth
    densities: 4001 points in 1-d and 401 in 2-d will do for modes of 0.003 s and 0.03 s, the step
    near m. Where q excludes part of p it is +inf. Trefethen & Weideman (2014), "The exponentially
    convergent trapezoidal rule".

    Args:
        p: a density of batch shape () and event shape (), (1,) or (2,), with mean and variance.
        q: of the same shapes.
        points: of the grid, along each axis.

    Raises:
        ValueError: other shapes, a discrete p, one without finite mean and variance, or a grid that
            misses more than a hundredth of its mass.

    Example:
        >>> quadrature(dist.Normal(1.0, 1.0), dist.Normal(0.0, 1.0)).value
        tensor(0.5000)
    """
    _check(p, q)
    dim = math.prod(p.event_shape)
    if p.batch_shape or q.batch_shape or dim not in POINTS or len(p.event_shape) > 1:
        raise _NoSuchRoute(
            "expected p and q of batch_shape () and event_shape (), (1,) or (2,); got "
            f"{_name(p)} and {_name(q)}: use divergences.monte_carlo"
        )
    points = POINTS[dim] if points is None else points
    _check_count("points", points, 5)
    m, s = (t.reshape(dim, 1) for t in _moments(p))
    with torch.no_grad():
        end = math.asinh(REACH)
        u = torch.linspace(-end, end, points, dtype=m.dtype, device=m.device)
        step = 2 * end / (points - 1)
        x = torch.stack(torch.meshgrid(*(m + s * u.sinh()), indexing="ij"), -1)
        volumes = torch.meshgrid(*(s * u.cosh() * step), indexing="ij")
        x = x if p.event_shape else x.squeeze(-1)
        log_p = _log_prob(p, x)
        mass = log_p.exp() * math.prod(volumes)
        missed = (1 - mass.sum()).abs()
        if not missed < MISSED:
            raise _NoSuchRoute(
                f"expected p's mass on a grid of {points} points an axis; got {_name(p)}, of which "
                f"it misses {float(missed):.2g}: use more points, or divergences.monte_carlo"
            )
        terms = torch.where(mass > 0, mass * (log_p - _log_prob(q, x)), 0.0)
        value, coarse = terms.sum(), terms[(slice(None, None, 2),) * dim].sum() * 2**dim
    error = torch.maximum((value - coarse).abs(), missed)
    return Quadrature(value, error.masked_fill(value == math.inf, 0.0))


def forward(p: Distribution, q: Distribution) -> Tensor:
    """Return KL(p || q): in closed form, else by `quadrature`, else by `monte_carlo`.

    Large where q is small on p's mass: minimised over q, it covers. It has a gradient where it is
    closed; for the error of the two other ways call them by name. Arguments: see `closed`.

    Example:
        >>> forward(dist.Normal(0.0, 1.0), dist.Normal(0.0, 2.0))
        tensor(0.3181)
    """
    with contextlib.suppress(_NoSuchRoute):
        return closed(p, q)
    with contextlib.suppress(_NoSuchRoute):
        return quadrature(p, q).value
    return monte_carlo(p, q).value


def reverse(p: Distribution, q: Distribution) -> Tensor:
    """Return KL(q || p), as `forward` does: in closed form, else by quadrature, else by draws.

    Large where q has mass and p is small: minimised over q, it seeks a mode.

    Example:
        >>> reverse(dist.Normal(0.0, 1.0), dist.Normal(0.0, 2.0))
        tensor(0.8069)
    """
    return forward(q, p)


class NormalFamily(nn.Module):
    """The normal distributions over R^dim: what a fit searches for q.

    Calling it returns N(loc, diag(scale^2)), or N(loc, L L') with L lower triangular, of event
    shape (dim,). It is of torch's default dtype; `.double()` makes it float64.

    Args:
        dim: length of x.
        full_rank: whether the covariance is full; otherwise it is diagonal.
        loc: initial mean, a number or (dim,).
        scale: initial standard deviations, a number or (dim,).

    Raises:
        ValueError: dim is no positive whole number, another shape, or a scale not positive.

    Example:
        >>> NormalFamily(2, loc=1.0)().log_prob(torch.ones(2)).detach()  # -log 2 pi
        tensor(-1.8379)
    """

    def __init__(
        self, dim: int, full_rank: bool = False,
        loc: Tensor | float = 0.0, scale: Tensor | float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_count("dim", dim, 1)
        start = [torch.as_tensor(t, dtype=torch.get_default_dtype()).detach() for t in (loc, scale)]
        if any(t.shape not in {(), (dim,)} for t in start) or not bool((start[1] > 0).all()):
            raise ValueError(
                f"expected loc, and scale > 0, of shape () or ({dim},); got {loc} and {scale}"
            )
        self.full_rank = full_rank
        self.loc = nn.Parameter(start[0].expand(dim).clone())
        self.log_scale = nn.Parameter(start[1].log().expand(dim).clone())
        if full_rank:
            self.below = nn.Parameter(torch.zeros(dim, dim))

    def forward(self) -> TorchDistribution:
        """Return the normal of the present parameters."""
        scale = self.log_scale.exp()
        if not self.full_rank:
            return diagonal_normal(self.loc, scale)
        return dist.MultivariateNormal(self.loc, scale_tril=self.below.tril(-1) + scale.diag())


@dataclass(frozen=True)
class Fit:
    """A member q of a family, fitted to a target p. In nats.

    Attributes:
        q: the fitted distribution, its parameters constant.
        forward: KL(p || q), or None where p is known as an unnormalised density alone.
        reverse: KL(q || p), or None likewise.
        losses: the loss at every step, (steps,): of the forward fit -E_p[log q(x)], of the reverse
            fit E_q[log q(x) - log p(x)].
        effective_sample_size: (sum w)^2 / sum w^2 of the forward fit's draws, else None.
    """

    q: TorchDistribution
    forward: Tensor | None
    reverse: Tensor | None
    losses: Tensor
    effective_sample_size: float | None = None


def fit_forward(
    target: Target,
    family: nn.Module,
    *,
    proposal: Distribution | None = None,
    num_samples: int = 10_000,
    steps: int = 1000,
    lr: float = 0.05,
    seed: int = 0,
) -> Fit:
    """Fit q to p by KL(p || q) = -E_p[log q(x)] + const: maximum likelihood on draws of p.

    The draws are made once. With a proposal r they are x_n ~ r, of weight w_n = p(x_n) / r(x_n)
    over the sum of all, so that p need not be normalised; r must be as wide as p, and the effective
    sample size tells how many draws are left. Over normals the minimum is p's mean and covariance:
    Bishop (2006), sec. 10.1.2.

    Args:
        target: p, a distribution of batch shape (); or its unnormalised log-density, from
            (N, dim) to (N,), which asks for a proposal.
        family: a module whose call returns q, of batch shape () and the target's event shape. It is
            copied: the family itself stays as it was.
        proposal: r, of the same event shape; None for draws of p itself.
        num_samples: number N of draws.
        steps: of Adam, the learning rate falling to zero on a cosine.
        lr: learning rate at the first step; parameters move by about `lr * steps / 2` at most.
        seed: of the draws.

    Raises:
        ValueError: a number, weight, shape or dtype that will not do; a density and no proposal.
        FloatingPointError: the loss stopped being finite.

    Example:
        >>> fit = fit_forward(dist.Normal(torch.ones(1), 2.0).to_event(1), NormalFamily(1))
        >>> [round(float(v), 1) for v in (fit.q.mean, fit.q.stddev, fit.forward)]
        [1.0, 2.0, 0.0]
    """
    family, q, log_density = _start(family, target, num_samples=num_samples, steps=steps)
    r = target if proposal is None else proposal
    if not isinstance(r, Distribution) or r.batch_shape or r.event_shape != q.event_shape:
        got = "none" if proposal is None else _name(proposal)
        raise ValueError(
            f"expected a proposal of batch_shape () and event_shape {tuple(q.event_shape)}, since "
            f"an unnormalised log-density cannot be sampled; got {got}: pass proposal="
        )
    with torch.no_grad(), seeded(seed):
        x = r.sample(torch.Size([num_samples]))
        log_w = x.new_zeros(len(x)) if r is target else log_density(x) - r.log_prob(x)
    w = log_w.softmax(0)
    if not bool(w.isfinite().all()):
        raise ValueError(
            f"expected finite importance weights; got log-weights from {float(log_w.min()):.3g} to "
            f"{float(log_w.max()):.3g}: choose a proposal on the target's support"
        )

    def model() -> None:  # a factor, since a plate would expand q to N copies
        pyro.module("family", family)
        pyro.factor("log_likelihood", (w * family().log_prob(x)).sum())

    ess = float(1 / w.square().sum())
    return _fit(target, family, Trace_ELBO(), model, lambda: None, steps, lr, seed, ess)


def fit_reverse(
    target: Target,
    family: nn.Module,
    *,
    num_particles: int = 1000,
    steps: int = 1000,
    lr: float = 0.05,
    seed: int = 0,
) -> Fit:
    """Fit q to p by KL(q || p) = E_q[log q(x) - log p(x)]: variational inference, by the ELBO.

    Jordan et al. (1999). Of a p with several modes it finds one, that which the family's initial
    values lead to. An unnormalised p moves the loss by a constant, and nothing else.

    Args:
        target: as for `fit_forward`; its log-density differentiable, and finite where q has mass.
        family: as for `fit_forward`; its q must have `rsample`.
        num_particles: draws of q at each step.
        steps: of Adam, as for `fit_forward`.
        lr: as for `fit_forward`.
        seed: of the draws.

    Raises:
        ValueError: see `fit_forward`; a q without `rsample`.
        FloatingPointError: the loss stopped being finite.

    Example:
        >>> fit = fit_reverse(lambda x: -x.square().sum(-1) / 8, NormalFamily(1))  # N(0, 2^2)
        >>> round(float(fit.q.stddev), 1)
        2.0
    """
    family, q, log_density = _start(family, target, num_particles=num_particles, steps=steps)
    if not q.has_rsample:
        raise ValueError(
            f"expected a family with rsample, for the gradient of the ELBO; got {_name(q)}: use "
            "another family, or fit_forward"
        )
    uniform = dist.ImproperUniform(q.support, torch.Size(), q.event_shape)

    def model() -> None:
        x = pyro.sample("x", uniform)
        pyro.factor("log_density", log_density(x))

    def guide() -> None:
        pyro.module("family", family)
        pyro.sample("x", family())

    elbo = Trace_ELBO(num_particles, max_plate_nesting=0, vectorize_particles=True)
    return _fit(target, family, elbo, model, guide, steps, lr, seed)


def _start(
    family: nn.Module, target: Target, **counts: int
) -> tuple[nn.Module, TorchDistribution, Callable[[Tensor], Tensor]]:
    """Return a copy of the family, its present member q, and log p, checked against each other."""
    for name, value in counts.items():
        _check_count(name, value, 1)
    family = copy.deepcopy(family)
    with torch.no_grad(), seeded(0):
        q = family()
        x = q.sample(torch.Size([3]))
        if isinstance(target, Distribution):
            _check(target, q)
            if target.batch_shape or q.batch_shape or target.sample().dtype != x.dtype:
                raise ValueError(
                    "expected target and family of batch_shape () and one dtype; got "
                    f"{_name(target)}, {target.sample().dtype} and {_name(q)}, {x.dtype}: convert "
                    "the family with .to(dtype)"
                )
            return family, q, partial(_log_prob, target)
        if target(x).shape != (3,):
            raise ValueError(
                f"expected the target's log-density to map {tuple(x.shape)} to (3,); got "
                f"{tuple(target(x).shape)}: sum over the last dimension"
            )
    return family, q, target


def _fit(
    target: Target, family: nn.Module, elbo: Trace_ELBO, model: Callable, guide: Callable,
    steps: int, lr: float, seed: int, effective_sample_size: float | None = None,
) -> Fit:  # fmt: skip
    """Train the family under the pair, in a parameter store of its own."""
    losses: list[float] = []

    def step() -> float:
        losses.append(elbo.loss_and_grads(model, guide))
        return losses[-1]

    with seeded(seed), pyro.get_param_store().scope():
        descend(
            lambda epoch: [(step, 1.0)], list(family.parameters()),
            epochs=steps, steps_per_epoch=1, lr=lr, schedule=cosine,
        )  # fmt: skip
    q = family.requires_grad_(False)()
    kls: tuple[Tensor | None, Tensor | None] = (None, None)
    if isinstance(target, Distribution):
        kls = forward(target, q).detach(), reverse(target, q).detach()
    return Fit(q, *kls, torch.tensor(losses), effective_sample_size)


def _log_prob(d: Any, x: Tensor) -> Tensor:
    """Return log d(x); -inf off d's support, where `log_prob` itself would raise."""
    inside = d.support.check(x)
    if bool(inside.all()):
        return d.log_prob(x)
    with seeded(0):
        allowed = d.sample()  # stands in for what is off the support
    mask = inside.reshape(inside.shape + (1,) * len(d.event_shape))
    return d.log_prob(torch.where(mask, x, allowed)).masked_fill(~inside, -math.inf)


def _moments(p: Any) -> tuple[Tensor, Tensor]:
    """Return p's mean and standard deviation, from which the grid is laid."""
    try:
        m, s = p.mean.detach(), p.variance.detach().sqrt()
    except NotImplementedError:
        m = s = torch.tensor(math.nan)
    if p.support.is_discrete or not bool((m.isfinite() & s.isfinite() & (s > 0)).all()):
        raise _NoSuchRoute(
            f"expected a continuous p with finite mean and variance; got {_name(p)}: "
            "use divergences.monte_carlo"
        )
    return m, s


def _check(p: Distribution, q: Distribution) -> None:
    with contextlib.suppress(RuntimeError):
        torch.broadcast_shapes(p.batch_shape, q.batch_shape)
        if p.event_shape == q.event_shape:
            return
    raise ValueError(
        "expected p and q of one event_shape, and of batch shapes that broadcast; got "
        f"{_name(p)} and {_name(q)}: declare event dimensions with .to_event"
    )


def _name(d: Distribution) -> str:
    shapes = f"batch_shape {tuple(d.batch_shape)} and event_shape {tuple(d.event_shape)}"
    return f"{type(d).__name__} of {shapes}"


def _check_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"expected {name} to be a whole number, at least {least}; got {value!r}")
