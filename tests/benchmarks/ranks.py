"""Weak scaling: rows a second of two processes, over those of one, at the same rows a process.

    PYTHONPATH=tests python -m benchmarks.ranks            # --rows 128 512 2048, --size 2

The step of `fit` on a 784-400-20 VAE with Bernoulli pixels, compiled, one thread a process, gloo
on one machine; update included. In each round the first process trains alone while the others
wait, then all train together: a ratio is that of two rounds side by side. "apart" is all of them at
once without a word to each other: what the machine itself takes of the scaling; "message" the time
of summing the gradient over the processes alone.
"""

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from pyro.infer import TraceMeanField_ELBO
from torch import distributed

from benchmarks.evidence import HIDDEN, LATENT, PIXELS, spread
from pyrovae import build
from pyrovae.importance import find_modules
from pyrovae.optimise import adam
from pyrovae.training import ranks
from pyrovae.training.trainee import Trainee


def worker(rank: int, size: int, port: int, rows: int, rounds: int, steps: int, queue: Any) -> None:
    """Train in rounds, alone and together; the first process reports."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=size)
    vae = build(data_shape=(PIXELS,), latent_dim=LATENT, hidden=(HIDDEN,))
    pair = Trainee(vae.model, vae.guide, TraceMeanField_ELBO(), find_modules(vae.model))
    x = (torch.rand(rows, PIXELS, generator=torch.Generator().manual_seed(1)) < 0.2).float()
    parameters, whole = list(vae.parameters()), x.repeat(size, 1)
    with pair.own_store():
        with mock.patch.object(ranks, "together", lambda: False):
            pair.compile("always", parameters, (x,), 10**9)
        optimizer = adam(parameters, 1e-3)

        def train(batch: torch.Tensor) -> float:
            start = time.perf_counter()
            for step in range(steps):
                pair.step((batch,), 0.0, 1.0, parameters, step)
                optimizer.step()
            return (time.perf_counter() - start) / steps

        times: dict[str, list[float]] = {"alone": [], "apart": [], "together": [], "message": []}
        for turn in range(rounds + 1):  # the first warms up
            distributed.barrier()
            if rank == 0:
                with mock.patch.object(ranks, "together", lambda: False):
                    first = train(x)
            distributed.barrier()
            with mock.patch.object(ranks, "together", lambda: False):
                between = train(x)
            distributed.barrier()
            second = train(whole)
            start = time.perf_counter()
            for _ in range(steps):
                ranks.add([p.grad for p in parameters])
            third = (time.perf_counter() - start) / steps
            if rank == 0 and turn:
                for row, value in zip(times.values(), (first, between, second, third), strict=True):
                    row.append(value)
    if rank == 0:
        queue.put(times)
    distributed.barrier()
    distributed.destroy_process_group()


def measured(rows: int, size: int, rounds: int, steps: int) -> dict[str, Any]:
    """Return the times of a step in milliseconds, and the scaling."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=worker, args=(r, size, port, rows, rounds, steps, queue))
        for r in range(size)
    ]
    for process in processes:
        process.start()
    times = queue.get()
    for process in processes:
        process.join(30)
        process.kill()
    found: dict[str, Any] = {name: 1e3 * statistics.median(row) for name, row in times.items()}
    for name in ("apart", "together"):
        ratios = [size * a / b for a, b in zip(times["alone"], times[name], strict=True)]
        found[f"scaling_{name}"] = spread(ratios)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--size", type=int, default=2, help="processes")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found = {n: measured(n, options.size, options.rounds, options.steps) for n in options.rows}
    if options.json:
        print(json.dumps(found))
        return
    print(f"{options.size} processes of one thread, {os.cpu_count()} cores; ms a step")
    columns = ("alone", "apart", "together", "message")
    print(f"{'rows a process':>15}" + "".join(f"{c:>10}" for c in columns), end="")
    print(f"{'scaling':>10}{'(least, most)':>16}{'apart':>7}")
    for n, row in found.items():
        scaling, least, most = row["scaling_together"]
        print(f"{n:15,}" + "".join(f"{row[c]:10.2f}" for c in columns), end="")
        print(f"{scaling:10.2f}{f'({least:.2f}, {most:.2f})':>16}{row['scaling_apart'][0]:7.2f}")


if __name__ == "__main__":
    main()
