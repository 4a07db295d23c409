"""Probabilistic PCA of MNIST: the closed form of Tipping & Bishop (1999) at q = 2, 10, 50.

    PYROVAE_DATA=FOLDER PYTHONPATH=tests python -m reproduce.ppca       # --q 2 10

x = pixel / 255, fitted on all 60,000 training images in float64. The guide is the exact posterior,
so that one draw of z gives log p(x) = log p(x, z) - log q(z|x); two are drawn, and the table says
by how much they differ. The reference values come of the eigenvalues of the covariance alone.
"""

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from pyrovae import VAE, data, log_weights
from pyrovae.pairs import ppca
from reproduce import tables

REFERENCE = {  # sigma^2, mean log p(x) of training and of test images
    2: (0.05609580, 12.4277, 14.3601),
    10: (0.03486734, 182.1547, 186.0241),
    50: (0.01259605, 507.9054, 517.6033),
}
DIGITS = (8, 4, 4)
ROWS = 5000  # of x that are evaluated at once


def log_evidence(vae: VAE, x: Tensor) -> Tensor:
    """Return log p(x) by two draws of z, (2, N)."""
    with torch.no_grad():
        parts = [log_weights(vae.model, vae.guide, rows, num_particles=2) for rows in x.split(ROWS)]
    return torch.cat(parts, 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, evaluate and print the table."""
    parser = argparse.ArgumentParser(description="Probabilistic PCA of MNIST, in closed form.")
    parser.add_argument("--q", type=int, nargs="+", choices=REFERENCE, default=list(REFERENCE))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found = data.load("mnist", validation=0, dtype=torch.float64)
    lines, apart = [], 0.0
    for q in options.q:
        start = time.perf_counter()
        vae = ppca(found.train, q)
        fitted = time.perf_counter()
        scale = vae.likelihood(torch.zeros(1, q, dtype=torch.float64)).base_dist.scale
        train, test = (log_evidence(vae, x) for x in (found.train, found.test))
        figures = {
            "sigma^2": float(scale.square().mean()),
            "train": float(train.mean()),
            "test": float(test.mean()),
        }
        apart = max(apart, *(float((t[0] - t[1]).abs().max()) for t in (train, test)))
        times = fitted - start, time.perf_counter() - fitted
        columns = zip(figures.items(), REFERENCE[q], DIGITS, strict=True)
        lines += [
            tables.Line(
                f"q = {q}, {name}", ours, 0.0, reference, None, None, *times,
                digits=digits,
            )
            for (name, ours), reference, digits in columns
        ]  # fmt: skip
    setting = {
        "images": len(found.train), "threads": options.threads,
        "largest difference of two draws": apart,
    }  # fmt: skip
    tables.show("MNIST, pPCA: sigma^2, and mean log p(x) in nats", setting, lines, options.json)


if __name__ == "__main__":
    tables.command(main)
