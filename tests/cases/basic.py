"""The parts that came first."""

import numpy as np
import scipy.integrate
import scipy.special
import scipy.stats

from cases.base import LATENT, NET, SHAPE, Case, line, whole
from pyrovae import likelihoods, posteriors, priors
from pyrovae.distributions import seeded


def flat(a: np.ndarray) -> np.ndarray:
    return a.reshape(len(a), -1)


def expit(a: np.ndarray) -> np.ndarray:
    return scipy.special.expit(a)


def bernoulli(part, params, x):
    return flat(scipy.stats.bernoulli.logpmf(x, expit(params))).sum(1)


def binomial(part, params, x):
    return flat(scipy.stats.binom.logpmf(x, 16, expit(params))).sum(1)


def continuous_bernoulli(part, params, x):
    """The unnormalised density, normalised by quadrature."""

    def one(p, t):
        norm, _ = scipy.integrate.quad(lambda s: p**s * (1 - p) ** (1 - s), 0, 1, epsabs=1e-13)
        return t * np.log(p) + (1 - t) * np.log1p(-p) - np.log(norm)

    return flat(np.vectorize(one)(expit(params), x)).sum(1)


def normal(scale):
    def reference(part, params, x):
        loc = params[:, 0] if params.shape[1:] == (2, *SHAPE) else params
        return flat(scipy.stats.norm.logpdf(x, loc, scale(part, params))).sum(1)

    return reference


def mean_field(part, params, z):
    return scipy.stats.norm.logpdf(z, params[:, 0], np.exp(params[:, 1] / 2)).sum(1)


def cholesky(row):
    tril = np.diag(np.exp(row[LATENT : 2 * LATENT]))
    tril[np.tril_indices(LATENT, -1)] = row[2 * LATENT :]
    return tril


def full_rank(part, params, z):
    def one(row, value):
        cov = cholesky(row) @ cholesky(row).T
        return scipy.stats.multivariate_normal.logpdf(value, row[:LATENT], cov)

    return np.array([one(r, v) for r, v in zip(params, z, strict=True)])


def standard_normal(part, params, z):
    return scipy.stats.norm.logpdf(z).sum(1)


def mixture_of_normals(part, params, z):
    loc, scale = (t.detach().numpy() for t in (part.loc, part.log_scale.exp()))
    weights = part.logits.softmax(0).detach().numpy()
    parts = scipy.stats.norm.logpdf(z[:, None], loc, scale).sum(-1)
    return scipy.special.logsumexp(parts, 1, b=weights)


def vamp(reference):
    """The mean over pseudo-inputs of the posterior's own reference density."""

    def density(part, params, z):
        posterior = part._posterior[0]
        u = part.pseudo_inputs.clamp(*part.clamp) if part.clamp else part.pseudo_inputs
        outputs = posterior.net(u).detach().numpy()
        columns = [
            reference(posterior, outputs, np.repeat(row[None], len(outputs), 0)) for row in z
        ]
        return scipy.special.logsumexp(columns, 1) - np.log(len(outputs))

    return density


def posterior(cls, **options):
    """The same posterior every time, whatever the seed around it."""

    def make():
        with seeded(9):
            return cls(data_shape=SHAPE, latent_dim=LATENT, net=NET, **options)

    return make


FLOOR = 0.5 / 255
REALS = line(-20, 20, 80_001)
POSTERIORS = [
    Case(posteriors.MeanFieldNormal, mean_field),
    Case(posteriors.FullRankNormal, full_rank),
]
PRIORS = [
    Case(priors.StandardNormal, standard_normal),
    Case(priors.MixtureOfNormals, mixture_of_normals, {"num_components": 4}),
    Case(
        priors.VampPrior, vamp(mean_field),
        {
            "posterior": posterior(posteriors.MeanFieldNormal), "num_components": 6,
            "init": (0.5, 0.3),
        },
    ),
    Case(
        priors.VampPrior, vamp(full_rank),
        {
            "posterior": posterior(posteriors.FullRankNormal), "num_components": 6,
            "init": (0.5, 0.3), "clamp": None,
        },
        name="full-rank",
    ),
]  # fmt: skip
LIKELIHOODS = [
    Case(likelihoods.Bernoulli, bernoulli, domain=whole(1)),
    Case(
        likelihoods.ContinuousBernoulli, continuous_bernoulli,
        domain=line(0, 1), integral_tolerance=1e-6,
    ),
    Case(likelihoods.Binomial, binomial, domain=whole(16)),
    Case(
        likelihoods.Normal, normal(lambda part, params: 0.3),
        {"variance": likelihoods.Fixed(0.3)}, "fixed", REALS,
    ),
    Case(
        likelihoods.Normal, normal(lambda part, params: FLOOR + np.exp(part.s.item())),
        {"variance": likelihoods.Shared()}, "shared", REALS,
    ),
    Case(
        likelihoods.Normal, normal(lambda part, params: FLOOR + np.exp(part.s.detach().numpy())),
        {"variance": likelihoods.PerDimension()}, "per-dimension", REALS,
    ),
    Case(
        likelihoods.Normal, normal(lambda part, params: FLOOR + np.exp(params[:, 1])),
        {"variance": likelihoods.Predicted()}, "predicted", REALS,
    ),
]  # fmt: skip
