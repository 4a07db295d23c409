"""IWAE at k = 1, 5, 50 on MNIST, and DReG beside it at 50.

    PYROVAE_DATA=FOLDER PYTHONPATH=tests python -m reproduce.iwae --runs FOLDER
        # --stages 8, --rows iwae-1 iwae-5, --limit 1000
        # --cosine 200: nearer the end in fewer epochs

Published by Burda et al. (2016), table 1, one stochastic layer; DReG by Tucker et al. (2019), who
give curves, of which the sign is compared. Their set-up: all 60,000 images, binarised afresh in
every batch of 20; 784-200-200-50 with tanh and its mirror image, Glorot weights, the output's bias
the logit of the training mean; Adam (0.99, 0.999), its epsilon 1e-4 of gradients that are sums over
the batch; 3^i epochs at 1e-3 x 10^(-i/7), i = 0, ..., 7. `--stages N` is the first N of these, that
is (3^N - 1) / 2 epochs; `--cosine N` has N epochs instead, and 1e-3 falls to 0 by a cosine.
"""

import argparse
from collections.abc import Iterable, Sequence

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyrovae import VAE, build, data
from pyrovae.objectives import IWAE, DReG
from pyrovae.optimise import Schedule, cosine
from reproduce import tables

BATCH, LR = 20, 1e-3
STAGES, IMAGES, PARTICLES = 8, 10_000, 5000  # as published
ROWS: dict[str, tuple[type[IWAE] | type[DReG], int, float | None]] = {  # and k, published
    "iwae-1": (IWAE, 1, 86.76),
    "iwae-5": (IWAE, 5, 85.54),
    "iwae-50": (IWAE, 50, 84.78),
    "dreg-50": (DReG, 50, None),
}
DIFFERENCES = {
    "iwae-1 less iwae-5": ("iwae-1", "iwae-5"),
    "iwae-5 less iwae-50": ("iwae-5", "iwae-50"),
    "iwae-50 less dreg-50": ("iwae-50", "dreg-50"),
}


def adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Return Adam with the paper's constants."""
    epsilon = 1e-4 / BATCH  # our gradients are means over the batch, theirs are sums
    return torch.optim.Adam(parameters, lr=lr, betas=(0.99, 0.999), eps=epsilon, fused=True)


def pair(train: Tensor, seed: int) -> VAE:
    """Return the VAE at its initial weights."""
    vae: VAE = build(
        data_shape=tuple(train.shape[1:]), latent_dim=50, hidden=(200, 200), seed=seed,
        net_options={"activation": "tanh", "weight_init": "glorot-uniform"},
    )  # fmt: skip
    vae.likelihood.start_at_mean(train)
    return vae


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    made = tables.parser("IWAE at k = 1, 5, 50 on MNIST, and DReG at 50.", list(ROWS))
    made.add_argument("--stages", type=int, choices=range(1, STAGES + 1), default=STAGES,
                      metavar="N", help="the first N of 8")  # fmt: skip
    made.add_argument("--cosine", type=int, metavar="N", help="N epochs of a cosine, not stages")
    return tables.parsed(made, arguments)


def schedule_of(options: argparse.Namespace) -> tuple[str, int, Schedule]:
    """Return what the schedule of the learning rate is called, its epochs, and itself."""
    if options.cosine is not None:
        return f"cosine-{options.cosine}", options.cosine, cosine
    return f"stages-{options.stages}", tables.epochs_of(options), tables.Stages(options.stages)


def sign(a: str, b: str, published: float | None) -> str:
    """Return what is said below a difference."""
    known = "" if published is not None else f"; published: its sign is +, {b} is the better"
    return f"paired over the test images{known}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate what is not done yet, and print the table."""
    options = parse(arguments)
    found = data.load("mnist", binarize="dynamic", validation=0)
    test = found.test[: options.limit]
    setting, epochs, schedule = schedule_of(options)
    training, evaluation = {}, {}
    for name in options.rows:
        objective, k, _ = ROWS[name]
        vae = pair(found.train, options.seed)
        run = options.runs / "iwae" / f"{name}-{setting}-seed-{options.seed}"
        made: ELBO = objective(k)
        training[name] = tables.train(
            run, vae, found.train, objective=made, epochs=epochs, batch_size=BATCH,
            lr=LR, seed=options.seed, optimizer=adam, schedule=schedule, transform=found.transform,
        )  # fmt: skip
        evaluation[name] = tables.evaluate(run, vae, test, options.num_particles)
    differs = tables.departures(
        {
            "schedule": (setting, f"stages-{STAGES}"), "test images": (len(test), IMAGES),
            "draws": (options.num_particles, PARTICLES),
        },
        "Adam's second moments start at 0 (published code at 1)",
        "test images binarised once (published code afresh)",
    )  # fmt: skip
    lines = [
        tables.of_run(
            name, training[name], evaluation[name], (ROWS[name][2], None), differs=differs
        )
        for name in options.rows
    ]
    for name, (a, b) in DIFFERENCES.items():
        if a in evaluation and b in evaluation:
            first, second = ROWS[a][2], ROWS[b][2]
            published = None if first is None or second is None else first - second
            lines.append(tables.of_pairs(
                name, evaluation[a], evaluation[b], published, differs=sign(a, b, published)
            ))  # fmt: skip
    tables.show("MNIST: test -log p(x), nats", tables.setting(options, test), lines, options.json)


if __name__ == "__main__":
    tables.command(main)
