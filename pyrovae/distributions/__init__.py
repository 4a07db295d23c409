"""Distributions and divergences that Pyro lacks, and what every part is made of.

Importing this package registers what Pyro and torch lack of KL(normal || normal): full-rank against
diagonal, and low-rank against diagonal both ways.
"""

from pyrovae.distributions.autoregressive import Autoregressive
from pyrovae.distributions.conditional import Conditional
from pyrovae.distributions.counts import NegativeBinomial, Poisson, ZeroInflated
from pyrovae.distributions.discrete import (
    CategoricalVector,
    OneHotGroups,
    RelaxedOneHotGroups,
    StraightThroughGroups,
)
from pyrovae.distributions.edges import GuardedBeta
from pyrovae.distributions.flows import NormalFlow
from pyrovae.distributions.levels import CategoricalLevels, DiscretizedLogistic
from pyrovae.distributions.low_rank import LowRankNormal
from pyrovae.distributions.missing import (
    Columns,
    Observed,
    has_marginals,
    observed,
    split_mask,
)
from pyrovae.distributions.mixtures import PathwiseMixture
from pyrovae.distributions.normals import MixtureOfNormals, diagonal_normal
from pyrovae.distributions.products import factors, kind
from pyrovae.distributions.seeding import mixed, reseed, seeded
from pyrovae.distributions.sphere import VonMisesFisher
from pyrovae.distributions.unit import ContinuousBernoulli

__all__ = [
    "Columns",
    "Observed",
    "has_marginals",
    "Autoregressive",
    "CategoricalLevels",
    "CategoricalVector",
    "Conditional",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "GuardedBeta",
    "LowRankNormal",
    "MixtureOfNormals",
    "NegativeBinomial",
    "NormalFlow",
    "OneHotGroups",
    "PathwiseMixture",
    "Poisson",
    "RelaxedOneHotGroups",
    "StraightThroughGroups",
    "VonMisesFisher",
    "ZeroInflated",
    "diagonal_normal",
    "factors",
    "kind",
    "observed",
    "mixed",
    "reseed",
    "seeded",
    "split_mask",
]
