"""Likelihoods of levels, and of [0, 1]."""

import numpy as np
import scipy.special
import scipy.stats
import torch

from cases.base import Case, whole
from cases.basic import expit, flat
from pyrovae import likelihoods

EIGHTH = 0.125 / 255  # of a level of 256


def categorical(part, params, x):
    log_p = scipy.special.log_softmax(params, -1)
    return flat(np.take_along_axis(log_p, x[..., None].astype(int), -1)).sum(1)


def logistic(loc, scale, x, top):
    """Differences of distribution functions, taken on the side where they are small."""
    law = scipy.stats.logistic(loc, scale)
    low = np.where(x == 0, -np.inf, (x - 0.5) / top)
    high = np.where(x == top, np.inf, (x + 0.5) / top)
    return np.where(low > loc, law.sf(low) - law.sf(high), law.cdf(high) - law.cdf(low))


def discretized_logistic(part, params, x):
    scale = EIGHTH + np.exp(params[:, 1])
    return flat(np.log(logistic(params[:, 0], scale, x, part.num_levels - 1))).sum(1)


def discretized_logistic_mixture(part, params, x):
    weights = scipy.special.softmax(params[:, 0], 1)
    p = logistic(params[:, 1], EIGHTH + np.exp(params[:, 2]), x[:, None], part.num_levels - 1)
    return flat(np.log((weights * p).sum(1))).sum(1)


def guarded_beta(part, params, x):
    """scipy's density inside, scipy's incomplete beta function over the width at the edges."""
    edge = part.edge
    nu = edge + 1 / (np.exp(-params[:, 1]) + edge)
    a, b = (nu * (1e-6 + (1 - 2e-6) * expit(t)) for t in (params[:, 0], -params[:, 0]))
    log_p = scipy.stats.beta.logpdf(x, a, b)
    log_p = np.where(x < edge, np.log(scipy.special.betainc(a, b, edge) / edge), log_p)
    return flat(
        np.where(x > 1 - edge, np.log(scipy.special.betainc(b, a, edge) / edge), log_p)
    ).sum(1)


def guarded(edge):
    """The edges by one rule, what is between them by Gauss's in the logit of x."""

    def points():
        nodes, weights = np.polynomial.legendre.leggauss(1500)
        top = scipy.special.logit(1 - edge)
        x = scipy.special.expit(top * nodes)
        between = top * weights * x * (1 - x)
        pieces = (np.arange(50) + 0.5) / 50 * edge
        x = np.concatenate([pieces, x, 1 - pieces])
        weights = np.concatenate([np.full(50, edge / 50), between, np.full(50, edge / 50)])
        return torch.tensor(x)[:, None], torch.tensor(weights)

    return points


FIFTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of 15 and of 255 levels, each a whole one
LEVELS = {"num_levels": 16}
LIKELIHOODS = [
    Case(
        likelihoods.Categorical, categorical, LEVELS, domain=whole(15),
        mean=FIFTHS, mean_tolerance=1.001e-3 * 15 / 2,  # as its docstring says
    ),
    Case(
        likelihoods.Categorical, categorical, {}, "256", whole(255),
        mean=FIFTHS, mean_tolerance=1.001e-3 * 255 / 2,
        fit_gap=0.08,  # 255 free probabilities from 2000 draws: 255 / 4000 nats
    ),
    Case(likelihoods.DiscretizedLogistic, discretized_logistic, LEVELS, domain=whole(15)),
    Case(likelihoods.DiscretizedLogistic, discretized_logistic, {}, "256", whole(255)),
    Case(
        likelihoods.DiscretizedLogisticMixture, discretized_logistic_mixture, LEVELS,
        domain=whole(15),
    ),
    Case(
        likelihoods.DiscretizedLogisticMixture, discretized_logistic_mixture,
        {"num_components": 2}, "256", whole(255),
    ),
    Case(likelihoods.Beta, guarded_beta, domain=guarded(1e-3)),
    Case(likelihoods.Beta, guarded_beta, {"edge": 0.05}, "wide", domain=guarded(0.05)),
]  # fmt: skip
