"""Data of which only some entries are observed, and data of columns of several kinds."""

import math
from collections.abc import Sequence

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent

from pyrovae.nets import Shape

INSIDE = (0.0, 1.0, 0.5)  # one of these is on the support of every likelihood


def observed(
    x: Tensor, c: tuple[Tensor, ...], data_shape: Shape, context_dim: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return where x is observed, and the context that is left.

    An entry is missing where x is NaN, or where the mask is 0: see `split_mask`.

    Args:
        x: data (..., N, *data_shape).
        c: context, N rows each.
        data_shape: shape of one datum.
        context_dim: numbers of context a datum, the mask aside.

    Returns:
        A boolean tensor like x, and c without the mask.
    """
    seen = ~x.isnan()
    mask, rest = split_mask(c, data_shape, context_dim)
    return (seen if mask is None else seen & mask), rest


def split_mask(
    c: tuple[Tensor, ...], data_shape: Shape, context_dim: int
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Return the mask at the end of the context as booleans, if there is one, and the rest of it.

    The mask is the last context tensor, (N, *data_shape), if the context holds prod(data_shape)
    numbers a datum more than `context_dim`. Arguments: see `observed`.

    Raises:
        ValueError: so many numbers, but the last tensor is not of that shape.
    """
    numbers = sum(math.prod(t.shape[1:]) for t in c)
    if not c or numbers != context_dim + math.prod(data_shape):
        return None, c
    if tuple(c[-1].shape[1:]) != tuple(data_shape):
        raise ValueError(
            f"expected the mask, of shape (N, {', '.join(map(str, data_shape))}), as the last "
            f"context tensor; got shapes {[tuple(t.shape) for t in c]}"
        )
    return c[-1] != 0, c[:-1]


def elementwise(support: constraints.Constraint) -> constraints.Constraint:
    """Return the constraint of one entry."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def log_prob_of(d: TorchDistribution, value: Tensor, seen: Tensor) -> Tensor:
    """Return the log-density of the observed entries, the others integrated out exactly.

    Where entries are independent these are left out of the sum; other distributions bring a method
    `log_prob_of(value, seen)` of their own.

    Args:
        d: of batch shape (...) and event shape data_shape.
        value: (..., *data_shape); what stands at entries not observed does not matter.
        seen: boolean, like value.

    Raises:
        ValueError: a distribution that has no closed-form marginal.
    """
    if not has_marginals(d):
        raise ValueError(
            f"{type(d).__name__} has no marginal in closed form: expected independent entries, "
            "FullCovarianceNormal or Mixed"
        )
    if not isinstance(d, Independent):
        return d.log_prob_of(value, seen)
    filled = torch.where(seen, value, inside(d.base_dist.support, value))
    log_p = torch.where(seen, d.base_dist.log_prob(filled), 0.0)
    return log_p.sum(tuple(range(-d.reinterpreted_batch_ndims, 0)))


def has_marginals(d: TorchDistribution) -> bool:
    """Can entries be integrated out of the distribution in closed form?"""
    if isinstance(d, Independent):
        return not d.base_dist.event_shape
    return hasattr(d, "log_prob_of")


def inside(support: constraints.Constraint, value: Tensor) -> float:
    """Return a number on the support whatever the parameters, to stand where nothing is seen."""
    parts = [part for _, part in support.groups] if isinstance(support, _Columns) else [support]
    for number in INSIDE:  # as one number, which a trace of the tensors may look at
        one = torch.tensor(number, dtype=value.dtype, device=value.device)
        one = one.reshape([1] * value.dim())
        if all(bool(part.check(one).all()) for part in parts):
            return number
    raise ValueError(f"expected a support that holds one of {INSIDE}; got {support}")


class _OrMissing(constraints.Constraint):
    """On the support, or missing."""

    def __init__(self, support: constraints.Constraint, mask: Tensor | None) -> None:
        self.support, self.mask = support, mask
        self.is_discrete = support.is_discrete
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        missing = value.isnan()
        if self.mask is not None:
            missing = missing | ~self.mask
        filled = torch.where(missing, inside(self.support, value), value)
        return self.support.check(filled) | missing


class Observed(TorchDistribution):
    """p(x_obs): a distribution whose density is that of the observed entries of x alone.

    Args:
        base: of one whole datum, batch shape (...).
        mask: boolean (..., *event_shape), true where observed; None if only NaN marks what is not.

    Raises:
        ValueError: a base that has no marginal in closed form.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(
        self, base: TorchDistribution, mask: Tensor | None, validate_args: bool | None = None
    ) -> None:
        if not has_marginals(base):
            raise ValueError(
                f"expected a distribution whose entries can be integrated out; got "
                f"{type(base).__name__}: take independent entries, FullCovarianceNormal or Mixed"
            )
        self.base = base
        shape = (*base.batch_shape, *base.event_shape)
        self.mask = None if mask is None else mask.expand(shape)
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The base's, or missing."""
        each = _OrMissing(elementwise(self.base.support), self.mask)
        return constraints.independent(each, len(self.event_shape))

    def seen(self, value: Tensor) -> Tensor:
        """Return which entries of value (..., *event_shape) are observed, booleans."""
        return ~value.isnan() if self.mask is None else ~value.isnan() & self.mask

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x_obs), shape the broadcast batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.expand(
            torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        )
        return log_prob_of(self.base, value, self.seen(value))

    def completed(self, value: Tensor, draw: bool = False) -> Tensor:
        """Return value with E[x_mis | x_obs], or a draw of it, where nothing is observed."""
        seen = self.seen(value)
        return torch.where(seen, value, conditional(self.base, value, seen, draw))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw whole data."""
        return self.base.sample(sample_shape)

    def expand(self, batch_shape: torch.Size, _instance: "Observed | None" = None) -> "Observed":
        """Return the distribution with its batch expanded."""
        return type(self)(
            self.base.expand(torch.Size(batch_shape)), self.mask, validate_args=self._validate_args
        )

    @property
    def mean(self) -> Tensor:
        """Of whole data."""
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        """Of whole data."""
        return self.base.variance


def conditional(d: TorchDistribution, value: Tensor, seen: Tensor, draw: bool) -> Tensor:
    """Return E[x | x_obs], or a draw; entries are independent but for a `conditional` of d's own.

    Args:
        d: of one datum.
        value: (..., *data_shape).
        seen: boolean, like value.
        draw: a draw in place of the mean.
    """
    own = getattr(d, "conditional", None)
    if own is not None:
        return own(value, seen, draw)
    return d.sample() if draw else d.mean


class _Columns(constraints.Constraint):
    """Each column on the support of its own kind."""

    def __init__(self, groups: Sequence[tuple[Tensor, constraints.Constraint]]) -> None:
        self.groups = groups
        self.is_discrete = all(support.is_discrete for _, support in groups)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        found = torch.empty_like(value, dtype=torch.bool)
        for index, support in self.groups:
            found[..., index] = support.check(value[..., index])
        return found


class Columns(TorchDistribution):
    """prod_g p_g(x[columns of g]): the columns of a datum in independent groups.

    Args:
        groups: (columns, distribution) each: indices (D_g,), and a distribution of batch shape
            (...) and event shape (D_g,). Together the columns are 0, ..., D - 1.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(
        self,
        groups: Sequence[tuple[Tensor, TorchDistribution]],
        validate_args: bool | None = None,
    ) -> None:
        self.groups = list(groups)
        d = sum(len(index) for index, _ in self.groups)
        super().__init__(self.groups[0][1].batch_shape, torch.Size((d,)), validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Each column on its own group's support."""
        each = _Columns([(index, elementwise(d.support)) for index, d in self.groups])
        return constraints.independent(each, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return sum_g log p_g(x[columns of g])."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.stack([d.log_prob(value[..., index]) for index, d in self.groups]).sum(0)

    def log_prob_of(self, value: Tensor, seen: Tensor) -> Tensor:
        """Return the log-density of the observed entries."""
        return torch.stack(
            [log_prob_of(d, value[..., index], seen[..., index]) for index, d in self.groups]
        ).sum(0)

    def conditional(self, value: Tensor, seen: Tensor, draw: bool) -> Tensor:
        """Return E[x | x_obs], or a draw, (..., D)."""
        return self._joined(
            [conditional(d, value[..., index], seen[..., index], draw) for index, d in self.groups]
        )

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw every group."""
        return self._joined([d.sample(sample_shape) for _, d in self.groups])

    def expand(self, batch_shape: torch.Size, _instance: "Columns | None" = None) -> "Columns":
        """Return the distribution with its batch expanded."""
        groups = [(index, d.expand(torch.Size(batch_shape))) for index, d in self.groups]
        return type(self)(groups, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        """Of every column, (..., D)."""
        return self._joined([d.mean for _, d in self.groups])

    @property
    def variance(self) -> Tensor:
        """Of every column, (..., D)."""
        return self._joined([d.variance for _, d in self.groups])

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        order = torch.cat([index for index, _ in self.groups]).argsort()
        return torch.cat(list(parts), -1)[..., order]
