"""Pairs as a user writes them in a notebook: two functions, no base class."""

import pyro
import pyro.distributions as dist
import torch

D, LATENT = 5, 2


def networks(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(LATENT + 1, D), torch.nn.Linear(D + 1, 2 * LATENT)


def conditional(decoder, encoder, size=None):
    """A conditional VAE with context c (N, 1); `cat([z, c])` needs rows, not particles."""

    def plate(x):
        return pyro.plate("data", size or len(x), subsample_size=len(x))

    def model(x, c):
        pyro.module("decoder", decoder)
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            logits = decoder(torch.cat([z, c], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x, c):
        pyro.module("encoder", encoder)
        with plate(x):
            loc, log_scale = encoder(torch.cat([x, c], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def batch(n=6):
    generator = torch.Generator().manual_seed(3)
    x = (torch.rand(n, D, generator=generator) > 0.5).float()
    return x, torch.randn(n, 1, generator=generator)


def no_event(x):
    """A prior without `.to_event`."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), LATENT), 1.0))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)


def plain_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(-1, D), 1.0).to_event(1), obs=x)


def plain_guide(x):
    scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
    weight = pyro.param("weight", torch.zeros(D, LATENT))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ weight, scale).to_event(1))


def empty_guide(x):
    with pyro.plate("data", len(x)):
        pass


def outside_model(x):
    """A latent outside the plate."""
    z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z.sum().expand(len(x), D), 1.0).to_event(1), obs=x)


def outside_guide(x):
    loc = pyro.param("loc", torch.zeros(LATENT))
    pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def extra_guide(x):
    plain_guide(x)
    with pyro.plate("more", len(x)):
        pyro.sample("u", dist.Normal(0.0, 1.0))


def scalar_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def masked_model(x):
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x[:, 0] > 0):
        z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(-1, D), 1.0).to_event(1), obs=x)
