"""Semi-amortised inference: the guide's output, improved datum by datum."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrovae.distributions import seeded
from pyrovae.nets import find_modules

MAX_ROWS, MAX_ELEMENTS = 2**16, 2**23  # rows, and numbers of x, of one pass
BETAS, EPS = (0.9, 0.99), 1e-8  # of Adam


def refined(
    model: Callable,
    guide: Callable,
    steps: int = 10,
    *,
    lr: float = 0.1,
    modules: Sequence[nn.Module] = (),
) -> tuple[Callable, "Refined"]:
    """Return the pair whose guide ascends the ELBO, datum by datum, from the guide's own output.

    Kim et al. (2018), semi-amortised inference: q_0 = q(z|x) as the guide has it, then `steps` of
    Adam on each datum's own mean and scale. The gradient of an outer objective passes through the
    ascent. The result is a pair like any other, `fit`, evidence and checks take it.

    The ELBO ascended is that of 2 d points z = m + L e that match the mean and covariance of e (the
    cubature rule of degree 3 of McNamee & Stenger (1967)), so that the refined guide is a function
    of the row alone: the ELBO's own expectation where log p(x, z) is a quadratic in z, an
    approximation elsewhere; the bound of the refined guide is a bound whatever led to it.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c), each latent normal: independent or full-rank.
        steps: of the ascent.
        lr: the first step's length, in standard deviations of the guide; falls to 0 linearly.
        modules: those that the functions hold in their closures.

    Returns:
        (model, refined guide); the latter is a module that holds those of the pair.

    Raises:
        ValueError: steps or lr out of their range, or (when called) a latent that is not normal.

    Example:
        >>> from pyrovae import build, log_weights
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> model, guide = refined(vae.model, vae.guide, steps=3)
        >>> log_weights(model, guide, torch.ones(3, 4)).shape
        torch.Size([1, 3])
    """
    return model, Refined(model, guide, steps, lr=lr, modules=modules)


class Refined(nn.Module):
    """The guide that `refined` makes. Arguments and errors: see there."""

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        steps: int = 10,
        *,
        lr: float = 0.1,
        modules: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        if not isinstance(steps, int) or steps < 0:
            raise ValueError(f"expected steps to be a whole number >= 0; got {steps!r}")
        if not 0 < lr < math.inf:
            raise ValueError(f"expected lr to be positive and finite; got {lr!r}")
        self.held = nn.ModuleList(find_modules(model, guide, modules=modules))
        self.functions = (model, guide)  # in a tuple, so that neither is a submodule twice
        self.steps, self.lr = steps, lr

    def forward(self, x: Tensor, *c: Tensor) -> Any:
        """Run the guide with its latents' distributions refined."""
        _, guide = self.functions
        keep_graph = torch.is_grad_enabled()
        with seeded(0), _hidden(), Repeated(), _Given({}) as seen:  # its draw is not the guide's
            guide(x, *c)
        families = {name: Family(name, fn) for name, fn in seen.distributions.items()}
        blocks = torch.arange(len(x)).split(self._rows_at_once(families, x))
        ascended = []
        for rows in (slice(int(some[0]), int(some[-1]) + 1) for some in blocks):
            some = {name: f.at(rows) for name, f in families.items()}
            with torch.enable_grad():
                ascended.append(self._ascend(some, x[rows], [t[rows] for t in c], keep_graph))
        moves = [torch.cat(move) for move in zip(*ascended, strict=True)]
        final = {
            name: f.moved(move) for (name, f), move in zip(families.items(), moves, strict=True)
        }
        with _Given(final):
            return guide(x, *c)

    def _rows_at_once(self, families: dict[str, "Family"], x: Tensor) -> int:
        """Return how many rows may ascend together, 2 d points each: memory stays bounded."""
        points = 2 * sum(f.dim for f in families.values())
        return max(1, min(MAX_ROWS, MAX_ELEMENTS // max(1, x[0].numel())) // points)

    def _ascend(
        self, families: dict[str, "Family"], x: Tensor, c: Sequence[Tensor], keep_graph: bool
    ) -> list[Tensor]:
        """Return the moves (N, P) of each site after the ascent, by Adam."""
        model, guide = self.functions
        sizes = [family.dim for family in families.values()]
        points = _points(sum(sizes)).to(next(iter(families.values())).loc)
        noise = points.split(sizes, -1)
        k = len(points)
        rows = [t.repeat(k, *[1] * (t.dim() - 1)) for t in (x, *c)]
        moves = [
            f.loc.new_zeros(len(x), f.num_moves, requires_grad=True) for f in families.values()
        ]
        first, second = ([torch.zeros_like(m) for m in moves] for _ in range(2))
        for step in range(self.steps):
            given, values = {}, {}
            for (name, f), move, e in zip(families.items(), moves, noise, strict=True):
                given[name] = f.moved(move, repeat=k)
                values[name] = f.point(move, e)
            with _hidden(), pyro.validation_enabled(False), Repeated(), _Given(given, values):
                loss = Trace_ELBO().differentiable_loss(model, guide, *rows)
            gradients = torch.autograd.grad(loss, moves, create_graph=keep_graph)
            rate = self.lr * (1 - step / self.steps)
            for i, g in enumerate(gradients):
                first[i] = BETAS[0] * first[i] + (1 - BETAS[0]) * g
                second[i] = BETAS[1] * second[i] + (1 - BETAS[1]) * g.square()
                mean = first[i] / (1 - BETAS[0] ** (step + 1))
                spread = (second[i] / (1 - BETAS[1] ** (step + 1)) + EPS**2).sqrt()
                move = moves[i] - rate * mean / spread
                moves[i] = move if keep_graph else move.detach().requires_grad_()
        return moves if keep_graph else [m.detach() for m in moves]


class Family:
    """The normals of one site, N rows, in coordinates in which the guide's own is the origin.

    z = m + L delta + L T e with e ~ N(0, I): delta moves the mean in units of the guide's standard
    deviations, and T, diagonal or lower triangular with exp(rho) on its diagonal, scales them.
    """

    def __init__(self, name: str, fn: Any) -> None:
        base = fn.base_dist if isinstance(fn, dist.Independent) else fn
        self.shape = tuple(fn.event_shape)
        self.full = isinstance(base, torch.distributions.MultivariateNormal)
        if not self.is_normal(fn):
            raise ValueError(
                f"site {name!r}: expected a normal guide, independent or full-rank, to refine; got "
                f"{type(base).__name__}"
            )
        batch = tuple(fn.batch_shape)
        if len(batch) != 1:
            raise ValueError(f"site {name!r}: expected batch shape (N,) of the guide; got {batch}")
        self.loc = base.loc.reshape(*batch, -1)
        self.scale = base.scale_tril if self.full else base.scale.reshape(*batch, -1)
        self.dim = self.loc.shape[-1]

    @staticmethod
    def is_normal(fn: Any) -> bool:
        """Is it a normal, independent or full-rank?"""
        base = fn.base_dist if isinstance(fn, dist.Independent) else fn
        kinds = (torch.distributions.Normal, torch.distributions.MultivariateNormal)
        return isinstance(base, kinds)

    def widen(self) -> None:
        """Take full-rank normals from here on; at no move they are the same."""
        if not self.full:
            self.full, self.scale = True, torch.diag_embed(self.scale)

    def at(self, rows: slice) -> "Family":
        """Return those of some rows."""
        some = copy.copy(self)
        some.loc, some.scale = self.loc[rows], self.scale[rows]
        return some

    @property
    def num_moves(self) -> int:
        """How many numbers a row's move has: delta, rho, and T below the diagonal."""
        return 2 * self.dim + (self.dim * (self.dim - 1) // 2 if self.full else 0)

    def _parameters(self, move: Tensor) -> tuple[Tensor, Tensor]:
        delta, rho, below = move.split([self.dim, self.dim, self.num_moves - 2 * self.dim], -1)
        if not self.full:
            return self.loc + self.scale * delta, self.scale * rho.exp()
        t = torch.diag_embed(rho.exp())
        i, j = torch.tril_indices(self.dim, self.dim, -1, device=move.device)
        t[..., i, j] = below
        return self.loc + (self.scale @ delta.unsqueeze(-1)).squeeze(-1), self.scale @ t

    def moved(self, move: Tensor, repeat: int = 1) -> Any:
        """Return the distribution after a move, its rows repeated."""
        loc, scale = (t.repeat(repeat, *[1] * (t.dim() - 1)) for t in self._parameters(move))
        if self.full:
            return dist.MultivariateNormal(loc, scale_tril=scale)
        shape = (-1, *self.shape)
        return dist.Normal(loc.reshape(shape), scale.reshape(shape)).to_event(len(self.shape))

    def point(self, move: Tensor, e: Tensor) -> Tensor:
        """Return z = m + L e after a move at points e (K, d): (K * N, *event_shape)."""
        points = self.points(move, e.unsqueeze(1).expand(-1, len(self.loc), -1))
        return points.reshape(-1, *self.shape)

    def points(self, move: Tensor, e: Tensor) -> Tensor:
        """Return z = m + L e after a move at points of each datum, e (K, N, d): (K, N, d)."""
        loc, scale = self._parameters(move)
        return loc + (torch.einsum("nij,knj->kni", scale, e) if self.full else scale * e)

    def standardised(self, z: Tensor) -> Tensor:
        """Return L^-1 (z - m) by the guide's own m and L, for z (K, N, d)."""
        off = z - self.loc
        if not self.full:
            return off / self.scale
        return torch.linalg.solve_triangular(self.scale, off.unsqueeze(-1), upper=False)[..., 0]

    def destandardised(self, v: Tensor) -> Tensor:
        """Return m + L v by the guide's own m and L, for v (K, N, d)."""
        return self.points(self.loc.new_zeros(len(self.loc), self.num_moves), v)


def _points(d: int) -> Tensor:
    """Return 2 d points of mean 0 and covariance I, (2 d, d): +-sqrt(d) along turned axes."""
    with seeded(0):
        turn, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))
    return math.sqrt(d) * torch.cat([turn, -turn])


def _hidden() -> Messenger:
    """Show no sample site outside; parameters are registered all the same."""
    return poutine.block(hide_types=["sample", "observe"])


class _Given(Messenger):
    """Remember the distributions of latent sites, or put others and their values in their place."""

    def __init__(self, given: dict[str, Any], values: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.given, self.values = given, values or {}
        self.distributions: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg) or msg["done"]:
            return
        name = msg["name"]
        self.distributions[name] = msg["fn"]
        if name in self.given:
            msg["fn"] = self.given[name]
        if name in self.values:
            msg["value"], msg["done"] = self.values[name], True


class Repeated(Messenger):
    """Give every plate that subsamples the indices 0, 1, ...: the rows are all there."""

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["value"] is None:
            size = msg["fn"].size if msg["fn"].subsample_size is None else msg["fn"].subsample_size
            msg["value"] = torch.arange(size)
            msg["done"] = True
