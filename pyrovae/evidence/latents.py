"""The latents of a pair as one vector: what the exact methods integrate over."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyrovae.importance import Structure, batched, find_modules, inspect, log_joint, simulate
from pyrovae.importance.weights import rows_of_a_pass
from pyrovae.nets import in_double

REAL_VECTOR = constraints.real_vector


@dataclass(frozen=True)
class Problem:
    """A pair and its data, with the latent sites laid out in one vector z of length `dim`.

    Attributes:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        c: context.
        modules: of the pair.
        structure: of the pair.
        shapes: event shape of each latent site.
        dtypes: dtype of each latent site's draws.
    """

    model: Callable
    guide: Callable
    x: Tensor
    c: tuple[Tensor, ...]
    modules: tuple[nn.Module, ...]
    structure: Structure
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    @property
    def dim(self) -> int:
        """Length of z."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def discrete(self) -> bool:
        """Is any latent discrete?"""
        return any(site.support.is_discrete for site in self.structure.latents)

    def by_site(self, z: Tensor) -> dict[str, Tensor]:
        """Split z (..., dim) into its sites (..., *event_shape), each in the guide's dtype."""
        parts = z.split([math.prod(shape) for shape in self.shapes.values()], -1)
        return {
            name: part.reshape(*z.shape[:-1], *shape).to(self.dtypes[name])
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def flat(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Join sites (..., *event_shape) into z (..., dim), in float64."""
        parts = []
        for name, shape in self.shapes.items():
            left = latents[name].shape[: latents[name].dim() - len(shape)]
            parts.append(latents[name].reshape(*left, math.prod(shape)).double())
        return torch.cat(parts, -1)

    def log_joint_of_sites(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return log p(x, z) for latents by site (K, N, *event_shape): (K, N), in float64."""
        with in_double(*self.modules):
            return self.log_joint(self.flat(latents))

    def log_joint(self, z: Tensor) -> Tensor:
        """Return log p(x, z) for z (K, N, dim): (K, N)."""
        with torch.no_grad():
            found = log_joint(self.model, self.by_site(z), self.x, *self.c, modules=self.modules)
        return found.double()

    def log_joint_of_rows(self, z: Tensor, rows: Tensor) -> Tensor:
        """Return log p(x, z) for z (M, dim) and the datum `rows` (M,) of each: (M,)."""
        size = rows_of_a_pass(self.x)
        parts = []
        for some, at in zip(z.split(size), rows.split(size), strict=True):
            data = self.x[at], *(t[at] for t in self.c)
            with torch.no_grad():
                found = log_joint(self.model, self.by_site(some[None]), *data, modules=self.modules)
            parts.append(found[0].double())
        return torch.cat(parts)

    def log_guide(self, z: Tensor) -> Tensor:
        """Return log q(z|x) for z (K, N, dim): (K, N)."""
        with torch.no_grad():
            found = log_joint(self.guide, self.by_site(z), self.x, *self.c, modules=self.modules)
        return found.double()


@contextlib.contextmanager
def problem(
    model: Callable, guide: Callable, x: Tensor, c: Sequence[Tensor], modules: Sequence[nn.Module]
) -> Iterator[Problem]:
    """Lay a valid pair out for integration; inside the block its modules are in float64.

    Raises:
        ValueError: no valid pair, or a continuous latent whose support is not the whole line.
    """
    found = find_modules(model, guide, modules=modules)
    with in_double(*found):
        x, context = batched(x, c, found)
        structure = inspect(model, guide, x, *context, modules=modules)
        structure.check()
        for site in structure.latents:
            support = site.support
            while isinstance(support, constraints.independent):
                support = support.base_constraint
            if not support.is_discrete and support not in (constraints.real, REAL_VECTOR):
                raise ValueError(
                    f"site {site.name!r}: expected a latent on the whole line, or a discrete one; "
                    f"got the support {support}: transform it to the line in the model"
                )
        drawn = simulate(guide, x[:1], *(t[:1] for t in context), modules=modules)
        yield Problem(
            model, guide, x, context, tuple(found), structure,
            shapes={site.name: site.event_shape for site in structure.latents},
            dtypes={site.name: drawn[site.name].dtype for site in structure.latents},
        )  # fmt: skip
