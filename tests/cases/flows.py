"""Normalising flows, and mixtures with pathwise gradients."""

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats

from cases.base import CONTEXT, LATENT, Case, inputs, plane
from cases.basic import posterior, vamp
from cases.normals import low_rank
from pyrovae import posteriors, priors
from pyrovae.distributions.bijections import MIN_SLOPE


def array(t):
    return t.detach().double().numpy()


def network(layers, x):
    """zuko's networks: linear maps, masked or not, with x sigmoid(x) between them."""
    linear = [layer for layer in layers if hasattr(layer, "weight")]
    for i, layer in enumerate(linear):
        weight = array(layer.weight) * (array(layer.mask) if hasattr(layer, "mask") else 1)
        x = weight @ x + array(layer.bias)
        x = x * scipy.special.expit(x) if i < len(linear) - 1 else x
    return x


def soft(a, slope=1e-3):
    return a / (1 + abs(a / np.log(slope)))


def affine(params):
    shift, log_scale = params[0], soft(params[1])
    return lambda x: (np.exp(log_scale) * x + shift, log_scale)


def spline(params):
    """Durkan et al. (2019), eqs. 4 and 5, on [-5, 5]."""
    bins = (len(params) + 1) // 3
    widths, heights, log_slopes = np.split(params, [bins, 2 * bins])
    x, y = (
        np.concatenate([[-5], 10 * np.cumsum(scipy.special.softmax(soft(a, 1e-3**0.5))) - 5])
        for a in (widths, heights)
    )
    slopes = np.exp(np.concatenate([[0], soft(log_slopes), [0]]))

    def transform(value):
        if not -5 < value < 5:
            return value, 0.0
        k = np.searchsorted(x, value) - 1
        s = (y[k + 1] - y[k]) / (x[k + 1] - x[k])
        xi = (value - x[k]) / (x[k + 1] - x[k])
        below = s + (slopes[k + 1] + slopes[k] - 2 * s) * xi * (1 - xi)
        above = (y[k + 1] - y[k]) * (s * xi**2 + slopes[k] * xi * (1 - xi))
        slope = slopes[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + slopes[k] * (1 - xi) ** 2
        return y[k] + above / below, np.log(s**2 * slope / below**2)

    return transform


def autoregressive(univariate, lazy, x, h):
    """(y, log det) of one of zuko's autoregressive transformations, and the map of each x_i."""
    params = network(lazy.hyper, np.concatenate([x, h])).reshape(len(x), -1)
    return [univariate(p) for p in params]


def forward(univariate):
    """Prior: z -> u through the flow's networks, one value at a time."""

    def one(part, z, c):
        total = 0.0
        for lazy in part.network.lazy.transforms:
            maps = autoregressive(univariate, lazy, z, c)
            z, log_det = zip(*(f(x) for f, x in zip(maps, z, strict=True)), strict=True)
            z, total = np.array(z), total + sum(log_det)
        return total + scipy.stats.norm.logpdf(z).sum()

    return one


def coupling(part, z, c):
    total = 0.0
    for lazy in part.network.lazy.transforms:
        kept = lazy.mask.numpy()
        given = np.concatenate([z[kept], c])
        params = network(lazy.hyper, given).reshape((~kept).sum(), 2)
        z = z.copy()
        z[~kept] = np.exp(soft(params[:, 1])) * z[~kept] + params[:, 0]
        total += soft(params[:, 1]).sum()
    return total + scipy.stats.norm.logpdf(z).sum()


def flow_prior(one):
    def reference(part, params, z):
        c = inputs(part)[0].numpy() if part.context_dim else np.zeros((len(z), 0))
        return np.array([one(part, *row) for row in zip(z, c, strict=True)])

    return reference


def inverse(univariate, standard):
    """Posterior: z -> u by root finding, one coordinate after the other."""

    def one(part, row, z):
        loc, scale, h = row[:LATENT], np.exp(row[LATENT : 2 * LATENT] / 2), row[2 * LATENT :]
        log_det = np.log(scale).sum() if standard else 0.0
        z = (z - loc) / scale if standard else z
        for lazy in reversed(part.network.lazy.transforms):
            u = np.zeros(LATENT)
            for _ in range(LATENT):
                maps = autoregressive(univariate, lazy, u, h)
                u = np.array(
                    [root(lambda v, f=f: f(v)[0], t) for f, t in zip(maps, z, strict=True)]
                )
            log_det += sum(f(v)[1] for f, v in zip(maps, u, strict=True))
            z = u
        mean, sd = (0, 1) if standard else (loc, scale)
        return scipy.stats.norm.logpdf(z, mean, sd).sum() - log_det

    return by_row(one)


def root(f, target):
    return scipy.optimize.brentq(lambda v: f(v) - target, -1e3, 1e3, xtol=1e-14)


def by_row(one):
    def reference(part, params, z):
        return np.array([one(part, row, value) for row, value in zip(params, z, strict=True)])

    return reference


def reflections(vectors):
    """H_1 H_2 ... as one matrix."""
    product = np.eye(vectors.shape[1])
    for v in vectors:
        product = product @ (np.eye(len(v)) - 2 * np.outer(v, v) / (v @ v))
    return product


def householder(part, row, z):
    loc, variance = row[:LATENT], np.exp(row[LATENT : 2 * LATENT])
    turn = reflections(row[2 * LATENT :].reshape(-1, LATENT)[::-1])
    return scipy.stats.multivariate_normal.logpdf(z, turn @ loc, turn * variance @ turn.T)


def planar(part, row, z):
    loc, scale, h = row[:LATENT], np.exp(row[LATENT : 2 * LATENT] / 2), row[2 * LATENT :]
    log_det = 0.0
    for step in h.reshape(part.flow.steps, -1)[::-1]:
        w, a, b = step[:LATENT], step[LATENT : 2 * LATENT], step[-1]
        moved = np.log(np.exp(1 - MIN_SLOPE) - 1)
        least = MIN_SLOPE - 1 + np.logaddexp(0, w @ a + moved)
        a = a + (least - w @ a) * w / (w @ w)
        along = root(lambda t, a=a, w=w, b=b: t + w @ a * np.tanh(t + b), w @ z)
        z = z - a * np.tanh(along + b)
        log_det += np.log(1 + w @ a / np.cosh(along + b) ** 2)
    return scipy.stats.norm.logpdf(z, loc, scale).sum() - log_det


def sylvester(part, row, z):
    loc, scale, h = row[:LATENT], np.exp(row[LATENT : 2 * LATENT] / 2), row[2 * LATENT :]
    m = part.flow.columns
    log_det = 0.0
    for step in h.reshape(part.flow.steps, -1)[::-1]:
        vectors, square, diagonal, b = np.split(step, np.cumsum([m * LATENT, m * m, m]))
        q = reflections(vectors.reshape(m, LATENT))[:, :m]
        square = square.reshape(m, m)
        below = np.sqrt(1 - MIN_SLOPE)
        r = np.triu(square, 1) + below * np.diag(np.tanh(np.diag(square)))
        s = np.triu(square.T, 1) + below * np.diag(np.tanh(diagonal))

        def off(u, target=z, q=q, r=r, s=s, b=b):
            return u + q @ r @ np.tanh(s @ q.T @ u + b) - target

        u = scipy.optimize.fsolve(off, z, xtol=1e-12)
        slopes = 1 - np.tanh(s @ q.T @ u + b) ** 2
        log_det += np.linalg.slogdet(np.eye(LATENT) + q @ r @ np.diag(slopes) @ s @ q.T)[1]
        z = u
    return scipy.stats.norm.logpdf(z, loc, scale).sum() - log_det


def mixture(part, params, z):
    loc, scale = params[..., :LATENT] + array(part.start), np.exp(params[..., LATENT:-1] / 2)
    weights = scipy.special.softmax(params[..., -1], -1)
    parts = scipy.stats.norm.logpdf(z[:, None], loc, scale).sum(-1)
    return scipy.special.logsumexp(parts, 1, b=weights)


def pseudo_inputs(cls, reference, name, options=None, **case):
    return Case(
        priors.VampPrior, vamp(reference),
        {"posterior": posterior(cls, **options or {}), "num_components": 6, "init": (0.5, 0.3)},
        name, **case,
    )  # fmt: skip


SMALL = {"transforms": 2, "width": 6}
GRID = plane(14, 281)
KINKS = {"domain": plane(6, 301), "integral_tolerance": 1e-4}  # splines have kinks
PRIOR_FLOWS = {
    "spline": (priors.NeuralSpline(**SMALL, bins=3), forward(spline), KINKS),
    "autoregressive": (priors.MaskedAutoregressive(**SMALL), forward(affine), {"domain": GRID}),
    "coupling": (priors.RealNVP(**SMALL), coupling, {"domain": GRID}),
}
POSTERIOR_FLOWS = {
    "autoregressive": (
        posteriors.InverseAutoregressive(**SMALL, context=3), inverse(affine, False), {},
    ),
    "spline": (
        posteriors.NeuralSpline(transforms=1, width=6, bins=3, context=3),
        inverse(spline, True), KINKS,
    ),
    "householder": (posteriors.Householder(steps=3), by_row(householder), {}),
    "planar": (posteriors.Planar(steps=3), by_row(planar), {}),
    "sylvester": (posteriors.Sylvester(steps=2, columns=2), by_row(sylvester), {}),
    "one-column": (posteriors.Sylvester(steps=2, columns=1), by_row(sylvester), {}),
}  # fmt: skip
PRIORS = [
    *(
        Case(
            priors.FlowPrior, flow_prior(one), {"flow": flow, "context_dim": context},
            f"{name}{'-given-context' * bool(context)}", **case,
        )
        for name, (flow, one, case) in PRIOR_FLOWS.items() for context in (0, CONTEXT)
    ),
    pseudo_inputs(posteriors.LowRankNormal, low_rank, "low-rank", {"rank": 1}),
    pseudo_inputs(posteriors.MixtureOfNormals, mixture, "mixture", {"num_components": 3}),
    pseudo_inputs(
        posteriors.FlowPosterior, by_row(planar), "planar",
        {"flow": posteriors.Planar(steps=3)}, domain=GRID,
    ),
]  # fmt: skip
POSTERIORS = [
    *(
        Case(posteriors.FlowPosterior, reference, {"flow": flow}, name, **{"domain": GRID} | case)
        for name, (flow, reference, case) in POSTERIOR_FLOWS.items()
    ),
    Case(posteriors.MixtureOfNormals, mixture, {"num_components": 3}, domain=GRID),
]
