"""Inference gaps of a VAE on MNIST: log p(x) > ELBO of the best diagonal q > ELBO of the guide.

    PYROVAE_DATA=FOLDER PYTHONPATH=tests python -m reproduce.gaps --runs FOLDER
        # --stages 8 --warm-up 400, --limit 200

Published by Cremer et al. (2018), whose order and signs are compared. Their set-up: binarised
MNIST, 784-200-200-50 with ELU and its mirror image, batch 100, Adam with epsilon 1e-4, 3^i epochs
at 1e-3 x 10^(-i/7), i = 0, ..., 7, beta rising over 400 epochs; evaluated on training images.
`--stages N` is the first N of these eight, (3^N - 1) / 2 epochs.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyrovae import VAE, build, data, evidence
from reproduce import tables

BATCH, LR = 100, 1e-3
STAGES, WARM_UP = 8, 400  # as published
CHAINS, TEMPERATURES = 16, 100
ROWS = {  # as recalled
    "log p(x)": -89.8,
    "best diagonal q": -91.2,
    "guide": -92.6,
    "approximation gap": 1.4,
    "amortization gap": 1.4,
}
FIGURES = dict(zip(ROWS, ("log_evidence", "best_elbo", "elbo", "approximation", "amortization"),
                   strict=True))  # fmt: skip


def adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Return Adam with the paper's constants."""
    return torch.optim.Adam(parameters, lr=lr, eps=1e-4, fused=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    made = tables.parser(
        "Inference gaps of a VAE on MNIST.", list(ROWS), limit=200, num_particles=1000
    )
    made.add_argument("--stages", type=int, choices=range(1, STAGES + 1), default=STAGES,
                      metavar="N", help="the first N of 8")  # fmt: skip
    made.add_argument("--warm-up", type=int, default=WARM_UP, help="epochs in which beta rises")
    made.add_argument("--chains", type=int, default=CHAINS, help="of AIS")
    made.add_argument("--temperatures", type=int, default=TEMPERATURES, help="of AIS")
    return tables.parsed(made, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate what is not done yet, and print the table."""
    options = parse(arguments)
    train = data.load("mnist", binarize="static").train
    stages = tables.Stages(options.stages)
    vae: VAE = build(
        data_shape=tuple(train.shape[1:]), latent_dim=50, hidden=(200, 200), seed=options.seed,
        net_options={"activation": "elu"},
    )  # fmt: skip
    setting = f"stages-{options.stages}-warm-up-{options.warm_up}-seed-{options.seed}"
    run = options.runs / "gaps" / setting
    training = tables.train(
        run, vae, train, objective=Trace_ELBO(), epochs=stages.epochs, batch_size=BATCH, lr=LR,
        seed=options.seed, optimizer=adam, schedule=stages, beta=tables.warm_up(options.warm_up),
    )  # fmt: skip
    x = train[: options.limit]
    annealing = f"{options.chains}x{options.temperatures}"
    name = f"gaps-{len(x)}x{options.num_particles}-ais-{annealing}"

    def measured() -> tables.Record:
        progress = sys.stderr.isatty()
        log_p = evidence.ais(
            vae.model, vae.guide, x, num_chains=options.chains,
            num_temperatures=options.temperatures,
            resume=run / f"ais-{len(x)}x{annealing}.safetensors", progress=progress,
        )  # fmt: skip
        found = evidence.gaps(
            vae.model, vae.guide, x, log_evidence=log_p, num_particles=options.num_particles,
            resume=run / f"{name}.safetensors", progress=progress,
        )  # fmt: skip
        return {key: getattr(found, key).tolist() for key in FIGURES.values()}

    found = tables.once(run / f"{name}.json", measured)
    differs = tables.departures(
        {"stages": (options.stages, STAGES), "warm-up": (options.warm_up, WARM_UP)},
        "published figures as recalled",
        f"log p(x) by AIS from the guide, {annealing.replace('x', ' chains x ')} temperatures",
        "a binarisation of our own",
        "one Adam for all stages",
    )
    lines = [
        tables.Line(
            row, *tables.mean(found[FIGURES[row]]), ROWS[row], None, training["epochs"],
            training["seconds"], found["seconds"], differs,
        )
        for row in options.rows
    ]  # fmt: skip
    figure = {row: tables.mean(found[key])[0] for row, key in FIGURES.items()}
    ordered = figure["log p(x)"] > figure["best diagonal q"] > figure["guide"]
    told = tables.setting(options, x) | {"order as published": "yes" if ordered else "no"}
    title = "MNIST, training images: log p(x), ELBOs and gaps, nats"
    tables.show(title, told, lines, options.json)


if __name__ == "__main__":
    tables.command(main)
