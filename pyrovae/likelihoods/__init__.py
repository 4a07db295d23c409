"""Likelihoods p(x|z): modules whose call on z returns a distribution over one datum x."""

from pyrovae.likelihoods.base import Likelihood as Likelihood
from pyrovae.likelihoods.binary import Bernoulli, Binomial, ContinuousBernoulli
from pyrovae.likelihoods.location_scale import Fixed as Fixed
from pyrovae.likelihoods.location_scale import Normal
from pyrovae.likelihoods.location_scale import PerDimension as PerDimension
from pyrovae.likelihoods.location_scale import Predicted as Predicted
from pyrovae.likelihoods.location_scale import Shared as Shared
from pyrovae.likelihoods.location_scale import Variance as Variance

__all__ = ["Bernoulli", "Binomial", "ContinuousBernoulli", "Normal"]
