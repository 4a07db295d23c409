"""Latents on the sphere."""

import math

import numpy as np
import scipy.special
import torch

from cases.base import Case
from pyrovae import posteriors, priors


def circle(n=20_001):
    """The trapezoid rule on the unit circle, exact up to its order."""

    def points():
        angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
        weights = torch.full((n,), 2 * math.pi / n, dtype=torch.float64)
        return torch.stack([angle.cos(), angle.sin()], -1), weights

    return points


def von_mises_fisher(direction, raw, z):
    """k^v exp(k m'z) / ((2 pi)^(v + 1) I_v(k)), v = d/2 - 1, by scipy's Bessel functions."""
    m = direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    k, v = np.logaddexp(0, raw), z.shape[-1] / 2 - 1
    log_bessel = np.log(scipy.special.ive(v, k)) + k
    return k * (m * z).sum(-1) + v * np.log(k) - (v + 1) * np.log(2 * np.pi) - log_bessel


def uniform(part, params, z):
    d = z.shape[-1]
    return np.full(len(z), scipy.special.gammaln(d / 2) - np.log(2) - d / 2 * np.log(np.pi))


def learnt(part, params, z):
    direction, raw = (t.detach().numpy() for t in (part.direction, part.raw_concentration))
    return von_mises_fisher(direction, raw, z)


def of_net(part, params, z):
    return von_mises_fisher(params[:, :-1], params[:, -1], z)


PRIORS = [
    Case(priors.VonMisesFisher, uniform, domain=circle()),
    Case(priors.VonMisesFisher, learnt, {"learnt": True}, "learnt", circle()),
]
POSTERIORS = [Case(posteriors.VonMisesFisher, of_net, domain=circle())]
