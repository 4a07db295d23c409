"""Pixels that depend on one another, by loops over offsets in numpy."""

import itertools

import numpy as np
import scipy.special
import torch

from cases.base import Case
from pyrovae import likelihoods


def every_image(shape, levels):
    """All images of a shape, one row each."""
    pixels = int(np.prod(shape))
    images = torch.tensor(list(itertools.product(range(levels), repeat=pixels)))
    return images.double().reshape(-1, *shape)


def images(shape, levels):
    def points():
        x = every_image(shape, levels)
        return x, torch.ones(len(x), dtype=torch.float64)

    return points


def shifted(h, dr, dc):
    """h[..., r + dr, c + dc], zero outside the image."""
    rows, columns = h.shape[-2:]
    out = np.zeros_like(h)
    for r, c in itertools.product(range(rows), range(columns)):
        if 0 <= r + dr < rows and 0 <= c + dc < columns:
            out[..., r, c] = h[..., r + dr, c + dc]
    return out


def over(layer, h, offsets):
    """sum over offsets (dr, dc) of W[dr, dc] h[r + dr, c + dc], plus the bias."""
    weight, bias = layer.weight.detach().numpy(), layer.bias
    total = sum(
        np.einsum("oi,nirc->norc", weight[:, :, *divmod(k, weight.shape[3])], shifted(h, *offset))
        for k, offset in enumerate(offsets)
    )
    return total if bias is None else total + bias.detach().numpy()[:, None, None]


def gated(a):
    one, two = np.split(a, 2, 1)
    return np.tanh(one) * scipy.special.expit(two)


def stack_logits(net, x, s):
    """Logits (N, levels, H, W) of images x (N, H, W) and conditions s, by the paper."""
    features, offset = s[:, : net.channels], s[:, net.channels :]
    here = [(0, 0)]
    v = h = (2 * x / (net.num_levels - 1) - 1)[:, None]
    for i, layer in enumerate(net.layers):
        m = layer.vertical.kernel_size[1] // 2
        rows = [(dr, dc) for dr in range(-m, int(i > 0)) for dc in range(-m, m + 1)]
        left = [(0, dc) for dc in range(-m, int(i > 0))]
        a = over(layer.vertical, v, rows) + over(layer.condition, features, here)
        b = over(layer.horizontal, h, left) + over(layer.link, a, here)
        v, change = gated(a), over(layer.output, gated(b), here)
        h = h + change if i else change
    hidden = np.maximum(over(net.logits[1], np.maximum(h, 0), here), 0)
    return over(net.logits[3], hidden, here) + offset


def pixel_cnn(part, params, x):
    log_p = scipy.special.log_softmax(stack_logits(part.pixel_net, x, params), 1)
    return np.take_along_axis(log_p, x[:, None].astype(int), 1).sum((1, 2, 3))


LIKELIHOODS = [
    Case(
        likelihoods.PixelCNN, pixel_cnn, {"channels": 3, "layers": 2, "kernel_size": 3},
        domain=images((2, 2), 2), unit=(2, 2), mean=None,
    ),
    Case(
        likelihoods.PixelCNN, pixel_cnn, {"num_levels": 3, "channels": 2, "layers": 1}, "levels",
        domain=images((2, 2, 1), 3), unit=(2, 2, 1), mean=None,
    ),
]  # fmt: skip
