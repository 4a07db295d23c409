"""Likelihoods p(x|z): modules whose call on z returns a distribution over one datum x."""

from pyrovae.likelihoods.base import Likelihood as Likelihood
from pyrovae.likelihoods.binary import Bernoulli, Binomial, ContinuousBernoulli
from pyrovae.likelihoods.counts import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from pyrovae.likelihoods.full_covariance import FullCovarianceNormal
from pyrovae.likelihoods.levels import (
    Categorical,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from pyrovae.likelihoods.location_scale import Fixed as Fixed
from pyrovae.likelihoods.location_scale import Laplace, LogNormal, Normal, StudentT
from pyrovae.likelihoods.location_scale import PerDimension as PerDimension
from pyrovae.likelihoods.location_scale import Predicted as Predicted
from pyrovae.likelihoods.location_scale import Shared as Shared
from pyrovae.likelihoods.location_scale import Variance as Variance
from pyrovae.likelihoods.mixed import Masked, Mixed
from pyrovae.likelihoods.pixels import PixelCNN
from pyrovae.likelihoods.unit_interval import Beta

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "FullCovarianceNormal",
    "Laplace",
    "LogNormal",
    "Masked",
    "Mixed",
    "NegativeBinomial",
    "Normal",
    "PixelCNN",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
]
