"""The evidence of a few latent dimensions, by quadrature on a lattice."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrovae.evidence.latents import Problem, problem
from pyrovae.evidence.results import ExactEvidence
from pyrovae.importance import simulate

MAX_DIM = 3
STEPS = {1: 20, 2: 5, 3: 2.5}  # lattice steps a standard deviation of the prior, at first
DROP = 34.0  # nats below a datum's highest point that are left out: e^-34 = 2e-15
PRIOR_DRAWS = 4000
TOLERANCE = 1e-10  # nats between two resolutions that end the refinement
MAX_LEVELS = 11
MAX_POINTS = 400_000  # a datum and resolution; where they do not do, the error says so


@dataclass(frozen=True)
class Box:
    """A box around the prior's mass, and the step of the first lattice, each (d,)."""

    low: Tensor
    high: Tensor
    step: Tensor

    def larger(self) -> "Box":
        """Return a box of twice the width around the same centre."""
        half = (self.high - self.low) / 2
        return Box(self.low - half, self.high + half, self.step)


@dataclass(frozen=True)
class Integral:
    """The integral of exp f_n(z) dz for each datum n.

    Attributes:
        log_value: its logarithm, (N,).
        error: difference to the lattice of twice the step, (N,).
        mean: of the normalised density, (N, d).
        covariance: of the normalised density, (N, d, d).
    """

    log_value: Tensor
    error: Tensor
    mean: Tensor
    covariance: Tensor


def prior_box(work: Problem) -> Box:
    """Return a box around the prior's mass, from draws of the model alone."""
    repeats = -(-PRIOR_DRAWS // len(work.x))
    x, *c = (t.repeat(repeats, *[1] * (t.dim() - 1)) for t in (work.x, *work.c))
    drawn = simulate(work.model, x, *c, modules=work.modules)
    z = work.flat({name: drawn[name] for name in work.shapes})
    sd = z.std(0)
    return Box(z.amin(0) - 5 * sd, z.amax(0) + 5 * sd, sd / STEPS[work.dim])


def integrate(
    f: Callable[[Tensor, Tensor], Tensor],
    n: int,
    box: Box,
    shift: float = 0.0,
    growths: int = 3,
) -> Integral:
    """Integrate exp f over z by the trapezoid rule, on lattices that halve their step.

    The first lattice covers the box for every datum alike; where a datum's density reaches the
    box's faces, the box grows. Each next lattice keeps to where f is high: within `DROP` nats of
    the datum's highest point, and twice as much again as f falls there within two lattice points:
    a cell at the foot of another peak, as narrow or somewhat narrower, then stays in. For a smooth
    density the rule's error falls faster than any power of the step (Trefethen & Weideman 2014).

    Args:
        f: log-density at points (M, d) for the data (M,), in nats: (M,).
        n: number of data.
        box: where to look.
        shift: moves the lattice by this part of a step.
        growths: how often the box may double its width.

    Raises:
        ValueError: the density still reaches the box's faces: it has no finite integral there.
    """
    d = len(box.step)
    halves = torch.tensor(list(itertools.product((0, 1), repeat=d)))
    around = torch.tensor(list(itertools.product((-2, -1, 0, 1, 2), repeat=d)))
    step, origin = box.step, box.low + shift * box.step
    axes = [torch.arange(int(k) + 1) for k in ((box.high - box.low) / step).ceil()]
    points = torch.cartesian_prod(*axes).reshape(-1, d)
    edge = ((points == 0) | (points == torch.tensor([len(a) - 1 for a in axes]))).any(1).repeat(n)
    data = torch.arange(n).repeat_interleave(len(points))
    points = points.repeat(n, 1)
    log_value = torch.full((n,), -torch.inf, dtype=torch.float64)
    error = torch.full((n,), torch.inf, dtype=torch.float64)
    mean, covariance = torch.zeros(n, d).double(), torch.zeros(n, d, d).double()
    todo = torch.ones(n, dtype=torch.bool)
    for level in range(MAX_LEVELS):
        z = origin + points * step
        values = f(z, data)
        top = values.new_full((n,), -torch.inf).scatter_reduce(0, data, values, "amax")
        if level == 0 and bool((edge & (values > (top - DROP)[data])).any()):
            if growths == 0:
                raise ValueError(
                    "expected p(x, z) to fall off within 8 times the prior's mass; it does not: is "
                    "a latent masked out, or its prior improper?"
                )
            return integrate(f, n, box.larger(), shift, growths - 1)
        mass = (values - top[data]).exp()
        total = mass.new_zeros(n).index_add(0, data, mass)
        new = top + total.log() + step.log().sum()
        even = (points % 2 == 0).all(1)  # the lattice of twice the step
        coarse = mass.new_zeros(n).index_add(0, data[even], mass[even])
        change = (total.log() - coarse.log() - d * math.log(2)).abs()
        weight = (mass / total[data]).unsqueeze(-1)
        centre = z.new_zeros(n, d).index_add(0, data, weight * z)
        off = z - centre[data]
        spread = z.new_zeros(n, d, d).index_add(
            0, data, weight.unsqueeze(-1) * off.unsqueeze(-1) * off.unsqueeze(-2)
        )
        error = torch.where(todo, change, error)
        log_value = torch.where(todo, new, log_value)
        mean = torch.where(todo[:, None], centre, mean)
        covariance = torch.where(todo[:, None, None], spread, covariance)
        todo &= error >= TOLERANCE

        highest = values == top[data]
        best = points.new_zeros(n, d)
        best[data[highest]] = points[highest]
        nearby = (origin + (best[:, None] + around) * step).reshape(-1, d)
        neighbours = f(nearby, torch.arange(n).repeat_interleave(len(around))).reshape(n, -1)
        fall = (top[:, None] - neighbours).amax(1)
        keep = todo[data] & (values > (top - DROP - 2 * fall)[data])
        todo &= torch.bincount(data[keep], minlength=n) * 2**d <= MAX_POINTS
        keep &= todo[data]
        if not bool(keep.any()):
            break
        points = (2 * points[keep].unsqueeze(1) + halves).reshape(-1, d)
        data = data[keep].repeat_interleave(2**d)
        step = step / 2
    return Integral(log_value, error, mean, covariance)


def solve(work: Problem) -> ExactEvidence:
    """Integrate p(x, z) over z.

    Raises:
        ValueError: discrete latents, or more than 3 latent dimensions.
    """
    if work.discrete or work.dim > MAX_DIM:
        raise ValueError(
            f"expected at most {MAX_DIM} latent dimensions, all continuous; got {work.dim}"
            f"{', some discrete' if work.discrete else ''}: use evidence.enumeration or "
            "evidence.iwae"
        )
    found = integrate(work.log_joint_of_rows, len(work.x), prior_box(work))
    return ExactEvidence(
        found.log_value, found.error, "quadrature", found.mean, found.covariance,
        work.log_joint_of_sites,
    )  # fmt: skip


def quadrature(
    model: Callable, guide: Callable, x: Tensor, *c: Tensor, modules: Sequence[nn.Module] = ()
) -> ExactEvidence:
    """Return log p(x) = log of the integral of p(x, z) dz, for at most 3 latent dimensions.

    A lattice over the prior's mass, shared by all data, is refined for each datum where log p(x, z)
    is high; the difference between two resolutions is the error. The model alone decides
    where to look: the guide only names the sites. Computes in float64.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c); only its sites matter.
        x: data (N, ...).
        *c: context, N rows each.
        modules: those that the functions hold in their closures.

    Raises:
        ValueError: more than 3 latent dimensions, discrete ones, or no valid pair.
    """
    with problem(model, guide, x, c, modules) as work:
        return solve(work)
