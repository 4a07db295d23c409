"""Approximate posteriors q(z|x): modules whose call on x returns a distribution over z."""

from pyrovae.posteriors.base import Posterior as Posterior
from pyrovae.posteriors.discrete import (
    Categorical,
    GumbelSoftmax,
    OneHotCategorical,
    StraightThrough,
)
from pyrovae.posteriors.flows import FlowPosterior
from pyrovae.posteriors.flows import Householder as Householder
from pyrovae.posteriors.flows import InverseAutoregressive as InverseAutoregressive
from pyrovae.posteriors.flows import NeuralSpline as NeuralSpline
from pyrovae.posteriors.flows import Planar as Planar
from pyrovae.posteriors.flows import Sylvester as Sylvester
from pyrovae.posteriors.mixtures import MixtureOfNormals
from pyrovae.posteriors.normals import FullRankNormal, LowRankNormal, MeanFieldNormal
from pyrovae.posteriors.sphere import VonMisesFisher

__all__ = [
    "Categorical",
    "FlowPosterior",
    "FullRankNormal",
    "GumbelSoftmax",
    "LowRankNormal",
    "MeanFieldNormal",
    "MixtureOfNormals",
    "OneHotCategorical",
    "StraightThrough",
    "VonMisesFisher",
]
