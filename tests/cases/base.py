"""What a case is: a part, its domain, and an independent reference for its log-density."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrovae import likelihoods, nets, posteriors
from pyrovae.distributions import seeded

LATENT, SHAPE, ROWS = 2, (3, 2), 5
NET = nets.mlp(hidden=(7,), activation="tanh")
CONTEXT = 3  # numbers of context a datum, for a prior that takes any

Reference = Callable[[nn.Module, np.ndarray, np.ndarray], np.ndarray]
Domain = Callable[[], tuple[Tensor, Tensor]]


def line(low: float, high: float, n: int = 4001) -> Domain:
    """The trapezoid rule on [low, high], for data of one number."""

    def points() -> tuple[Tensor, Tensor]:
        x = torch.linspace(low, high, n, dtype=torch.float64)
        weights = torch.full((n,), float(x[1] - x[0]), dtype=torch.float64)
        weights[0] = weights[-1] = weights[0] / 2
        return x[:, None], weights

    return points


def whole(top: int) -> Domain:
    """The numbers 0, ..., top, for data of one number."""

    def points() -> tuple[Tensor, Tensor]:
        x = torch.arange(top + 1, dtype=torch.float64)
        return x[:, None], torch.ones_like(x)

    return points


def plane(half: float = 14.0, n: int = 801) -> Domain:
    """The trapezoid rule on a square of two real dimensions."""

    def points() -> tuple[Tensor, Tensor]:
        axis = torch.linspace(-half, half, n, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        return grid, torch.full((len(grid),), float(axis[1] - axis[0]) ** 2, dtype=torch.float64)

    return points


@dataclass(frozen=True, eq=False)
class Case:
    """A part, and its log-density by other means.

    Attributes:
        cls: the class.
        reference: reference(part, net's output, value) -> (N,), by scipy, numpy or quadrature.
        options: arguments of the class; one that is a function is called.
        name: tells cases of one class apart.
        domain: points (M, *event_shape) and weights (M,) that integrate over the support, by
            default the plane; of a likelihood, for data of shape `unit`.
        unit: the data shape under which a likelihood is integrated.
        integral_tolerance: what the rule may be off by.
        mean_tolerance: how far `start_at_mean` may be from the mean, in its units.
        mean: target of that law for each of six entries, by default 0.2, ..., 0.8 (of
            `total_count` or `num_levels` - 1, where there is one); None where E[x|z] is unknown.
        make: makes the part for a data shape, where the class is not called with shapes.
        fit_gap: how many nats a datum a fit to a part's own draws may be worse on fresh ones.
    """

    cls: type[nn.Module]
    reference: Reference
    options: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: Domain = plane()
    unit: tuple[int, ...] = (1,)
    integral_tolerance: float = 1e-8
    mean_tolerance: float = 1e-10
    mean: tuple[float, ...] | None = (0.2, 0.32, 0.44, 0.56, 0.68, 0.8)
    fit_gap: float = 0.05
    make: Callable[[tuple[int, ...]], nn.Module] | None = None

    @property
    def id(self) -> str:
        return self.cls.__name__ + (f"-{self.name}" if self.name else "")

    def build(self, seed: int = 5, shape: tuple[int, ...] = SHAPE) -> nn.Module:
        common: dict[str, Any] = {"latent_dim": LATENT}
        if issubclass(self.cls, (likelihoods.Likelihood, posteriors.Posterior)):
            common |= {"data_shape": shape, "net": NET}
        with seeded(seed):
            if self.make is not None:
                return self.make(shape)
            options = {k: v() if callable(v) else v for k, v in self.options.items()}
            return self.cls(**common, **options)


def inputs(
    part: nn.Module, rows: int = ROWS, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """What the part is called on: z, x, or the context of a prior that takes one."""
    with seeded(7):
        if isinstance(part, likelihoods.Likelihood):
            return (torch.randn(rows, LATENT, dtype=dtype),)
        if isinstance(part, posteriors.Posterior):
            return (torch.rand(rows, *part.data_shape, dtype=dtype),)
        if getattr(part, "context_dim", 0):
            return (torch.randn(rows, CONTEXT, dtype=dtype),)
    return ()
