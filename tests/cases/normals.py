"""Normals and other simple priors."""

import numpy as np
import scipy.special
import scipy.stats
import torch

from cases.base import CONTEXT, LATENT, NET, SHAPE, Case, plane
from cases.basic import mean_field, posterior
from pyrovae import posteriors, priors


def location_scale(law):
    def reference(part, params, z):
        loc, scale = (t.detach().numpy() for t in (part.loc, part.log_scale.exp()))
        df = [part.log_df.exp().item()] if hasattr(part, "log_df") else []
        return law.logpdf(z, *df, loc=loc, scale=scale).sum(1)

    return reference


def low_rank(part, params, z):
    def one(row, value):
        w = row[2:].T
        cov = w @ w.T + np.diag(np.exp(row[1]))
        return scipy.stats.multivariate_normal.logpdf(value, row[0], cov)

    return np.array([one(r, v) for r, v in zip(params, z, strict=True)])


def exemplars(part, params, z):
    """The mean of normals about the posterior's means at the exemplars."""
    outputs = part._posterior[0].net(part.exemplars).detach().numpy()
    scale = part.log_scale.exp().item()
    columns = scipy.stats.norm.logpdf(z[:, None], outputs[:, 0], scale).sum(-1)
    return scipy.special.logsumexp(columns, 1) - np.log(len(outputs))


WIDE = plane(100.0, 1001)  # the tails of t with 10 degrees of freedom
PRIORS = [
    Case(priors.LearnedNormal, location_scale(scipy.stats.norm)),
    Case(
        priors.Laplace, location_scale(scipy.stats.laplace),
        domain=plane(30.0, 1501), integral_tolerance=3e-4,
    ),
    Case(priors.StudentT, location_scale(scipy.stats.t), domain=WIDE),
    Case(
        priors.ExemplarPrior, exemplars,
        {
            "posterior": posterior(posteriors.MeanFieldNormal),
            "exemplars": lambda: torch.rand(6, *SHAPE),
        },
        fit_gap=0.3,  # all it learns is one scale
    ),
    Case(priors.ConditionalNormal, mean_field, {"context_dim": CONTEXT, "net": lambda: NET}),
]  # fmt: skip
POSTERIORS = [
    Case(posteriors.LowRankNormal, low_rank, {"rank": 1}),
    Case(posteriors.LowRankNormal, low_rank, {"rank": LATENT}, "full"),
]
