"""Seconds of training until the test -ELBO of MNIST is at most 102 nats, and peak memory.

    PYROVAE_DATA=FOLDER PYTHONPATH=tests python -m benchmarks.bound      # --threads 2

A 784-400-20 VAE, Bernoulli pixels binarised once, Adam 1e-3, batch 128, all 60,000 training images;
after each epoch the clock stands still for the test -ELBO. Those who train are those of
`benchmarks.step`; each has a process of its own, so that the peak is its own. One seed.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.evidence import peak, use
from benchmarks.step import contenders
from pyrovae import build, data

ENOUGH, EPOCHS, BATCH = 102.0, 25, 128


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return training and test images (N, 784), binarised with a fixed seed."""
    found = data.load("mnist", validation=0)
    generator = torch.Generator().manual_seed(0)
    train, test = (data.binarize(x.flatten(1), generator) for x in (found.train, found.test))
    return train, test


def trained(name: str) -> dict[str, Any]:
    """Train until it is enough; return epochs, seconds, the last test -ELBO and MB at the peak."""
    train, test = images()
    torch.manual_seed(0)
    before = peak()
    vae = build(data_shape=(784,), latent_dim=20, hidden=(400,), seed=0)
    steps = len(train) // BATCH
    start = time.perf_counter()
    learn = contenders()[name](vae, train[: steps * BATCH].view(steps, BATCH, -1))
    seconds = time.perf_counter() - start
    loss = float("inf")
    epoch = 0
    while loss > ENOUGH and epoch < EPOCHS:
        epoch += 1
        start = time.perf_counter()
        rows = train[torch.randperm(len(train))[: steps * BATCH]]
        learn.train(learn.data(rows.view(steps, BATCH, -1)))
        seconds += time.perf_counter() - start
        loss = learn.test(test)
    return {"epochs": epoch, "seconds": seconds, "loss": loss, "growth_mb": peak() - before}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    use(options.threads)
    found = {}
    for name in contenders():
        if name == "gemm":
            continue
        with ProcessPoolExecutor(1, get_context("spawn"), use, (options.threads,)) as process:
            found[name] = process.submit(trained, name).result()
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'':10}{'seconds':>9}{'epochs':>8}{'test -ELBO':>12}{'peak grew by':>14}")
    for name, row in found.items():
        print(f"{name:10}{row['seconds']:9.1f}{row['epochs']:8}{row['loss']:12.2f}", end="")
        print(f"{row['growth_mb']:11.0f} MB")


if __name__ == "__main__":
    main()
