"""What costs grow with: exponents of time in N, K, D, latent numbers and parameters.

    PYTHONPATH=tests python -m benchmarks.cost             # --rounds 5 --threads 1 --png costs.png

Each row doubles one size and keeps the rest; the rows take turns, round by round. The exponent is
the slope of log time over log size by least squares, +- its standard error over the rounds.

    data          seconds of one epoch of `fit` on N data, batch 128, eager
    draws         seconds of `evidence.iwae` on 20 data with K draws
    dimensions    milliseconds of an eager step, x of D numbers, 16 hidden units
    latent        the same, of so many latent numbers
    parameters    the same, by hidden units: parameters of a 784-h-20 VAE
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pyro.infer import TraceMeanField_ELBO

from benchmarks.evidence import use
from pyrovae import build, evidence, fit
from pyrovae.importance import find_modules
from pyrovae.training.trainee import Trainee

Task = Callable[[], Any]


def bits(n: int, d: int) -> torch.Tensor:
    """Return binary data (n, d)."""
    return (torch.rand(n, d, generator=torch.Generator().manual_seed(1234)) < 0.2).float()


def epoch(n: int) -> tuple[Task, float]:
    """An epoch on n data, and the size."""
    vae, x = build(data_shape=(64,), latent_dim=8, hidden=(64,)), bits(n, 64)
    return lambda: fit(vae.model, vae.guide, x, epochs=1, compile="never"), n


def draws(k: int) -> tuple[Task, float]:
    """log p(x) of 20 data by k draws."""
    vae, x = build(data_shape=(784,), latent_dim=20, hidden=(400,)), bits(20, 784)
    return lambda: evidence.iwae(vae.model, vae.guide, x, num_particles=k), k


def step(d: int, latent: int, hidden: int, batch: int = 512, steps: int = 3) -> tuple[Task, float]:
    """Some eager steps, and the number of parameters."""
    vae, x = build(data_shape=(d,), latent_dim=latent, hidden=(hidden,)), bits(batch, d)
    pair = Trainee(vae.model, vae.guide, TraceMeanField_ELBO(), find_modules(vae.model))
    parameters = list(vae.parameters())

    def take() -> None:
        with pair.own_store():
            for i in range(steps):
                pair.step((x,), 0.0, 1.0, parameters, i)

    return take, sum(p.numel() for p in parameters)


TASKS: dict[str, dict[int, Callable[[], tuple[Task, float]]]] = {
    "data": {n: lambda n=n: epoch(n) for n in (4096, 8192, 16384, 32768)},
    "draws": {k: lambda k=k: draws(k) for k in (500, 1000, 2000, 4000, 8000)},
    "dimensions": {d: lambda d=d: (step(d, 8, 16)[0], d) for d in (2048, 4096, 8192, 16384)},
    "latent": {m: lambda m=m: (step(64, m, 16)[0], m) for m in (1024, 2048, 4096, 8192)},
    "parameters": {h: lambda h=h: step(784, 20, h) for h in (256, 512, 1024, 2048)},
}


def exponent(sizes: Sequence[float], times: np.ndarray) -> tuple[float, float]:
    """Return the slope of log time over log size, and its standard error over the rounds.

    Args:
        sizes: (S,).
        times: (rounds, S).
    """
    x = np.log(np.asarray(sizes))
    slopes = [np.polyfit(x, np.log(row), 1)[0] for row in times]
    error = np.std(slopes, ddof=1) / np.sqrt(len(slopes)) if len(slopes) > 1 else np.nan
    return float(np.mean(slopes)), float(error)


def measured(rounds: int, tasks: dict[str, Any] = TASKS) -> dict[str, dict[str, Any]]:
    """Return sizes, median seconds and the exponent of each task."""
    made = {name: [make() for make in rows.values()] for name, rows in tasks.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in made}
    for turn in range(rounds + 1):  # the first warms up
        for name, rows in made.items():
            row = []
            for work, _ in rows:
                start = time.perf_counter()
                work()
                row.append(time.perf_counter() - start)
            if turn:
                times[name].append(row)
    found = {}
    for name, rows in made.items():
        sizes = [size for _, size in rows]
        slope, error = exponent(sizes, np.array(times[name]))
        seconds = np.median(times[name], 0).tolist()
        found[name] = {"sizes": sizes, "seconds": seconds, "exponent": slope, "error": error}
    return found


def draw(found: dict[str, dict[str, Any]], path: str) -> None:
    """Save the figure: time over size, both by their logarithms."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(3 * len(found), 3), layout="constrained")
    for axis, (name, row) in zip(np.atleast_1d(axes), found.items(), strict=True):
        axis.loglog(row["sizes"], row["seconds"], "o-")
        axis.set_xlabel(name)
        axis.set_title(f"exponent {row['exponent']:.2f} ± {row['error']:.2f}", fontsize=10)
    np.atleast_1d(axes)[0].set_ylabel("seconds")
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--png", help="where to save the figure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    use(options.threads)
    found = measured(options.rounds)
    if options.png:
        draw(found, options.png)
    if options.json:
        print(json.dumps(found))
        return
    for name, row in found.items():
        sizes = ", ".join(
            f"{s:,}: {t:.3g} s" for s, t in zip(row["sizes"], row["seconds"], strict=True)
        )
        print(f"{name:12}exponent {row['exponent']:.2f} +- {row['error']:.2f}   {sizes}")


if __name__ == "__main__":
    main()
