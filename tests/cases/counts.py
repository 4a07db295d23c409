"""Likelihoods of counts."""

import numpy as np
import scipy.special
import scipy.stats

from cases.base import Case, whole
from cases.basic import expit, flat
from pyrovae import likelihoods


def poisson(part, log_mean, x):
    return scipy.stats.poisson.logpmf(x, np.exp(log_mean))


def negative_binomial(part, log_mean, x):
    r, mean = np.exp(part.log_r.detach().numpy()), np.exp(log_mean)
    return scipy.stats.nbinom.logpmf(x, r, r / (r + mean))


def plain(law):
    return lambda part, params, x: flat(law(part, params, x)).sum(1)


def zero_inflated(law):
    def reference(part, params, x):
        gate = expit(params[:, 1])
        p = gate * (x == 0) + (1 - gate) * np.exp(law(part, params[:, 0], x))
        return flat(np.log(p)).sum(1)

    return reference


LIKELIHOODS = [
    Case(likelihoods.Poisson, plain(poisson), domain=whole(60)),
    Case(likelihoods.NegativeBinomial, plain(negative_binomial), domain=whole(200)),
    Case(likelihoods.ZeroInflatedPoisson, zero_inflated(poisson), domain=whole(60)),
    Case(
        likelihoods.ZeroInflatedNegativeBinomial, zero_inflated(negative_binomial),
        domain=whole(200),
    ),
]  # fmt: skip
