"""Bits a dimension of Frey faces under a discretised logistic, VampPrior and standard normal.

    PYROVAE_DATA=FOLDER PYTHONPATH=tests python -m reproduce.frey_faces --runs FOLDER
        # --epochs 2000 --warm-up 100

Published by Tomczak & Welling (2018), one level of latents. Their set-up: 1,565 faces to train on,
200 to validate and 200 to test, split at random; the networks and the training of
`reproduce.vamp_prior`; means of pixels in (0, 1), log-scales in [-4.5, 0]; 500 pseudo-inputs.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyrovae import VAE, data, likelihoods, posteriors, priors
from pyrovae.optimise import NormalisedAdam
from reproduce import tables
from reproduce.nets import GATED, Shape, clipped, logistic
from reproduce.vamp_prior import BATCH, LATENT, LR, PATIENCE, WARM_UP

EPOCHS, IMAGES, PARTICLES = 2000, 200, 5000
TOP = 255  # the highest level
START = (0.8, 0.01)  # of the pseudo-inputs, mean and standard deviation, in the authors' code
ROWS = {"standard-normal": 4.63, "vamp-prior": 4.57}


def pair(shape: Shape, vamp: bool) -> VAE:
    """Return the VAE over levels 0, ..., 255."""
    q = posteriors.MeanFieldNormal(shape, LATENT, clipped(GATED), input_scale=1 / TOP)
    p = likelihoods.DiscretizedLogistic(LATENT, shape, logistic(GATED), min_scale=1e-6)
    if not vamp:
        return VAE(priors.StandardNormal(LATENT), p, q)
    mean, sd = START
    prior = priors.VampPrior(
        LATENT, q, num_components=500, init=(mean * TOP, sd * TOP), clamp=(0.0, float(TOP))
    )
    return VAE(prior, p, q)


def optimizer(vae: VAE) -> Callable[..., torch.optim.Optimizer]:
    """Return what makes the optimizer: pseudo-inputs, which are levels, take steps of levels."""
    inputs = getattr(vae.prior, "pseudo_inputs", None)

    def normalised_adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": [p for p in parameters if p is not inputs]}]
        if inputs is not None:
            groups.append({"params": [inputs], "lr": TOP * lr})
        return NormalisedAdam(groups, lr)  # type: ignore[arg-type]

    return normalised_adam


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    made = tables.parser("Bits a dimension of Frey faces.", list(ROWS))
    made.add_argument("--epochs", type=int, default=EPOCHS, help="at the most")
    made.add_argument("--warm-up", type=int, default=WARM_UP, help="epochs in which beta rises")
    return tables.parsed(made, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate what is not done yet, and print the table."""
    options = parse(arguments)
    found = data.load("frey-faces", values="levels", seed=options.seed)
    test = found.test[: options.limit]
    bits = -1 / (math.prod(found.data_shape) * math.log(2))
    training, evaluation = {}, {}
    for name in options.rows:
        torch.manual_seed(options.seed)
        vae = pair(found.data_shape, name == "vamp-prior")
        setting = f"epochs-{options.epochs}-warm-up-{options.warm_up}-seed-{options.seed}"
        run = options.runs / "frey-faces" / f"{name}-{setting}"
        training[name] = tables.train(
            run, vae, found.train, objective=Trace_ELBO(), epochs=options.epochs,
            batch_size=BATCH, lr=LR, validation=found.validation, seed=options.seed,
            optimizer=optimizer(vae), beta=tables.warm_up(options.warm_up), patience=PATIENCE,
        )  # fmt: skip
        evaluation[name] = tables.evaluate(run, vae, test, options.num_particles)
    differs = tables.departures(
        {
            "epochs at the most": (options.epochs, EPOCHS), "warm-up": (options.warm_up, WARM_UP),
            "test images": (len(test), IMAGES), "draws": (options.num_particles, PARTICLES),
        },
        "another random split",
        "levels 0 and 255 take the tails",
        "biases start at 0 (published torch's own)",
    )  # fmt: skip
    lines = [
        tables.of_run(name, training[name], evaluation[name], (ROWS[name], None), bits, differs)
        for name in options.rows
    ]
    if len(lines) == 2:
        first, second = ROWS
        lines.append(tables.of_pairs(
            f"{first} less {second}", evaluation[first], evaluation[second],
            ROWS[first] - ROWS[second], bits, "paired over the test images",
        ))  # fmt: skip
    tables.show(
        "Frey faces: test -log p(x), bits a dimension",
        tables.setting(options, test),
        lines,
        options.json,
    )


if __name__ == "__main__":
    tables.command(main)
