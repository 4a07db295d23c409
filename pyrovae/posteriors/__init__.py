"""Approximate posteriors q(z|x): modules whose call on x returns a distribution over z."""

from pyrovae.posteriors.base import Posterior as Posterior
from pyrovae.posteriors.normals import FullRankNormal, MeanFieldNormal

__all__ = ["FullRankNormal", "MeanFieldNormal"]
