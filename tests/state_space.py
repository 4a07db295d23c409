"""A linear-Gaussian state-space model: the Kalman filter in numpy, and its pair with exact guide.

z_1 ~ N(0, I),  z_t = A z_{t-1} + b + N(0, diag q),  x_t = C z_t + d + N(0, r^2 I).
"""

import math

import numpy as np
import pyro.distributions as dist
import torch
from torch import nn

from pyrovae import likelihoods, nets, priors
from pyrovae.pairs import LinearTransition, SequenceVAE

A = np.array([[0.8, 0.3], [-0.4, 0.7]])
B = np.array([0.2, -0.1])
Q = np.array([0.3, 0.15])
C = np.array([[1.0, 0.2], [-0.5, 1.0], [0.7, -0.9]])
SHIFT = np.array([0.5, -1.0, 0.0])
NOISE = 0.6
LATENT, OBSERVED = 2, 3
TRUTH = (A, B, Q, C, SHIFT, NOISE)


SMALL = (  # of one latent dimension, and two of data
    np.array([[0.9]]), np.array([0.1]), np.array([0.2]),
    np.array([[1.0], [-0.8]]), np.array([0.5, -1.0]), NOISE,
)  # fmt: skip


def simulate(n, steps, seed=1234, parameters=TRUTH):
    """Series (n, steps, D)."""
    a, b, q, c, shift, noise = parameters
    rng = np.random.default_rng(seed)
    z, found = rng.standard_normal((n, len(q))), []
    for t in range(steps):
        if t:
            z = z @ a.T + b + np.sqrt(q) * rng.standard_normal(z.shape)
        found.append(z @ c.T + shift + noise * rng.standard_normal((n, len(c))))
    return torch.from_numpy(np.stack(found, 1))


def kalman(x, parameters=TRUTH):
    """log p(x) of one series (T, 3), by the filter's predictions; entries that are NaN are missing.

    Also the mean of the state after the last step, given x.
    """
    a, b, q, c, shift, noise = parameters
    mean, covariance, total = np.zeros(len(q)), np.eye(len(q)), 0.0
    for t, row in enumerate(np.asarray(x)):
        if t:
            mean, covariance = a @ mean + b, a @ covariance @ a.T + np.diag(q)
        seen = ~np.isnan(row)
        h = c[seen]
        error = row[seen] - h @ mean - shift[seen]
        s = h @ covariance @ h.T + noise**2 * np.eye(seen.sum())
        gain = np.linalg.solve(s, h @ covariance).T
        sign, log_det = np.linalg.slogdet(s)
        total -= 0.5 * (error @ np.linalg.solve(s, error) + log_det + len(s) * math.log(2 * np.pi))
        mean, covariance = mean + gain @ error, covariance - gain @ h @ covariance
    return total, mean


def filtered(x, parameters=TRUTH):
    """log p(x) of each series, (N,)."""
    return torch.tensor([kalman(row, parameters)[0] for row in x], dtype=torch.float64)


def joint(steps):
    """Mean and covariance of a whole series as one vector, with no recursion over the data."""
    powers = [np.linalg.matrix_power(A, k) for k in range(steps)]
    mean_z = [sum((powers[k] @ B for k in range(t)), np.zeros(LATENT)) for t in range(steps)]
    covariance = np.zeros((steps, LATENT, steps, LATENT))
    for t in range(steps):
        for u in range(steps):
            covariance[t, :, u] = powers[t] @ powers[u].T + sum(
                (powers[t - k] @ np.diag(Q) @ powers[u - k].T for k in range(1, min(t, u) + 1)),
                np.zeros((LATENT, LATENT)),
            )
    mean = np.stack([C @ m + SHIFT for m in mean_z])
    seen = np.einsum("ik,tkul,jl->tiuj", C, covariance, C)
    d = steps * OBSERVED
    return mean.reshape(d), seen.reshape(d, d) + NOISE**2 * np.eye(d)


class Smoother(nn.Module):
    """What x_t, ..., x_T say of z_t: exp(eta'z - z'L z / 2), by the information filter backward.

    h_t holds eta (2,), L (4,) and whether t is the first step (1,).
    """

    missing = True

    def __init__(self, steps):
        super().__init__()
        self.data_shape = (steps, OBSERVED)

    def forward(self, x, *lengths):
        a, b, c, shift = (torch.from_numpy(m) for m in (A, B, C, SHIFT))
        w = torch.diag(1 / torch.from_numpy(Q))
        n, steps = x.shape[:2]
        seen = ~x.isnan()
        if lengths:
            seen = seen & (torch.arange(steps) < lengths[0][:, None])[..., None]
        error = torch.where(seen, x - shift, 0.0)
        eta, info, found = torch.zeros(n, LATENT).double(), torch.zeros(n, 2, 2).double(), []
        for t in reversed(range(steps)):
            if t < steps - 1:
                s = torch.linalg.inv(w + info)
                new = a.T @ (w - w @ s @ w)
                eta = torch.einsum("ni,nij->nj", eta, s @ w) @ a - new @ b
                info = new @ a
            eta = eta + error[:, t] @ c / NOISE**2
            info = info + torch.einsum("nd,di,dj->nij", seen[:, t].double(), c, c) / NOISE**2
            first = torch.full((n, 1), float(t == 0)).double()
            found.append(torch.cat([eta, info.flatten(1), first], -1))
        return torch.stack(found[::-1], 1)


class Conditional(nn.Module):
    """q(z_t|z_{t-1}, x_t, ..., x_T), of full rank."""

    latent_dim = LATENT

    def forward(self, z, h):
        a, b = torch.from_numpy(A), torch.from_numpy(B)
        w, eye = torch.diag(1 / torch.from_numpy(Q)), torch.eye(LATENT).double()
        eta, info, first = h.split([2, 4, 1], -1)
        first = first.bool()
        before = torch.where(first[..., None], eye, w)
        pull = torch.where(first, 0.0, (z @ a.T + b) @ w)
        covariance = torch.linalg.inv(before + info.unflatten(-1, (2, 2)))
        loc = (covariance @ (pull + eta).unsqueeze(-1)).squeeze(-1)
        root = torch.linalg.cholesky(covariance)
        return dist.MultivariateNormal(loc, scale_tril=root)


def exact_pair(steps, encoder=None, wrap=lambda likelihood: likelihood):
    """The pair with the true parameters and the exact guide, in float64."""
    likelihood = likelihoods.Normal(
        LATENT, (OBSERVED,), nets.mlp(hidden=()), variance=likelihoods.Fixed(NOISE)
    )
    transition = LinearTransition(LATENT)
    pair = SequenceVAE(
        priors.StandardNormal(LATENT), transition, wrap(likelihood),
        Smoother(steps) if encoder is None else encoder, Conditional(),
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter, value in (
            (transition.linear.weight, A), (transition.linear.bias, B),
            (transition.log_variance, np.log(Q)),
            (likelihood.net.output.weight, C), (likelihood.net.output.bias, SHIFT),
        ):  # fmt: skip
            parameter.copy_(torch.from_numpy(value))
    return pair


def parameters_of(pair):
    """The parameters that the filter takes, of a pair with a linear transition and likelihood."""
    transition, likelihood = pair.transition, pair.likelihood.likelihood
    output = likelihood.net.output
    with torch.no_grad():
        noise = float(likelihood.variance.scale(output.bias, likelihood.s))
    tensors = (
        transition.linear.weight, transition.linear.bias, transition.log_variance.exp(),
        output.weight, output.bias,
    )  # fmt: skip
    return (*(t.detach().double().numpy() for t in tensors), noise)
