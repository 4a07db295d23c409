"""One row a case: the part, its domain, and an independent reference for its log-density."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from torch import Tensor, nn

from pyrovae import likelihoods, nets, posteriors, priors
from pyrovae.distributions import seeded

LATENT, SHAPE, ROWS = 2, (3, 2), 5
NET = nets.mlp(hidden=(7,), activation="tanh")

Reference = Callable[[nn.Module, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Case:
    """A part, and its log-density by other means: reference(part, net's output, value) -> (N,)."""

    cls: type[nn.Module]
    reference: Reference
    options: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def id(self) -> str:
        return self.cls.__name__ + (f"-{self.name}" if self.name else "")

    def build(self) -> nn.Module:
        common: dict[str, Any] = {"latent_dim": LATENT}
        if issubclass(self.cls, (likelihoods.Likelihood, posteriors.Posterior)):
            common |= {"data_shape": SHAPE, "net": NET}
        with seeded(5):
            options = {k: v() if callable(v) else v for k, v in self.options.items()}
            return self.cls(**common, **options)


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


def posterior(cls):
    return lambda: cls(data_shape=SHAPE, latent_dim=LATENT, net=NET)


FLOOR = 0.5 / 255
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
    Case(likelihoods.Bernoulli, bernoulli),
    Case(likelihoods.ContinuousBernoulli, continuous_bernoulli),
    Case(likelihoods.Binomial, binomial),
    Case(
        likelihoods.Normal, normal(lambda part, params: 0.3),
        {"variance": likelihoods.Fixed(0.3)}, "fixed",
    ),
    Case(
        likelihoods.Normal, normal(lambda part, params: FLOOR + np.exp(part.s.item())),
        {"variance": likelihoods.Shared()}, "shared",
    ),
    Case(
        likelihoods.Normal, normal(lambda part, params: FLOOR + np.exp(part.s.detach().numpy())),
        {"variance": likelihoods.PerDimension()}, "per-dimension",
    ),
    Case(
        likelihoods.Normal, normal(lambda part, params: FLOOR + np.exp(params[:, 1])),
        {"variance": likelihoods.Predicted()}, "predicted",
    ),
]  # fmt: skip
PARTS = [*PRIORS, *LIKELIHOODS, *POSTERIORS]


def inputs(part: nn.Module) -> tuple[Tensor, ...]:
    """What the part is called on, float64."""
    with seeded(7):
        if isinstance(part, likelihoods.Likelihood):
            return (torch.randn(ROWS, LATENT, dtype=torch.float64),)
        if isinstance(part, posteriors.Posterior):
            return (torch.rand(ROWS, *SHAPE, dtype=torch.float64),)
    return ()
