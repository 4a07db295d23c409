"""Pairs that are wrong, each in one way: what `check_pair` must name."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

D, LATENT = 5, 2
POSITIVE = dist.constraints.positive


def data(n=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, D, generator=generator)


def bits(n=6):
    return (data(n) > 0).float()


def plate(x):
    return pyro.plate("data", len(x))


def prior():
    return dist.Normal(torch.zeros(LATENT), 1.0).to_event(1)


def likelihood(z):
    return dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], D), 1.0).to_event(1)


def model(x):
    with plate(x):
        z = pyro.sample("z", prior())
        pyro.sample("x", likelihood(z), obs=x)


def posterior(x):
    scale = pyro.param("scale", torch.tensor(0.7), constraint=POSITIVE)
    weight = pyro.param("weight", 0.1 * torch.ones(D, LATENT))
    return dist.Normal(x @ weight, scale).to_event(1)


def guide(x):
    with plate(x):
        pyro.sample("z", posterior(x))


def missing_to_event():
    def broken(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), LATENT), 1.0))
            pyro.sample("x", likelihood(z), obs=x)

    return broken, guide, data()


def missing_plate():
    def broken(x):
        z = pyro.sample("z", prior().expand([len(x)]))
        pyro.sample("x", likelihood(z), obs=x)

    return broken, guide, data()


def extra_latent():
    def broken(x):
        with plate(x):
            pyro.sample("z", posterior(x))
            pyro.sample("u", dist.Normal(0.0, 1.0))

    return model, broken, data()


def missing_latent():
    def broken(x):
        with plate(x):
            pass

    return model, broken, data()


def global_latent():
    def with_global(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        model(x)

    def its_guide(x):
        pyro.sample("w", dist.Normal(pyro.param("w_loc", torch.tensor(0.0)), 1.0))
        guide(x)

    return with_global, its_guide, data()


def scaled_on_one_side():
    """A KL that is weighed down in the guide alone."""

    def broken(x):
        with poutine.scale(scale=0.1):
            guide(x)

    return model, broken, data()


def masked_on_one_side():
    def broken(x):
        with poutine.mask(mask=x[:, 0] > 0):
            model(x)

    return broken, guide, data()


def batch_centring():
    def broken(x):
        guide(x - x.mean(0))

    return model, broken, data()


def data_order():
    def broken(x):
        guide(x + torch.arange(len(x))[:, None] % 3)

    return model, broken, data()


def a_parameter_for_each_row():
    """Variational inference without amortisation, with parameters of six rows."""

    def broken(x):
        loc = pyro.param("loc", torch.zeros(6, LATENT))
        with plate(x):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return model, broken, data()


def no_rsample():
    def broken(x):
        loc = x @ pyro.param("weight", 0.1 * torch.ones(D, 3 * LATENT))
        parts = dist.Normal(loc.reshape(-1, 3, LATENT), 0.5).to_event(1)
        with plate(x):
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), parts))

    return model, broken, data()


def two_layers(x):
    with plate(x):
        top = pyro.sample("top", prior())
        z = pyro.sample("z", dist.Normal(1.5 * top, 0.5).to_event(1))
        pyro.sample("x", likelihood(z), obs=x)


def bottom_up():
    def broken(x):
        with plate(x):
            z = pyro.sample("z", posterior(x))
            loc = z * pyro.param("gain", torch.tensor(0.5))
            pyro.sample("top", dist.Normal(loc, 0.5).to_event(1))

    return two_layers, broken, data()


def top_down():
    """The same model with a guide in its order: right."""

    def right(x):
        with plate(x):
            top = pyro.sample("top", posterior(x))
            loc = top * pyro.param("gain", torch.tensor(0.5))
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    return two_layers, right, data()


def grey_pixels(validate=False):
    def broken(x):
        with plate(x):
            z = pyro.sample("z", prior())
            logits = z.sum(-1, keepdim=True).expand(-1, D)
            pixels = dist.Bernoulli(logits=logits, validate_args=validate).to_event(1)
            pyro.sample("x", pixels, obs=x)

    return broken, guide, data().sigmoid()


def named_modules(decoder, encoder, names=("decoder", "encoder")):
    def with_decoder(x):
        pyro.module(names[0], decoder)
        with plate(x):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def with_encoder(x):
        pyro.module(names[1], encoder)
        with plate(x):
            pyro.sample("z", dist.Normal(encoder(x), 0.7).to_event(1))

    return with_decoder, with_encoder


def networks():
    return torch.nn.Linear(LATENT, D), torch.nn.Linear(D, LATENT)


def shared_names():
    """The second pair of one notebook, under the names of the first."""
    first, second = named_modules(*networks()), named_modules(*networks())
    x = data()
    first[0](x), first[1](x)
    return *second, x


def shared_names_within():
    net = torch.nn.Linear(LATENT, LATENT)
    other = torch.nn.Linear(LATENT, LATENT)

    def with_net(x):
        pyro.module("net", net)
        with plate(x):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(net(z)), obs=x)

    def its_guide(x):
        pyro.module("net", other)
        with plate(x):
            pyro.sample("z", dist.Normal(other(x[:, :LATENT]), 0.7).to_event(1))

    return with_net, its_guide, data()


def scale_grows_with_the_batch():
    """The mini-batch's factor upside down: rows / size."""

    def broken(function):
        def scaled(x):
            with poutine.scale(scale=len(x) / 1000):
                function(x)

        return scaled

    return broken(model), broken(guide), data()


def plates_of_two_sizes():
    def broken(x):
        with pyro.plate("data", 1000, subsample_size=len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(z), obs=x)

    return broken, guide, data()


def likelihood_alone_is_scaled():
    """Beta depends on the batch size."""

    def broken(x):
        with plate(x):
            z = pyro.sample("z", prior())
            with poutine.scale(scale=1000 / len(x)):
                pyro.sample("x", likelihood(z), obs=x)

    return broken, guide, data()


def not_finite():
    """A Beta likelihood at 0: -inf, and on the support as Pyro has it."""

    def broken(x):
        with plate(x):
            z = pyro.sample("z", prior())
            rate = z.sum(-1, keepdim=True).exp().expand(-1, D)
            pyro.sample("x", dist.Beta(2.0 + rate, torch.tensor(2.0)).to_event(1), obs=x)

    x = data().sigmoid()
    x[3, 1] = 0.0
    return broken, guide, x


def not_a_number():
    def broken(x):
        guide((x - 0.1).sqrt())

    x = data().abs() + 0.2
    x[4, 2] = 0.0
    return model, broken, x


class OffByAConstant(dist.Normal):
    shift = 0.01

    def expand(self, batch_shape, _instance=None):
        new = super().expand(batch_shape, _instance)
        new.shift = self.shift
        return new

    def log_prob(self, value):
        return super().log_prob(value) + self.shift


def off_by_a_constant(shift):
    """The exact posterior of a 1-d pair, its log-density off by a constant."""

    def line(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None].expand(-1, D), 1.0).to_event(1), obs=x)

    def its_guide(x):
        bias = pyro.param("bias", torch.tensor(0.02))
        q = OffByAConstant(x.sum(-1) / (D + 1) + bias, torch.tensor((D + 1.0) ** -0.5))
        q.shift = shift
        with plate(x):
            pyro.sample("z", q)

    return line, its_guide, data()


def off_support():
    def positive(x):
        with plate(x):
            z = pyro.sample("z", dist.Exponential(torch.ones(LATENT)).to_event(1))
            pyro.sample("x", likelihood(z), obs=x)

    return positive, guide, data()


def crashes():
    def broken(x):
        raise TypeError

    return broken, guide, data()
