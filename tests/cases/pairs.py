"""Every pair that ships: how it is built by names, its data, and its command line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor

from cases.base import LATENT, SHAPE
from pyrovae import VAE, build
from pyrovae.pairs.base import Pair
from pyrovae.pairs.names import hyphenated

ROWS = 12


def bits(shape: tuple[int, ...] = SHAPE, n: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(1234)
    return (torch.rand(n, *shape, generator=generator) > 0.5).float()


@dataclass(frozen=True, eq=False)
class PairCase:
    """A pair, and what it runs on.

    Attributes:
        cls: the class.
        options: arguments of `build`, but for the pair's name.
        batch: makes x and its context, (x, *c).
        objective: what trains it.
        command: options of `pyrovae train` on data that ship with a dependency, but for the pair's
            name; few epochs.
        name: tells cases of one class apart.
        notes: sites of which `check_pair` may have notes.
    """

    cls: type[Pair]
    options: dict[str, Any] = field(default_factory=dict)
    batch: Callable[[], tuple[Tensor, ...]] = lambda: (bits(),)
    objective: type[ELBO] = TraceMeanField_ELBO
    command: tuple[str, ...] = ()
    name: str = ""

    @property
    def id(self) -> str:
        return self.cls.__name__ + (f"-{self.name}" if self.name else "")

    def build(self) -> Any:
        common = {"data_shape": self.batch()[0].shape[1:], "latent_dim": LATENT, "hidden": (7,)}
        return build(pair=hyphenated(self.cls.__name__), **(common | self.options))


PAIRS = [
    PairCase(VAE),
]
