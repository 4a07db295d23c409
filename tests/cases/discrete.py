"""Discrete latents, and their relaxation."""

import numpy as np
import scipy.special
import scipy.stats
import torch

from cases.base import Case
from pyrovae import posteriors, priors

LEVELS = 4


def corners():
    """The one-hot vectors of length 2."""
    return torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)


def levels():
    """Pairs of whole numbers 0, ..., LEVELS - 1."""
    axis = torch.arange(LEVELS, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), torch.ones(LEVELS**2, dtype=torch.float64)


def segment(reach=80.0, n=20_001):
    """(t, 1 - t) for t between 0 and 1: the trapezoid rule in the logit of t."""

    def points():
        u = torch.linspace(-reach, reach, n, dtype=torch.float64)
        t, s = u.sigmoid(), (-u).sigmoid()
        return torch.stack([t, s], -1), t * s * (u[1] - u[0])

    return points


def probabilities(part, params):
    """pi (N or 1, groups, categories)."""
    logits = part.logits.detach().numpy()[None] if params is None else params
    return scipy.special.softmax(logits, -1)


def one_hot(part, params, z):
    pi = probabilities(part, params)
    groups = z.reshape(len(z), *pi.shape[1:])
    rows = scipy.stats.multinomial.logpmf(groups, 1, np.broadcast_to(pi, groups.shape))
    return rows.reshape(len(z), -1).sum(1)


def categorical(part, params, z):
    pi = np.broadcast_to(probabilities(part, params), (len(z), z.shape[1], LEVELS))
    return np.array(
        [
            sum(np.log(p[int(v)]) for p, v in zip(*row, strict=True))
            for row in zip(pi, z, strict=True)
        ]
    )


def concrete(part, params, z):
    """Of one group of two, as the logistic law of t's logit (Maddison et al. 2017, section 3.1).

    T logit(t) - (log pi_1 - log pi_2) is a standard logistic variable.
    """
    pi, temperature = probabilities(part, params)[:, 0], part.temperature.item()
    off = np.log(pi[:, 0] / pi[:, 1])
    logit = np.log(z[:, 0]) - np.log(z[:, 1])
    law = scipy.stats.logistic.logpdf(temperature * logit - off)
    return law + np.log(temperature) - np.log(z[:, 0] * z[:, 1])


FEW = {"num_levels": LEVELS}
LEARNT = {"learnt": True}
PRIORS = [
    Case(priors.OneHotCategorical, one_hot, domain=corners),
    Case(priors.OneHotCategorical, one_hot, LEARNT, "learnt", corners),
    Case(priors.Categorical, categorical, FEW, domain=levels),
    Case(priors.Categorical, categorical, FEW | LEARNT, "learnt", levels),
    Case(priors.GumbelSoftmax, concrete, domain=segment()),
    Case(priors.GumbelSoftmax, concrete, LEARNT, "learnt", segment()),
]
POSTERIORS = [
    Case(posteriors.OneHotCategorical, one_hot, domain=corners),
    Case(posteriors.StraightThrough, one_hot, domain=corners),
    Case(posteriors.Categorical, categorical, FEW, domain=levels),
    Case(posteriors.GumbelSoftmax, concrete, domain=segment()),
]
