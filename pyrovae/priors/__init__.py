"""Priors p(z): modules whose call returns a distribution of event shape (latent_dim,)."""

from pyrovae.priors.base import Prior as Prior
from pyrovae.priors.discrete import Categorical, GumbelSoftmax, OneHotCategorical
from pyrovae.priors.exemplar import ExemplarPrior
from pyrovae.priors.flows import FlowPrior
from pyrovae.priors.flows import MaskedAutoregressive as MaskedAutoregressive
from pyrovae.priors.flows import NeuralSpline as NeuralSpline
from pyrovae.priors.flows import RealNVP as RealNVP
from pyrovae.priors.mixtures import MixtureOfNormals, VampPrior
from pyrovae.priors.normals import (
    ConditionalNormal,
    Laplace,
    LearnedNormal,
    StandardNormal,
    StudentT,
)
from pyrovae.priors.sphere import VonMisesFisher

__all__ = [
    "Categorical",
    "ConditionalNormal",
    "FlowPrior",
    "ExemplarPrior",
    "GumbelSoftmax",
    "Laplace",
    "LearnedNormal",
    "MixtureOfNormals",
    "OneHotCategorical",
    "StandardNormal",
    "StudentT",
    "VampPrior",
    "VonMisesFisher",
]
