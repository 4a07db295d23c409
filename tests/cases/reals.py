"""Likelihoods of real numbers."""

import numpy as np
import scipy.stats

from cases.base import Case, line, plane
from cases.basic import FLOOR, REALS, flat
from pyrovae import likelihoods


def shared(part, params):
    return params, FLOOR + np.exp(part.s.item())


def fixed(part, params):
    return params, part.scale.value


def per_dimension(part, params):
    return params, FLOOR + np.exp(part.s.detach().numpy())


def predicted(part, params):
    return params[:, 0], FLOOR + np.exp(params[:, 1])


def location_scale(law, of=shared):
    """scipy's density `law(x, loc, scale, part)`, the location and scale from `of`."""

    def reference(part, params, x):
        return flat(law(x, *of(part, params), part)).sum(1)

    return reference


def laplace(x, loc, scale, part):
    return scipy.stats.laplace.logpdf(x, loc, scale)


def student_t(x, loc, scale, part):
    return scipy.stats.t.logpdf(x, part.log_df.exp().item(), loc, scale)


def log_normal(x, loc, scale, part):
    return scipy.stats.lognorm.logpdf(x, scale, scale=np.exp(loc))


def full_covariance(part, params, x):
    """The covariance matrix written out, a row at a time."""

    def one(row, value):
        loc, log_scale, *columns = row.reshape(len(row), -1)
        w = np.array(columns).T
        cov = w @ w.T + np.diag((FLOOR + np.exp(log_scale)) ** 2)
        return scipy.stats.multivariate_normal.logpdf(value.ravel(), loc, cov)

    return np.array([one(r, v) for r, v in zip(params, x, strict=True)])


PREDICTED, PER_DIMENSION = likelihoods.Predicted(), likelihoods.PerDimension()
LIKELIHOODS = [
    Case(
        likelihoods.Laplace, location_scale(laplace),
        domain=line(-30, 30, 120_001), integral_tolerance=1e-6,
    ),
    Case(
        likelihoods.Laplace, location_scale(laplace, predicted), {"scale": PREDICTED}, "predicted",
        domain=line(-60, 60, 240_001), integral_tolerance=1e-6,
    ),
    Case(likelihoods.StudentT, location_scale(student_t), domain=line(-80, 80, 80_001)),
    Case(
        likelihoods.StudentT, location_scale(student_t, per_dimension), {"scale": PER_DIMENSION},
        "per-dimension", domain=line(-80, 80, 80_001),
    ),
    Case(likelihoods.LogNormal, location_scale(log_normal), domain=line(1e-9, 600, 300_001)),
    Case(
        likelihoods.LogNormal, location_scale(log_normal, fixed),
        {"scale": likelihoods.Fixed(0.3)}, "fixed", line(1e-9, 30, 60_001),
    ),
    Case(
        likelihoods.FullCovarianceNormal, full_covariance, {"rank": 2}, domain=plane(),
        unit=(2,),
    ),
    Case(
        likelihoods.FullCovarianceNormal, full_covariance, {"rank": 1}, "rank-1", REALS,
    ),
]  # fmt: skip
