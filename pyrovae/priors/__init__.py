"""Priors p(z): modules whose call returns a distribution of event shape (latent_dim,)."""

from pyrovae.priors.base import Prior as Prior
from pyrovae.priors.mixtures import MixtureOfNormals, VampPrior
from pyrovae.priors.normals import StandardNormal

__all__ = ["MixtureOfNormals", "StandardNormal", "VampPrior"]
