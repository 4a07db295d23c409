"""Time of one training step: pyrovae compiled and eager, Pyro, PyTorch by hand, NumPyro.

    pip install '.[dev,bench]'
    PYTHONPATH=tests python -m benchmarks.step            # --batch 128 512 2048, --threads 1
    PYTHONPATH=tests python -m benchmarks.step --model gated --png steps.png

A VAE with Bernoulli pixels, the closed KL where there is one, Adam at 1e-3; each contender trains a
model of its own on the same batches. A step is forward, backward and update; `fit` reads the loss
and the gradient's norm at every step, the others the loss once a round. Models: "mlp", 784-400-20;
"gated", gated 300-300-40 with a VampPrior of 500; "conv", channels 32 and 64, 20 latent numbers.

    compiled   the steps of `fit` where it compiles: loss and gradient in one graph, fused Adam
    eager      the steps of `fit(compile="never")`: Pyro's TraceMeanField_ELBO, fused Adam
    pyro       SVI.step with pyro.optim.Adam
    torch      by hand: closed KL, binary_cross_entropy_with_logits, fused Adam
    inductor   the same under torch.compile
    pythae     its VAE of the same networks, where it is installed, without its trainer
    numpyro    SVI.update under jax.jit, a step a call ("mlp" alone)
    scan       the same, a round's steps in one lax.scan
    gemm       the products of matrices alone, forward and backward, by torch ("mlp" alone)

Contenders take turns, a round of steps each, in one process: a ratio is that of two rounds side by
side. "first" is the time of the first round, with whatever was compiled in it.
"""

import argparse
import functools
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyro
import pyro.optim
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.evidence import HIDDEN, LATENT, PIXELS, spread, use
from pyrovae import VAE, build, priors
from pyrovae.distributions import mixed
from pyrovae.importance import find_modules
from pyrovae.optimise import Descent, adam
from pyrovae.training.trainee import Trainee

LR = 1e-3
MODELS: dict[str, dict[str, Any]] = {  # arguments of `build`
    "mlp": {"data_shape": (PIXELS,), "latent_dim": LATENT, "hidden": (HIDDEN,)},
    "gated": {
        "data_shape": (PIXELS,), "latent_dim": 40, "net": "gated-mlp", "hidden": (300, 300),
        "prior": "vamp-prior", "prior_options": {"num_components": 500},
    },
    "conv": {"data_shape": (28, 28), "latent_dim": 20, "net": "conv", "hidden": (32, 64)},
}  # fmt: skip


class Learner(NamedTuple):
    """A contender at work.

    Attributes:
        train: takes a step on every batch (steps, batch, ...), and returns a loss a datum.
        test: returns the mean -ELBO of data (N, ...), by one draw a datum.
        data: makes of batches what `train` takes.
    """

    train: Callable[[Any], float]
    test: Callable[[Tensor], float]
    data: Callable[[Tensor], Any] = lambda batches: batches


def task(batch: int, steps: int, model: str = "mlp") -> tuple[VAE, Tensor]:
    """Return an untrained pair, and batches (steps, batch, *data_shape)."""
    vae = build(**MODELS[model])
    generator = torch.Generator().manual_seed(1)
    shape = steps, batch, *vae.likelihood.data_shape
    return vae, (torch.rand(shape, generator=generator) < 0.2).float()


def elbo_of(vae: VAE) -> TraceMeanField_ELBO | Trace_ELBO:
    """Return Pyro's ELBO, with the closed KL where there is one."""
    closed = isinstance(vae.prior, priors.StandardNormal)
    return TraceMeanField_ELBO() if closed else Trace_ELBO()


def by_elbo(vae: VAE) -> Callable[[Tensor], float]:
    """Return a function of data that gives the mean -ELBO."""

    def test(x: Tensor) -> float:
        with torch.no_grad(), pyro.validation_enabled(False):
            return elbo_of(vae).loss(vae.model, vae.guide, x) / len(x)

    return test


def by_fit(vae: VAE, batches: Tensor, compile: str = "always") -> Learner:
    """The steps of `fit`, checks of the gradient and all."""
    objective = elbo_of(vae)
    pair = Trainee(vae.model, vae.guide, objective, find_modules(vae.model, vae.guide))
    parameters = list(vae.parameters())
    with pair.own_store():
        pair.compile(compile, parameters, (batches[0],), 10**9)
    descent = Descent(parameters, epochs=10**9, steps_per_epoch=len(batches), lr=LR)
    losses: list[float] = []

    def train(batches: Any) -> float:
        def steps(epoch: int, first: int) -> Iterator[tuple[Callable[[], float], float]]:
            for i, batch in enumerate(batches):
                noise = mixed(0, epoch, i)
                yield functools.partial(pair.step, (batch,), 0.0, 1.0, parameters, noise), 1.0

        with pair.own_store():
            descent.ended = False
            descent.run(steps, lambda epoch, loss, lr: bool(losses.append(loss)) or True)
        return losses[-1]

    return Learner(train, by_elbo(vae))


def by_pyro(vae: VAE, batches: Tensor) -> Learner:
    """`SVI.step`."""
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": LR}), elbo_of(vae))

    def train(batches: Any) -> float:
        with pyro.validation_enabled(False):
            for batch in batches:
                loss = svi.step(batch) / len(batch)
        return float(loss)

    return Learner(train, by_elbo(vae))


class ByHand(nn.Module):
    """The VAE in plain PyTorch: minus the ELBO a datum, of the pair's networks, no more of it."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.encoder, self.decoder = vae.posterior.net, vae.likelihood.net
        self.inputs = getattr(vae.prior, "pseudo_inputs", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of x (N, ...)."""
        mean, log_variance = self.encoder(x).unbind(-2)
        noise = torch.randn_like(mean)
        z = mean + (0.5 * log_variance).exp() * noise
        error = functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        if self.inputs is None:
            kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
            return (error + kl) / len(x)
        log_q = -0.5 * (noise**2 + log_variance).sum(-1)  # both without log 2 pi
        of, spread = self.encoder(self.inputs.clamp(0, 1)).unbind(-2)
        weight = (-spread).exp()  # |z - m|^2 / s^2 in products of matrices
        square = z**2 @ weight.T - 2 * z @ (weight * of).T + (weight * of**2).sum(-1)
        log_p = (-0.5 * (square + spread.sum(-1))).logsumexp(-1) - math.log(len(of))
        return (error + (log_q - log_p).sum()) / len(x)


def by_torch(vae: VAE, batches: Tensor, inductor: bool = False) -> Learner:
    """Plain PyTorch, perhaps under torch.compile."""
    module = ByHand(vae)
    loss_of: Any = torch.compile(module) if inductor else module
    optimizer = adam(module.parameters(), LR)

    def train(batches: Any) -> float:
        for batch in batches:
            optimizer.zero_grad()
            loss = loss_of(batch)
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    def test(x: Tensor) -> float:
        with torch.no_grad():
            return float(module(x))

    return Learner(train, test)


def by_pythae(vae: VAE, batches: Tensor) -> Learner:
    """pythae's VAE with the pair's networks, its loss and fused Adam, without its trainer."""
    from pythae.models import VAE as TheirVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = vae.posterior.net

        def forward(self, x: Tensor) -> Any:
            mean, log_variance = self.net(x).unbind(-2)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = vae.likelihood.net

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    shape, latent = tuple(vae.likelihood.data_shape), vae.likelihood.latent_dim
    config = VAEConfig(input_dim=shape, latent_dim=latent, reconstruction_loss="bce")
    model = TheirVAE(config, Encoder(), Decoder())
    optimizer = adam(model.parameters(), LR)

    def train(batches: Any) -> float:
        for batch in batches:
            optimizer.zero_grad()
            loss = model({"data": batch}).loss
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    def test(x: Tensor) -> float:
        with torch.no_grad():
            return float(model({"data": x}).loss)

    return Learner(train, test)


def by_products(vae: VAE, batches: Tensor) -> Learner:
    """The products of a 784-400-20 VAE's step, on matrices that are there already."""
    sizes = [(PIXELS, HIDDEN), (HIDDEN, 2 * LATENT), (LATENT, HIDDEN), (HIDDEN, PIXELS)]
    n = batches.shape[1]
    made = [[torch.randn(*shape) for shape in ((n, a), (b, a), (n, b))] for a, b in sizes]

    def train(batches: Any) -> float:
        with torch.no_grad():
            for _ in batches:
                for i, (x, weight, gradient) in enumerate(made):
                    functional.linear(x, weight)
                    gradient.T @ x
                    if i:  # no gradient goes to the data
                        gradient @ weight
        return math.nan

    return Learner(train, lambda x: math.nan)


def by_numpyro(vae: VAE, batches: Tensor, scan: bool = False) -> Learner:
    """NumPyro's SVI, a jitted step a call or a whole round in one scan."""
    import jax
    import numpyro
    from jax import numpy as jnp
    from numpyro import distributions as ndist
    from numpyro.infer import SVI as NumPyroSVI
    from numpyro.infer import TraceMeanField_ELBO as MeanField
    from numpyro.optim import Adam

    def network(name: str, x: Any, sizes: Sequence[int]) -> Any:
        for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
            start = jax.random.uniform(jax.random.key(i), (a, b), minval=-1, maxval=1) / a**0.5
            x = x @ numpyro.param(f"{name}{i}w", start) + numpyro.param(f"{name}{i}b", jnp.zeros(b))
            x = jax.nn.relu(x) if i < len(sizes) - 2 else x
        return x

    def model(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", ndist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
            logits = network("decoder", z, (LATENT, HIDDEN, PIXELS))
            numpyro.sample("x", ndist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            out = network("encoder", x, (PIXELS, HIDDEN, 2 * LATENT))
            mean, log_variance = jnp.split(out, 2, -1)
            numpyro.sample("z", ndist.Normal(mean, jnp.exp(0.5 * log_variance)).to_event(1))

    svi = NumPyroSVI(model, guide, Adam(LR), MeanField())
    state = svi.init(jax.random.key(0), jnp.asarray(batches[0].numpy()))
    update = jax.jit(svi.update)
    every = jax.jit(functools.partial(jax.lax.scan, svi.update))

    def train(batches: Any) -> float:
        nonlocal state
        if scan:
            state, losses = every(state, batches)
            return float(losses[-1]) / batches.shape[1]
        for batch in batches:
            state, loss = update(state, batch)
        return float(loss) / batches.shape[1]

    def test(x: Tensor) -> float:
        return float(svi.evaluate(state, jnp.asarray(x.numpy()))) / len(x)

    return Learner(train, test, lambda batches: jnp.asarray(batches.numpy()))


def contenders(model: str = "mlp") -> dict[str, Callable[[VAE, Tensor], Learner]]:
    """Return those that can run here; NumPyro is the extra `bench`, and left out without it."""
    found: dict[str, Callable[[VAE, Tensor], Learner]] = {
        "compiled": by_fit, "eager": functools.partial(by_fit, compile="never"),
        "pyro": by_pyro, "torch": by_torch, "inductor": functools.partial(by_torch, inductor=True),
    }  # fmt: skip
    if model != "gated" and importlib.util.find_spec("pythae"):
        found["pythae"] = by_pythae
    if model != "mlp":
        return found
    found["gemm"] = by_products
    if importlib.util.find_spec("numpyro"):
        return found | {"numpyro": by_numpyro, "scan": functools.partial(by_numpyro, scan=True)}
    print("numpyro is left out: it is not installed (pip install '.[bench]')", file=sys.stderr)
    return found


def measured(batch: int, rounds: int, steps: int, model: str = "mlp") -> dict[str, dict[str, Any]]:
    """Return the figures of each contender at a batch size, by name."""
    trains, first = {}, {}
    for name, make in contenders(model).items():
        start = time.perf_counter()
        vae, batches = task(batch, steps, model)
        learner = make(vae, batches)
        trains[name] = functools.partial(learner.train, learner.data(batches))
        trains[name]()
        first[name] = time.perf_counter() - start
    times: dict[str, list[float]] = {name: [] for name in trains}
    losses: dict[str, float] = {}
    for _ in range(rounds):
        for name, train in trains.items():
            start = time.perf_counter()
            losses[name] = train()
            times[name].append((time.perf_counter() - start) / steps)
    return {
        name: {
            "milliseconds": spread([1e3 * t for t in found]),
            "ratio_of_compiled": spread(
                [ours / t for ours, t in zip(times["compiled"], found, strict=True)]
            ),
            "first_seconds": first[name],
            "loss": losses[name],
        }
        for name, found in times.items()
    }


def draw(found: dict[int, dict[str, dict[str, Any]]], path: str) -> None:
    """Save the figure: milliseconds a step by batch size, with the range of the rounds."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in next(iter(found.values())):
        rows = [figures[name]["milliseconds"] for figures in found.values()]
        middle, low, high = (list(column) for column in zip(*rows, strict=True))
        reach = [[m - a for m, a in zip(middle, low, strict=True)],
                 [b - m for m, b in zip(middle, high, strict=True)]]  # fmt: skip
        axis.errorbar(list(found), middle, reach, fmt="o-", capsize=3, label=name)
    axis.set(xscale="log", yscale="log", xlabel="batch", ylabel="milliseconds a step")
    axis.set_xticks(list(found), map(str, found))
    axis.minorticks_off()
    axis.legend()
    figure.savefig(path, dpi=150)


def show(batch: int, figures: dict[str, dict[str, Any]]) -> None:
    """Print the table of `measured`."""
    print(f"batch {batch}")
    print(f"{'':10}{'ms a step':>24}{'compiled takes, of it':>26}{'first':>10}{'loss':>9}")
    for name, row in figures.items():
        (ms, low, high), (ratio, least, most) = row["milliseconds"], row["ratio_of_compiled"]
        print(f"{name:10}{ms:10.2f} ({low:.2f}, {high:.2f})".ljust(34), end="")
        print(f"{ratio:13.2f} ({least:.2f}, {most:.2f})".ljust(26), end="")
        print(f"{row['first_seconds']:8.1f} s{row['loss']:9.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="mlp")
    parser.add_argument("--png", help="where to save the figure")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    use(options.threads)
    found = {
        batch: measured(batch, options.rounds, options.steps, options.model)
        for batch in options.batch
    }
    if options.png:
        draw(found, options.png)
    if options.json:
        print(json.dumps(found))
        return
    print(
        f"{options.model}; torch {torch.__version__}, {options.threads} threads of {os.cpu_count()}"
    )
    for batch, figures in found.items():
        show(batch, figures)


if __name__ == "__main__":
    main()
