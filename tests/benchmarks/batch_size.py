"""How the objectives that couple a batch depend on its size.

    python tests/benchmarks/batch_size.py [--epochs 50] [--batches 200] [--sizes 8 32 128 512]

One VAE, 64-100-10 with binomial pixels, is trained by the ELBO on the handwritten digits that
scikit-learn carries. Its weights then stay, and the penalty of each objective, what it takes from
E log p(x|z), is measured on random batches of the training data, drawn without replacement, and on
all of them at once. The figures are means per datum, with their standard errors over batches, or
over draws of z where the batch is all the data.

    free-bits   sum_i max(2, KL_i), in nats
    capacity    |KL - C|, in nats; C is the KL of all data, so that only a batch's chance counts
    mmd         MMD^2 of q(z) and p(z), without its weight
    weighted    beta-TC's penalty at its default factors, beta = 6 and the others 1, in nats;
                I, TC and KL_i are its three terms before their factors
    stratified  the same by the other estimate of q(z)
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae import VAE, build, data, fit
from pyrovae.distributions import seeded
from pyrovae.importance import particles
from pyrovae.objectives import MMD, BetaTC, Capacity, FreeBits

Figures = dict[str, tuple[float, float]]  # by penalty: its mean and standard error
DRAWS = 5  # of z, where the batch is all the data
ESTIMATORS = ("weighted", "stratified")


def task(epochs: int) -> tuple[VAE, Tensor]:
    """Return a VAE trained on the digits, and the digits (N, 64), whole numbers."""
    x = data.load("digits", values="levels").train.flatten(1)
    vae = build(
        data_shape=(64,), latent_dim=10, hidden=(100,), seed=0, likelihood="binomial",
        likelihood_options={"total_count": 16},
    )  # fmt: skip
    fit(vae.model, vae.guide, x, epochs=epochs, batch_size=64, compile="never")
    return vae.eval(), x


def penalties(vae: VAE, batch: Tensor, capacity: float, num_data: int) -> dict[str, float]:
    """Return the mean penalty of each objective, and the terms of beta-TC, at one draw of z."""
    seed = int(torch.randint(2**31, ()))  # of all draws, so that log p(x|z) is the same
    with seeded(seed):
        found = particles(vae.model, vae.guide, batch)
    values = {}
    for name, objective in (
        ("free-bits", FreeBits(2.0)), ("capacity", Capacity(1.0, capacity)), ("mmd", MMD(1.0))
    ):  # fmt: skip
        with seeded(seed):
            value = objective.estimate(vae.model, vae.guide, batch).value
        values[name] = float((found.log_likelihood[0] - value).mean())
    for estimator in ESTIMATORS:
        objective = BetaTC(estimator=estimator, num_data=num_data)
        terms = [float(t.mean()) for t in objective.decomposed(found)]
        values[estimator] = sum(f * t for f, t in zip(objective.factors, terms, strict=True))
        values |= {f"{estimator} {n}": t for n, t in zip(("I", "TC", "KL_i"), terms, strict=True)}
    return values


@torch.no_grad()
def measured(vae: VAE, x: Tensor, sizes: Sequence[int], batches: int) -> dict[int, Figures]:
    """Return the figures by batch size, the last of them all the data."""
    capacity = float(kl_divergence(vae.encode(x), vae.prior()).mean())
    generator = torch.Generator().manual_seed(1234)
    found = {}
    with seeded(0):
        for size in [*sizes, len(x)]:
            rows = [
                penalties(
                    vae, x[torch.randperm(len(x), generator=generator)[:size]], capacity, len(x)
                )
                for _ in range(DRAWS if size == len(x) else batches)
            ]
            columns = {name: [row[name] for row in rows] for name in rows[0]}
            found[size] = {
                name: (statistics.mean(c), statistics.stdev(c) / math.sqrt(len(c)))
                for name, c in columns.items()
            }
    return found


def show(found: dict[int, Figures]) -> None:
    """Print the tables: penalties, and the terms of beta-TC."""
    penalty = ["free-bits", "capacity", "mmd", *ESTIMATORS]
    for names in (penalty, [n for n in found[next(iter(found))] if n not in penalty]):
        print(f"{'batch':>6}" + "".join(f"{name:>20}" for name in names))
        for size, figures in found.items():
            cells = (f"{mean:.4g} ± {error:.1g}" for mean, error in map(figures.get, names))
            print(f"{size:6}" + "".join(f"{cell:>20}" for cell in cells))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(description="Penalties that couple a batch, by its size.")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batches", type=int, default=200, help="of each size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32, 128, 512])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = measured(*task(options.epochs), options.sizes, options.batches)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
