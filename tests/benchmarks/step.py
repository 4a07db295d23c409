"""Time of one training step: pyrovae compiled and eager, Pyro, PyTorch by hand, NumPyro.

    pip install '.[dev,bench]'
    PYTHONPATH=tests python -m benchmarks.step            # --batch 128 512 2048, --threads 1

A 784-400-20 VAE with Bernoulli pixels, the closed KL, Adam at 1e-3; each contender trains a model
of its own on the same batches. A step is forward, backward and update; the loss is read once a
round.

    compiled   the step of `fit` where it compiles: loss and gradient in one graph, fused Adam
    eager      the step of `fit(compile="never")`: Pyro's TraceMeanField_ELBO, fused Adam
    pyro       SVI.step with pyro.optim.Adam
    torch      by hand: closed KL, binary_cross_entropy_with_logits, fused Adam
    inductor   the same under torch.compile
    numpyro    SVI.update under jax.jit, a step a call
    scan       the same, a round's steps in one lax.scan

Contenders take turns, a round of steps each, in one process: a ratio is that of two rounds side by
side. "first" is the time of the first round, with whatever was compiled in it.
"""

import argparse
import functools
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.optim
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.evidence import HIDDEN, LATENT, PIXELS, spread, use
from pyrovae import VAE, build
from pyrovae.objectives import with_beta
from pyrovae.optimise import adam
from pyrovae.training.compiled import CompiledStep

LR = 1e-3
Round = Callable[[], float]  # trains on every batch, and returns the last loss a datum


def task(batch: int, steps: int) -> tuple[VAE, Tensor]:
    """Return an untrained pair, and batches (steps, batch, pixels)."""
    vae = build(data_shape=(PIXELS,), latent_dim=LATENT, hidden=(HIDDEN,))
    generator = torch.Generator().manual_seed(1)
    return vae, (torch.rand(steps, batch, PIXELS, generator=generator) < 0.2).float()


def compiled(vae: VAE, batches: Tensor) -> Round:
    """The step of `fit`, compiled."""
    objective = TraceMeanField_ELBO()

    def loss(beta: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        model, guide = with_beta(vae.model, beta), with_beta(vae.guide, beta)
        return objective.differentiable_loss(model, guide, *batch) / len(batch[0])

    parameters = list(vae.parameters())
    step, optimizer = CompiledStep(loss, objective, parameters, (batches[0],)), adam(parameters, LR)

    def train() -> float:
        for batch in batches:
            value = step(1.0, (batch,))
            optimizer.step()
        return float(value)

    return train


def eager(vae: VAE, batches: Tensor) -> Round:
    """The step of `fit`, eager."""
    objective, optimizer = TraceMeanField_ELBO(), adam(vae.parameters(), LR)

    def train() -> float:
        with pyro.validation_enabled(False):
            for batch in batches:
                optimizer.zero_grad()
                loss = objective.loss_and_grads(vae.model, vae.guide, batch) / len(batch)
                for p in vae.parameters():
                    p.grad.div_(len(batch))
                optimizer.step()
        return float(loss)

    return train


def by_pyro(vae: VAE, batches: Tensor) -> Round:
    """`SVI.step`."""
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": LR}), TraceMeanField_ELBO())

    def train() -> float:
        with pyro.validation_enabled(False):
            for batch in batches:
                loss = svi.step(batch) / len(batch)
        return float(loss)

    return train


class ByHand(nn.Module):
    """The VAE in plain PyTorch: minus the ELBO a datum."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of x (N, pixels)."""
        mean, log_variance = self.encoder(x).chunk(2, -1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        error = functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        return (error + kl) / len(x)


def by_torch(vae: VAE, batches: Tensor, inductor: bool = False) -> Round:
    """Plain PyTorch, perhaps under torch.compile."""
    module = ByHand()
    loss_of: Any = torch.compile(module) if inductor else module
    optimizer = adam(module.parameters(), LR)

    def train() -> float:
        for batch in batches:
            optimizer.zero_grad()
            loss = loss_of(batch)
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    return train


def by_numpyro(vae: VAE, batches: Tensor, scan: bool = False) -> Round:
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
    data = jnp.asarray(batches.numpy())
    state = svi.init(jax.random.key(0), data[0])
    update = jax.jit(svi.update)
    every = jax.jit(functools.partial(jax.lax.scan, svi.update))

    def train() -> float:
        nonlocal state
        if scan:
            state, losses = every(state, data)
            return float(losses[-1]) / data.shape[1]
        for batch in data:
            state, loss = update(state, batch)
        return float(loss) / data.shape[1]

    return train


def contenders() -> dict[str, Callable[[VAE, Tensor], Round]]:
    """Return those that can run here; NumPyro is the extra `bench`, and left out without it."""
    found: dict[str, Callable[[VAE, Tensor], Round]] = {
        "compiled": compiled, "eager": eager, "pyro": by_pyro, "torch": by_torch,
        "inductor": functools.partial(by_torch, inductor=True),
    }  # fmt: skip
    if importlib.util.find_spec("numpyro"):
        return found | {"numpyro": by_numpyro, "scan": functools.partial(by_numpyro, scan=True)}
    print("numpyro is left out: it is not installed (pip install '.[bench]')", file=sys.stderr)
    return found


def measured(batch: int, rounds: int, steps: int) -> dict[str, dict[str, Any]]:
    """Return the figures of each contender at a batch size, by name."""
    trains, first = {}, {}
    for name, make in contenders().items():
        start = time.perf_counter()
        trains[name] = make(*task(batch, steps))
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
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    use(options.threads)
    found = {batch: measured(batch, options.rounds, options.steps) for batch in options.batch}
    if options.json:
        print(json.dumps(found))
        return
    print(f"torch {torch.__version__}, {options.threads} threads of {os.cpu_count()}")
    for batch, figures in found.items():
        show(batch, figures)


if __name__ == "__main__":
    main()
