"""Guides over levels of latents: in which order they draw, and from what."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from pyrovae.distributions import diagonal_normal
from pyrovae.nets import NetFactory, Shape

# The distribution of z_i, given the levels that are drawn by number: {2: z_2 (N, d_2), ...}.
Level = Callable[[int, Mapping[int, Tensor]], TorchDistribution]


class LevelsPosterior(nn.Module, ABC):
    """q(z_1, ..., z_L | x), drawn level by level.

    To write a new one, give `forward`, `order` if it is not from z_L down to z_1, and the
    attributes below.

    Attributes:
        latent_dims: lengths of z_1, ..., z_L.
        data_shape: shape of one datum.
        missing: may entries of x be missing?
        spaces: where z_1, ..., z_L live; see `Posterior`.
    """

    latent_dims: tuple[int, ...]
    data_shape: Shape
    missing: bool
    spaces: tuple[str, ...]

    @property
    def order(self) -> Sequence[int]:
        """The numbers of the levels, in the order that they are drawn in."""
        return range(len(self.latent_dims), 0, -1)

    @property
    @abstractmethod
    def top(self) -> nn.Module:
        """q(z_L|x) as a part, for a prior that is made of it."""

    @abstractmethod
    def forward(self, x: Tensor, p: Level, *c: Tensor) -> Level:
        """Return q of a level, given those that are drawn before it.

        Args:
            x: data (N, *data_shape).
            p: the model's p(z_i | z_{i+1}, ..., z_L).
            *c: context, N rows each.
        """


class TopDown(LevelsPosterior):
    """q(z_L|x) q(z_{L-1}|x, z_L) ... q(z_1|x, z_2, ..., z_L).

    Of two levels it is that of Tomczak & Welling (2018), section 4.

    Args:
        parts: posteriors of z_1, ..., z_L, each of `context_dim` the sum of the latent dimensions
            above it (and of the context, if there is any).
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        known: Sequence[Any] = parts
        self.latent_dims = tuple(part.latent_dim for part in known)
        self.data_shape = known[-1].data_shape
        self.missing = all(part.missing for part in known)
        self.spaces = tuple(getattr(part, "space", "real") for part in known)

    @property
    def top(self) -> nn.Module:
        """q(z_L|x)."""
        return self.parts[-1]

    def forward(self, x: Tensor, p: Level, *c: Tensor) -> Level:
        """Return q(z_i | x, z_{i+1}, ..., z_L). Arguments: see `LevelsPosterior`."""
        n = len(self.parts)

        def q(i: int, z: Mapping[int, Tensor]) -> TorchDistribution:
            found: TorchDistribution = self.parts[i - 1](
                x, *(z[j] for j in range(i + 1, n + 1)), *c
            )
            return found

        return q


class BottomUp(LevelsPosterior):
    """q(z_1|x) q(z_2|z_1) ... q(z_L|z_{L-1}).

    Burda et al. (2016), section 2, and Rezende et al. (2014). What p(z_i | z_{i+1}) depends on is
    drawn from z_i, so that no KL but the top one may be taken in closed form: `TraceMeanField_ELBO`
    is wrong for it, `Trace_ELBO` and the importance weights are right.

    Args:
        first: posterior q(z_1|x).
        rest: conditionals q(z_2|z_1), ..., q(z_L|z_{L-1}), such as `ConditionalNormal`.
    """

    def __init__(self, first: nn.Module, rest: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.parts = nn.ModuleList([first, *rest])
        known: Sequence[Any] = [first, *rest]
        self.latent_dims = tuple(part.latent_dim for part in known)
        self.data_shape, self.missing = known[0].data_shape, known[0].missing
        self.spaces = tuple(getattr(part, "space", "real") for part in known)

    @property
    def order(self) -> Sequence[int]:
        """1, ..., L."""
        return range(1, len(self.parts) + 1)

    @property
    def top(self) -> nn.Module:
        """q(z_1|x) where that is the only level; otherwise what refuses to be asked."""
        return self.parts[0] if len(self.parts) == 1 else _Unknown()

    def forward(self, x: Tensor, p: Level, *c: Tensor) -> Level:
        """Return q(z_1 | x), and q(z_i | z_{i-1}). Arguments: see `LevelsPosterior`."""

        def q(i: int, z: Mapping[int, Tensor]) -> TorchDistribution:
            given = (x, *c) if i == 1 else (z[i - 1],)
            found: TorchDistribution = self.parts[i - 1](*given)
            return found

        return q


class Ladder(LevelsPosterior):
    """q(z_L|x) q(z_{L-1}|x, z_L) ...: estimates of a bottom-up pass, corrected by the model's.

        q(z_i|x, z_{i+1}, ...) ~ N(z_i; m_i(x), diag s_i(x)^2) p(z_i|z_{i+1}, ...),   i < L
        q(z_L|x) = N(z_L; m_L(x), diag s_L(x)^2)

    Sonderby et al. (2016): the product of two normals is a normal, of the precision-weighted mean,
    see `precision_weighted`. p is the model's own, its parameters shared. Their batch normalisation
    is left out: under it rows would depend on one another.

    Args:
        estimates: a posterior of all levels side by side, z_1 first, normals with independent
            dimensions, such as `MeanFieldNormal` with a network of `rungs`: m_i and s_i.
        latent_dims: lengths of z_1, ..., z_L.

    Raises:
        ValueError: estimates of another length than the levels have in all.
    """

    def __init__(self, estimates: nn.Module, latent_dims: Sequence[int]) -> None:
        super().__init__()
        part: Any = estimates
        self.estimates, self.latent_dims = estimates, tuple(latent_dims)
        if part.latent_dim != sum(self.latent_dims):
            raise ValueError(
                "expected estimates of all levels side by side, of latent_dim "
                f"{' + '.join(map(str, self.latent_dims))} = {sum(self.latent_dims)}; got "
                f"{part.latent_dim}"
            )
        self.data_shape, self.missing = part.data_shape, part.missing
        self.spaces = (getattr(part, "space", "real"),) * len(self.latent_dims)

    @property
    def top(self) -> nn.Module:
        """q(z_L|x)."""
        return _Top(self.estimates, self.latent_dims[-1])

    def forward(self, x: Tensor, p: Level, *c: Tensor) -> Level:
        """Return q(z_i | x, z_{i+1}, ..., z_L). Arguments: see `LevelsPosterior`."""
        loc, scale = normal_moments("the ladder's estimates", self.estimates(x, *c))
        pieces = [t.split(self.latent_dims, -1) for t in (loc, scale)]
        estimates = [diagonal_normal(m, s) for m, s in zip(*pieces, strict=True)]

        def q(i: int, z: Mapping[int, Tensor]) -> TorchDistribution:
            own = estimates[i - 1]
            return own if i == len(estimates) else precision_weighted(own, p(i, z))

        return q


def precision_weighted(q: TorchDistribution, p: TorchDistribution) -> TorchDistribution:
    """Return the normal whose density is the product of two, but for a constant.

    precision = s_q^-2 + s_p^-2,   mean = (m_q s_q^-2 + m_p s_p^-2) / precision

    Sonderby et al. (2016), of the guide's estimate and the model's density of one level.

    Args:
        q: normal with independent dimensions, of batch shape (N,) and event shape (d,).
        p: the same.

    Raises:
        ValueError: other distributions.

    Example:
        >>> both = precision_weighted(
        ...     diagonal_normal(torch.zeros(1), torch.ones(1)),
        ...     diagonal_normal(torch.ones(1), torch.ones(1)),
        ... )
        >>> both.mean, both.variance
        (tensor([0.5000]), tensor([0.5000]))
    """
    m_q, s_q = normal_moments("the guide's estimate", q)
    m_p, s_p = normal_moments("the model's p(z_i | z_{i+1}, ...)", p)
    w_q, w_p = s_q**-2, s_p**-2
    precision = w_q + w_p
    return diagonal_normal((m_q * w_q + m_p * w_p) / precision, precision.rsqrt())


def normal_moments(name: str, d: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (..., d) of a normal with independent dimensions.

    Args:
        name: of the distribution, for the error.
        d: of event shape (d,).

    Raises:
        ValueError: another distribution.
    """
    base: Any = d.base_dist if isinstance(d, Independent) else d
    if not isinstance(base, Normal):
        raise ValueError(
            f"{name}: expected a normal with independent dimensions, for a mean weighted by "
            f"precision; got {type(base).__name__}: take the posterior mean-field-normal, or the "
            "kind two-level"
        )
    return base.loc, base.scale


class Rungs(nn.Module):
    """d_1 = f_1(x), d_i = f_i(d_{i-1}); then mean and log-variance of each z_i, linear in d_i.

    The deterministic pass of a ladder: (N, *in_shape) -> (N, 2, sum of the latent dimensions).

    Args:
        in_shape: shape of one input.
        net: factory of the networks f_i.
        latent_dims: lengths of z_1, ..., z_L.
        width: length of each d_i.
    """

    def __init__(
        self, in_shape: Shape, net: NetFactory, latent_dims: Sequence[int], width: int
    ) -> None:
        super().__init__()
        inputs = [tuple(in_shape), *[(width,)] * (len(latent_dims) - 1)]
        self.passes = nn.ModuleList(net(shape, (width,)) for shape in inputs)
        self.outputs = nn.ModuleList(nn.Linear(width, 2 * d) for d in latent_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, *in_shape) to (N, 2, sum of the latent dimensions), z_1 first."""
        d, found = x, []
        for deeper, output in zip(self.passes, self.outputs, strict=True):
            d = deeper(d)
            found.append(output(d).unflatten(-1, (2, -1)))
        return torch.cat(found, -1)


def rungs(net: NetFactory, latent_dims: Sequence[int], width: int = 128) -> NetFactory:
    """Return the factory of a ladder's bottom-up pass, for `estimates` of `Ladder`.

    Args:
        net: factory of the networks from one rung to the next.
        latent_dims: lengths of z_1, ..., z_L.
        width: length of each rung d_i.

    Raises:
        ValueError: width is no positive whole number; when the net is made, for a posterior that
            does not ask for a mean and a log-variance of each latent number.

    Example:
        >>> from pyrovae.nets import mlp
        >>> from pyrovae.posteriors import MeanFieldNormal
        >>> net = rungs(mlp(hidden=(8,)), latent_dims=(3, 2), width=6)
        >>> q = Ladder(MeanFieldNormal((4,), latent_dim=5, net=net), latent_dims=(3, 2))
        >>> q.top(torch.zeros(7, 4)).rsample().shape
        torch.Size([7, 2])
    """
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"expected width to be a positive whole number; got {width!r}")

    def make(in_shape: Shape, out_shape: Shape) -> Rungs:
        if out_shape != (2, sum(latent_dims)):
            raise ValueError(
                "expected a posterior of a mean and a log-variance for each latent number, "
                f"{(2, sum(latent_dims))}, such as mean-field-normal, for a ladder; got one that "
                f"takes {out_shape}"
            )
        return Rungs(in_shape, net, latent_dims, width)

    return make


class _Top(nn.Module):
    """q(z_L|x) of a ladder, as a part.

    Args:
        estimates: of all levels side by side.
        latent_dim: length of z_L.
    """

    def __init__(self, estimates: Any, latent_dim: int) -> None:
        super().__init__()
        self.estimates, self.latent_dim = estimates, latent_dim
        self.event_shape, self.data_shape = (latent_dim,), estimates.data_shape
        self.context_dim, self.space = estimates.context_dim, estimates.space

    def forward(self, x: Tensor, *c: Tensor) -> TorchDistribution:
        """Return q(z_L|x, c)."""
        loc, scale = normal_moments("the ladder's estimates", self.estimates(x, *c))
        return diagonal_normal(loc[..., -self.latent_dim :], scale[..., -self.latent_dim :])


class _Unknown(nn.Module):
    """q(z_L|x) where it has no density in closed form."""

    @property
    def event_shape(self) -> Shape:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "expected a guide with q(z_L|x) for a prior that is made of it; got a bottom-up one, "
            "which draws z_L from q(z_L|z_{L-1}): take the kind two-level or ladder, or another "
            "prior"
        )
