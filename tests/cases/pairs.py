"""Every pair that ships: how it is built by names, its data, and its command line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor

from cases.base import LATENT, SHAPE
from pyrovae import VAE, build
from pyrovae.pairs import (
    BayesianDecoderVAE,
    ConditionalVAE,
    HierarchicalVAE,
    MixtureVAE,
    SemiSupervisedVAE,
    SequenceVAE,
)
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
    PairCase(
        ConditionalVAE,
        {"pair_options": {"num_classes": 3}},
        batch=lambda: (bits(), torch.arange(ROWS) % 3),
    ),
    PairCase(
        ConditionalVAE,
        {"prior": "conditional-normal"},
        name="learned-prior",
        batch=lambda: (bits(), torch.arange(ROWS) % 10),
        command=("--prior", "conditional-normal"),
    ),
    PairCase(HierarchicalVAE, name="two-level"),
    PairCase(
        HierarchicalVAE,
        {"prior": "vamp-prior", "prior_options": {"num_components": 4, "init": [0.5, 0.3]}},
        name="two-level-vamp-prior",
        command=("--prior", "vamp-prior", "--prior-option", "num_components=20"),
    ),
    PairCase(
        HierarchicalVAE,
        {"pair_options": {"kind": "ladder", "levels": 3, "latent_dims": [3, 2, 1], "width": 5}},
        name="ladder",
        command=(
            "--pair-option",
            "kind=ladder",
            "--pair-option",
            "levels=3",
            "--pair-option",
            "latent_dims=[8, 4, 2]",
        ),
    ),
    PairCase(
        HierarchicalVAE,
        {"pair_options": {"kind": "ladder", "skip": False}},
        name="ladder-no-skip",
        command=("--pair-option", "kind=ladder", "--pair-option", "skip=false"),
    ),
    PairCase(SequenceVAE, {"pair_options": {"width": 5}}),
    PairCase(
        SequenceVAE,
        {"pair_options": {"linear": True, "bidirectional": True, "width": 5}},
        batch=lambda: (bits(), torch.arange(ROWS) % SHAPE[0] + 1),
        name="lengths",
        command=("--pair-option", "linear=true", "--pair-option", "bidirectional=true"),
    ),
    PairCase(BayesianDecoderVAE, {"pair_options": {"num_data": 5 * ROWS}}),
    PairCase(
        BayesianDecoderVAE,
        {
            "pair_options": {"num_data": ROWS, "layers": "last"},
            "likelihood": "continuous-bernoulli",
        },
        name="last-layer",
        command=("--pair-option", "layers=last"),
    ),
    PairCase(
        SemiSupervisedVAE,
        {"pair_options": {"num_classes": 3}},
        batch=lambda: (bits(), torch.arange(ROWS) % 4 - 1),
        objective=TraceEnum_ELBO,
        command=("--objective", "trace-enum", "--pair-option", "labelled=100"),
    ),
    PairCase(
        SemiSupervisedVAE,
        {"pair_options": {"num_classes": 3, "classifier": "straight-through"}},
        batch=lambda: (bits(), torch.arange(ROWS) % 4 - 1),
        objective=Trace_ELBO,
        name="straight-through",
        command=("--objective", "trace", "--pair-option", "classifier=straight-through"),
    ),
    PairCase(
        MixtureVAE,
        {"pair_options": {"num_components": 3}},
        objective=TraceEnum_ELBO,
        command=("--objective", "trace-enum"),
    ),
]
