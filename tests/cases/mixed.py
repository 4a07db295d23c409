"""Likelihoods made of others."""

import numpy as np
import scipy.stats
import torch

from cases.base import LATENT, NET, Case, line, whole
from cases.basic import FLOOR, bernoulli, expit
from pyrovae import likelihoods

COLUMNS = [("normal", [0, 2], {"variance": likelihoods.Shared()}), ("bernoulli", [1])]
TABLE = [*COLUMNS, ("categorical", [3], {"num_levels": 3}), ("poisson", [4, 5])]


def mixed(part, params, x):
    """The columns of TABLE one by one; the network's output is a row of each group's."""
    scale = FLOOR + np.exp(part.groups[0].s.item())
    total = scipy.stats.norm.logpdf(x[:, [0, 2]], params[:, :2], scale).sum(1)
    total += scipy.stats.bernoulli.logpmf(x[:, 1], expit(params[:, 2]))
    p = np.exp(params[:, 3:6])
    total += np.log(p[np.arange(len(x)), x[:, 3].astype(int)] / p.sum(1))
    return total + scipy.stats.poisson.logpmf(x[:, 4:], np.exp(params[:, 6:8])).sum(1)


def both(first, second):
    """The product of two rules."""

    def points():
        (x, w), (y, v) = first(), second()
        i, j = torch.cartesian_prod(torch.arange(len(x)), torch.arange(len(y))).T
        return torch.cat([x[i], y[j]], -1), w[i] * v[j]

    return points


def make_mixed(shape):
    columns = TABLE
    if shape == (2,):
        columns = [("normal", [0], {"variance": likelihoods.Shared()}), ("bernoulli", [1])]
    return likelihoods.Mixed(LATENT, (6,) if shape != (2,) else (2,), NET, columns=columns)


LIKELIHOODS = [
    Case(
        likelihoods.Mixed, mixed, make=make_mixed, unit=(2,),
        domain=both(line(-20, 20), whole(1)), mean=(0.2, 0.32, 0.44, 1.0, 0.68, 0.8),
    ),
    Case(
        likelihoods.Masked, bernoulli, domain=whole(1),
        make=lambda shape: likelihoods.Masked(likelihoods.Bernoulli(LATENT, shape, NET)),
    ),
]  # fmt: skip
