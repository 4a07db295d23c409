"""Normalising flows: a normal, pushed through an invertible map."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.distributions.bijections import Bijection
from pyrovae.distributions.normals import diagonal_normal


class NormalFlow(TorchDistribution):
    """The law of z = f(u), u ~ N(loc, diag(scale^2)): log p(z) = log N(u) - log |det df/du|.

    Rezende & Mohamed (2015), eq. 5. Any z can be scored, by u = f^-1(z). The z that this object
    drew last is scored by the u it was drawn from, with no inversion, and the gradient is the same
    for all that z was drawn from, the path through z included; for d/dz at a z on such a path,
    score a copy of it. That holds for the very tensor, and only as long as neither it nor any
    tensor that f depends on has changed (by torch's count of changes in place, which writes through
    `.data` escape). Mean and variance are not known.

    Args:
        loc: (..., d).
        scale: (..., d), positive.
        bijection: f; its parameters broadcast to the batch shape.

    Example:
        >>> from pyrovae.distributions.bijections import Householder
        >>> turn = Householder(torch.tensor([[1.0, 1.0]]))
        >>> NormalFlow(torch.tensor([0.0, 4.0]), torch.ones(2), turn).log_prob(
        ...     torch.tensor([-4.0, 0.0])  # where the mean is taken; -log 2 pi
        ... )
        tensor(-1.8379)
    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.positive}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        bijection: Bijection,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.bijection = bijection
        self._drawn: tuple[Tensor, Tensor, bool, list[tuple[Tensor, int]]] | None = None
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw z = f(u), shape (*sample_shape, *batch_shape, d)."""
        base = self._base()
        u = base.rsample(sample_shape)
        z, log_det = self.bijection.forward(u)
        log_p = base.log_prob(u) - log_det
        versions = self._versions(z)
        drawn = (z, log_p, torch.is_grad_enabled())
        self._drawn = None if versions is None else (*drawn, versions)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log N(u; loc, scale) - log |det df/du| at f(u) = value."""
        if self._validate_args:
            self._validate_sample(value)
        known = self._known(value)
        if known is not None:
            return known
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        u, log_det = self.bijection.inverse(value.expand(*batch, -1))
        return self._base().log_prob(u) - log_det

    def expand(
        self, batch_shape: torch.Size, _instance: "NormalFlow | None" = None
    ) -> "NormalFlow":
        """Return the flow with its normal expanded to the batch shape."""
        loc, scale = (t.expand(*batch_shape, -1) for t in (self.loc, self.scale))
        return type(self)(loc, scale, self.bijection, validate_args=self._validate_args)

    def _base(self) -> TorchDistribution:
        return diagonal_normal(self.loc, self.scale)

    def _known(self, value: Tensor) -> Tensor | None:
        """Return what was computed when `value` was drawn, if that still holds."""
        if self._drawn is None:
            return None
        z, log_p, with_gradient, versions = self._drawn
        gradient = torch.is_grad_enabled()
        wanted = gradient and value.requires_grad and value.is_leaf  # d/dz, which log_p has not
        if value is not z or gradient > with_gradient or wanted:
            return None
        if not _same(versions, self._versions(z)):
            return None
        return log_p if gradient else log_p.detach()

    def _versions(self, z: Tensor) -> list[tuple[Tensor, int]] | None:
        """Return z and what it depends on, with torch's counts of their changes in place."""
        tensors = [z, self.loc, self.scale, *self.bijection.tensors()]
        if any(t.is_inference() for t in tensors):
            return None  # those are not counted
        return [(t, t._version) for t in tensors]


def _same(before: list[tuple[Tensor, int]], now: list[tuple[Tensor, int]] | None) -> bool:
    return (
        now is not None
        and len(before) == len(now)
        and all(a is b and m == n for (a, m), (b, n) in zip(before, now, strict=True))
    )


def import_zuko() -> Any:
    """Return zuko; validation of distributions is left as it was, which zuko's import turns off.

    Raises:
        ValueError: it is not installed.
    """
    validating = Distribution._validate_args
    try:
        import zuko
    except ImportError as error:
        raise ValueError(
            "expected zuko, which this flow is made of, to be installed; got "
            f"{error}: pip install 'pyrovae[flows]'"
        ) from error
    finally:
        Distribution.set_default_validate_args(validating)
    return zuko


class ZukoFlow(nn.Module):
    """Context -> bijection, by a lazy transformation of zuko, which holds what is learnt.

    Args:
        name: a class of `zuko.flows`.
        latent_dim: d.
        context_dim: numbers of context; 0 for none.
        inverted: is f the transformation's inverse? zuko's flows are fast in their own direction,
            and their inverses may take d passes: f itself is fast where draws are to be, and f^-1
            where densities of given values are.
        transforms: how many transformations follow one another.
        width: of the two hidden layers in each one's network.
        **options: further arguments of the class.

    Raises:
        ValueError: zuko is not installed.
    """

    def __init__(
        self,
        name: str,
        latent_dim: int,
        context_dim: int,
        inverted: bool,
        transforms: int,
        width: int,
        **options: int,
    ) -> None:
        super().__init__()
        flow = getattr(import_zuko().flows, name)(
            latent_dim, context_dim, transforms=transforms, hidden_features=(width, width),
            activation=nn.SiLU, **options,
        )  # fmt: skip
        self.lazy = flow.transform
        self.inverted = inverted

    def forward(self, context: Tensor | None = None) -> Bijection:
        """Return f for context (..., context_dim)."""
        return _Zuko(self, context)

    def __repr__(self) -> str:
        # zuko's own representations draw from the global generator.
        kinds = [type(t).__name__ for t in self.lazy.transforms]
        return f"{type(self).__name__}({len(kinds)} x {kinds[0]}, inverted={self.inverted})"


class _Zuko(Bijection):
    def __init__(self, flow: ZukoFlow, context: Tensor | None) -> None:
        self.flow, self.context = flow, context
        transform = flow.lazy(context)
        self.transform = transform.inv if flow.inverted else transform

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.call_and_ladj(u)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        u, log_det = self.transform.inv.call_and_ladj(z)
        return u, -log_det

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), *self.flow.parameters()]


@dataclass(frozen=True)
class Counts:
    """Options that are positive whole numbers; `build` reads them as floats."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or value < 1 or value % 1:
                raise ValueError(
                    f"expected {field.name} of {type(self).__name__} to be a positive whole "
                    f"number; got {value!r}"
                )
            object.__setattr__(self, field.name, int(value))
