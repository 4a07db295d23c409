"""VampPrior against the standard normal on dynamic MNIST, one level of latents and two.

    PYROVAE_DATA=FOLDER PYTHONPATH=tests python -m reproduce.vamp_prior --runs FOLDER
        # --epochs 1000 --warm-up 100, --rows standard-normal vamp-prior, --limit 1000
        # --epochs 300 --warm-up 30 --lr 1e-3 --schedule cosine: nearer the end in fewer epochs

Published by Norouzi, Fleet & Norouzi (2020), who ran the code of Tomczak & Welling (2018) again.
Their set-up: 50,000 images, binarised afresh in every batch of 100, 10,000 to validate and 10,000
to test, binarised once; gated layers of 300, 40 latents a level, log-variances in [-6, 2],
He-normal weights; 500 pseudo-inputs clamped to [0, 1], from N(0.05, 0.01^2); the ELBO by one draw
of z; Adam on normalised gradients, lr 5e-4; beta rises over 100 epochs, and training ends 50 epochs
after the best validation ELBO since, some 1,000 in all.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from pyro.infer import Trace_ELBO

from pyrovae import VAE, data, likelihoods, posteriors, priors
from pyrovae.optimise import NormalisedAdam, cosine
from pyrovae.pairs import HierarchicalVAE, TopDown
from reproduce import tables
from reproduce.nets import GATED, Shape, clipped, joined

LATENT, BATCH, LR, PATIENCE = 40, 100, 5e-4, 50
EPOCHS, WARM_UP, IMAGES, PARTICLES = 1000, 100, 10_000, 5000  # as published
SCHEDULES = {"constant": None, "cosine": cosine}
ROWS: dict[str, tuple[int, bool, tuple[float, float]]] = {  # levels, VampPrior?, published
    "standard-normal": (1, False, (84.45, 0.12)),
    "vamp-prior": (1, True, (82.43, 0.06)),
    "hvae-standard-normal": (2, False, (82.39, 0.11)),
    "hvae-vamp-prior": (2, True, (81.56, 0.09)),
}
DIFFERENCES = {
    "standard-normal less vamp-prior": ("standard-normal", "vamp-prior"),
    "hvae-standard-normal less hvae-vamp-prior": ("hvae-standard-normal", "hvae-vamp-prior"),
}


def prior(vamp: bool, q: Any) -> Any:
    """Return the prior of the top level, whose posterior is q."""
    return (
        priors.VampPrior(LATENT, q, num_components=500) if vamp else priors.StandardNormal(LATENT)
    )


def one_level(shape: Shape, vamp: bool) -> VAE:
    """Return the VAE."""
    q = posteriors.MeanFieldNormal(shape, LATENT, clipped(GATED))
    return VAE(prior(vamp, q), likelihoods.Bernoulli(LATENT, shape, GATED), q)


def two_levels(shape: Shape, vamp: bool) -> HierarchicalVAE:
    """Return the HVAE: q(z_2|x) q(z_1|x, z_2) and p(z_2) p(z_1|z_2) p(x|z_1, z_2)."""
    both = joined(LATENT)
    q1 = posteriors.MeanFieldNormal(shape, LATENT, clipped(both), context_dim=LATENT)
    q2 = posteriors.MeanFieldNormal(shape, LATENT, clipped(GATED))
    return HierarchicalVAE(
        prior(vamp, q2),
        [priors.ConditionalNormal(LATENT, LATENT, clipped(GATED))],
        likelihoods.Bernoulli(LATENT, shape, both, context_dim=LATENT),
        TopDown([q1, q2]),
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    made = tables.parser("VampPrior and the standard normal on dynamic MNIST.", list(ROWS))
    made.add_argument("--epochs", type=int, default=EPOCHS, help="at the most")
    made.add_argument("--warm-up", type=int, default=WARM_UP, help="epochs in which beta rises")
    made.add_argument("--lr", type=float, default=LR, help="learning rate, at the beginning")
    made.add_argument("--schedule", choices=list(SCHEDULES), default="constant", help="of it")
    return tables.parsed(made, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate what is not done yet, and print the table."""
    options = parse(arguments)
    found = data.load("mnist", binarize="dynamic")
    test = found.test[: options.limit]
    training, evaluation = {}, {}
    for name in options.rows:
        levels, vamp, _ = ROWS[name]
        torch.manual_seed(options.seed)
        pair = (one_level if levels == 1 else two_levels)(found.data_shape, vamp)
        setting = f"epochs-{options.epochs}-warm-up-{options.warm_up}-seed-{options.seed}"
        if (options.lr, options.schedule) != (LR, "constant"):
            setting += f"-lr-{options.lr:g}-{options.schedule}"
        run = options.runs / "dynamic-mnist" / f"{name}-{setting}"
        training[name] = tables.train(
            run, pair, found.train, objective=Trace_ELBO(), epochs=options.epochs,
            batch_size=BATCH, lr=options.lr, schedule=SCHEDULES[options.schedule],
            validation=found.validation, seed=options.seed,
            optimizer=NormalisedAdam, beta=tables.warm_up(options.warm_up), patience=PATIENCE,
            transform=found.transform,
        )  # fmt: skip
        evaluation[name] = tables.evaluate(run, pair, test, options.num_particles)
    differs = tables.departures(
        {
            "epochs at the most": (options.epochs, EPOCHS), "warm-up": (options.warm_up, WARM_UP),
            "learning rate": (f"{options.lr:g}, {options.schedule}", f"{LR:g}, constant"),
            "test images": (len(test), IMAGES), "draws": (options.num_particles, PARTICLES),
        },
        "biases start at 0 (published torch's own)",
    )  # fmt: skip
    lines = [
        tables.of_run(name, training[name], evaluation[name], ROWS[name][2], differs=differs)
        for name in options.rows
    ]
    lines += [
        tables.of_pairs(
            name, evaluation[a], evaluation[b], ROWS[a][2][0] - ROWS[b][2][0],
            differs="paired over the test images",
        )
        for name, (a, b) in DIFFERENCES.items()
        if a in evaluation and b in evaluation
    ]  # fmt: skip
    tables.show(
        "Dynamic MNIST: test -log p(x), nats", tables.setting(options, test), lines, options.json
    )


if __name__ == "__main__":
    tables.command(main)
