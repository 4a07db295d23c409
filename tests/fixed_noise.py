"""Pairs whose draws are functions of the row alone: sums over data can be compared exactly."""

import contextlib
import math

import pyro
import pyro.distributions as dist
import torch
from torch import nn

D, LATENT, N = 4, 2, 20


class Given(dist.Normal):
    """N(loc, scale) whose draws are loc + scale (noise + k/3 - 1/2), k the number of the draw."""

    def __init__(self, loc, scale, noise):
        super().__init__(loc, scale)
        self.noise = noise

    def rsample(self, sample_shape=()):
        noise = numbered(self.noise, sample_shape) if sample_shape else self.noise
        return self.loc + self.scale * noise

    def expand(self, batch_shape, _instance=None):
        loc, scale = (t.expand(batch_shape) for t in (self.loc, self.scale))
        new = len(batch_shape) - self.noise.dim()
        noise = numbered(self.noise, batch_shape[:new]) if new else self.noise.expand(batch_shape)
        return Given(loc, scale, noise)


def numbered(noise, shape):
    """The noise of so many draws, (*shape, *noise.shape)."""
    number = torch.arange(math.prod(shape), dtype=noise.dtype).reshape(shape)
    return noise + number.reshape(*shape, *[1] * noise.dim()) / 3 - 0.5


class Noisy(nn.Module):
    """p(z) p(x|z) with q(z|x) whose noise is the context; the plate and scale as asked."""

    def __init__(self, size=None, scale=None, mask=None):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.decoder, self.encoder = nn.Linear(LATENT, D), nn.Linear(D, 2 * LATENT)
        self.loc = nn.Parameter(torch.zeros(LATENT))
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) / 2
        self.double()
        self.size, self.scale, self.mask = size, scale, mask

    def plate(self, x):
        return pyro.plate("data", self.size or len(x), subsample_size=len(x))

    def around(self, x):
        stack = contextlib.ExitStack()
        if self.scale is not None:
            stack.enter_context(pyro.poutine.scale(scale=self.scale))
        if self.mask is not None:
            stack.enter_context(pyro.poutine.mask(mask=self.mask(x)))
        return stack

    def model(self, x, noise):
        pyro.module("noisy", self)
        with self.around(x), self.plate(x):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x, noise):
        pyro.module("noisy", self)
        with self.around(x), self.plate(x):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", Given(loc, log_scale.exp(), noise).to_event(1))


def batch():
    generator = torch.Generator().manual_seed(1234)
    x = (torch.rand(N, D, generator=generator) > 0.5).double()
    return x, torch.randn(N, LATENT, generator=generator).double()


def evaluated(pair, objective, x, *c):
    """The loss, and the gradient of every parameter in one vector."""
    pyro.clear_param_store()
    pair.zero_grad()
    loss = objective.loss_and_grads(pair.model, pair.guide, x, *c)
    zero = torch.zeros(1, dtype=torch.float64)
    return loss, torch.cat(
        [zero.expand(p.numel()) if p.grad is None else p.grad.flatten() for p in pair.parameters()]
    )
