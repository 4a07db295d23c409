"""Distributions and divergences that Pyro lacks, and what every part is made of.

Importing this package registers what Pyro and torch lack of KL(normal || normal): full-rank against
diagonal, and low-rank against diagonal both ways.
"""

from pyrovae.distributions.conditional import Conditional
from pyrovae.distributions.missing import observed, split_mask
from pyrovae.distributions.normals import MixtureOfNormals, diagonal_normal
from pyrovae.distributions.seeding import seeded
from pyrovae.distributions.unit import ContinuousBernoulli

__all__ = [
    "Conditional",
    "ContinuousBernoulli",
    "MixtureOfNormals",
    "diagonal_normal",
    "observed",
    "seeded",
    "split_mask",
]
