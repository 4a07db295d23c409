"""Probabilistic PCA, fitted in closed form: a pair whose evidence is known."""

import math

import torch
from torch import Tensor, nn

from pyrovae.likelihoods import Fixed, Normal
from pyrovae.nets import mlp
from pyrovae.pairs.vae import VAE
from pyrovae.posteriors import FullRankNormal
from pyrovae.priors import StandardNormal


def ppca(x: Tensor, q: int) -> VAE:
    """Return the maximum-likelihood pPCA of data, with its exact posterior as the guide.

    p(x|z) = N(W z + mu, sigma^2 I),  W = U (Lambda - sigma^2 I)^(1/2),
    sigma^2 = the mean of the D - q smallest eigenvalues of the covariance,
    q(z|x) = N(M^-1 W' (x - mu), sigma^2 M^-1),  M = W'W + sigma^2 I.

    Args:
        x: data (N, *data_shape), of D numbers each.
        q: latent dimensions, 1 <= q < D.

    Returns:
        A VAE of x's dtype.

    Raises:
        ValueError: q out of its range, or data of rank q or less.

    Source: Tipping & Bishop (1999), eqs. 6 to 8 and section 3.2.
    """
    flat = x.flatten(1).double()
    n, d = flat.shape
    if not isinstance(q, int) or not 1 <= q < d:
        raise ValueError(f"expected q to be a whole number from 1 to {d - 1}; got {q!r}")
    mean = flat.mean(0)
    centred = flat - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / n)
    noise = float(values[: d - q].mean())
    if noise <= 0:
        raise ValueError(f"expected data of rank above q={q}; got none left to be noise")
    w = vectors[:, d - q :] * (values[d - q :] - noise).sqrt()
    m_inverse = torch.linalg.inv(w.T @ w + noise * torch.eye(q, dtype=torch.float64))
    tril = torch.linalg.cholesky(noise * m_inverse)
    shape = tuple(x.shape[1:])
    vae = VAE(
        StandardNormal(q),
        Normal(q, shape, mlp(hidden=()), variance=Fixed(math.sqrt(noise))),
        FullRankNormal(shape, q, mlp(hidden=())),
    ).to(x.dtype)
    below = tril[tuple(torch.tril_indices(q, q, -1))]
    project = m_inverse @ w.T
    _set(vae.likelihood.net.output, w, mean)
    weight = torch.cat([project, torch.zeros(q + len(below), d, dtype=torch.float64)])
    _set(
        vae.posterior.net.output, weight, torch.cat([-project @ mean, tril.diagonal().log(), below])
    )
    return vae


def _set(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
