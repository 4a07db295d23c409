"""How fast log p(x) comes by importance sampling, and in how much memory.

    python tests/benchmarks/evidence.py [--rounds 9] [--images 100] [--particles 1000] [--threads 1]
    python tests/benchmarks/evidence.py --memory [--images 20]
    python tests/benchmarks/evidence.py --mnist [--images 10000] [--particles 5000] --threads 2

One task, the 784-400-20 VAE of binary digits, and one set of weights, in float32 without gradients:
log p(x) of every image by K draws z ~ q(z|x). The figure is image-samples (images x K) a second.

    pyrovae   evidence.iwae: of any pair, compiled, checked against Pyro's pass at every call; with
              k-hat, standard errors and the rest
    torch     plain PyTorch, written by hand for this network: what the ratios are to
    pyro      pyro.infer.importance.vectorized_importance_weights
    numpyro   jax.jit of a NumPyro pair's log_density, vmapped over draws and data

Each has passes of a size that suits it: `CHUNKS`, the fastest of 5, 10, 20 and 50 draws or within
6% of that, and `evidence.iwae` its own. Pyro's function sums the batch into one weight a draw; the
weights of each datum are read from the traces that it returns besides. The four take turns in one
process, and a ratio is that of two runs of one round, so that a machine that slows down slows both.
"cores" is processor time over wall time, to show that none had more threads than --threads (with
two or more, XLA still runs the body of lax.map on one); "compile" is how much longer the first call
took than the median call. --mnist is the time of one call over MNIST's test images, binarised by a
coin each pixel, at random weights: the time does not depend on them.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor, nn
from torch.nn import functional

from pyrovae import VAE, build, data, evidence

PIXELS, HIDDEN, LATENT = 784, 400, 20
CHUNKS = {"torch": 10, "pyro": 20, "numpyro": 10}  # draws a datum of one pass over 100 images
THRESHOLD = "MALLOC_MMAP_THRESHOLD_"  # glibc reads it when a process starts
COUNTS = (100, 1_000, 10_000, 100_000)  # draws a datum of the memory's table

Estimate = Callable[[int, int], Tensor]  # of draws a datum and a seed: log p(x), (N,)


def task(images: int) -> tuple[VAE, Tensor]:
    """Return a pair, its weights random and the same at every call, and binary data (N, 784)."""
    vae = build(data_shape=(PIXELS,), latent_dim=LATENT, hidden=(HIDDEN,), seed=0)
    generator = torch.Generator().manual_seed(1234)
    with torch.no_grad():  # log weights of sd 1 nat: the four can be told to agree, and would not
        vae.likelihood.net.output.weight.mul_(0.5)  # if one left a term out
    return vae, (torch.rand(images, PIXELS, generator=generator) < 0.2).float()


def chunks(name: str, images: int, particles: int) -> list[int]:
    """Return the draws a datum of each pass: as `CHUNKS` says of 100 images."""
    size = max(1, min(particles, CHUNKS[name] * 100 // images))
    whole, rest = divmod(particles, size)
    return [size] * whole + [rest] * (rest > 0)


def by_pyrovae(vae: VAE, x: Tensor) -> Estimate:
    """`evidence.iwae`."""
    return lambda k, seed: (
        evidence.iwae(
            vae.model, vae.guide, x, num_particles=k, seed=seed, compile="always"
        ).log_evidence
    )


def networks(vae: VAE) -> tuple[nn.Module, nn.Module]:
    """Return plain networks with the pair's weights: x -> (mean, log variance), z -> logits."""
    encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS))
    for plain, part in ((encoder, vae.posterior), (decoder, vae.likelihood)):
        plain.load_state_dict(
            dict(zip(plain.state_dict(), part.state_dict().values(), strict=True))
        )
    return encoder, decoder


def by_torch(vae: VAE, x: Tensor) -> Estimate:
    """By hand: encode once, decode in chunks, logsumexp."""
    encoder, decoder = networks(vae)

    @torch.no_grad()
    def estimate(k: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        mean, log_variance = encoder(x).chunk(2, -1)
        scale = (0.5 * log_variance).exp()
        log_w = []
        for size in chunks("torch", len(x), k):
            noise = torch.randn(size, *mean.shape)
            z = mean + scale * noise
            # log p(z) - log q(z|x): the constants of the two cancel
            log_ratio = (0.5 * (noise**2 - z**2) + scale.log()).sum(-1)
            logits = decoder(z)
            log_p = -functional.binary_cross_entropy_with_logits(
                logits, x.expand_as(logits), reduction="none"
            ).sum(-1)
            log_w.append(log_p + log_ratio)
        return torch.cat(log_w).logsumexp(0) - math.log(k)

    return estimate


def by_pyro(vae: VAE, x: Tensor) -> Estimate:
    """A pair written as Pyro's users write it, with `vectorized_importance_weights`."""
    encoder, decoder = networks(vae)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            mean, log_variance = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, (0.5 * log_variance).exp()).to_event(1))

    @torch.no_grad()
    def estimate(k: int, seed: int) -> Tensor:
        pyro.set_rng_seed(seed)
        log_w = []
        for size in chunks("pyro", len(x), k):
            _, ours, theirs = vectorized_importance_weights(
                model, guide, x, num_samples=size, max_plate_nesting=1
            )
            log_joint = ours.nodes["z"]["log_prob"] + ours.nodes["x"]["log_prob"]
            log_w.append(log_joint - theirs.nodes["z"]["log_prob"])
        return torch.cat([w.reshape(-1, len(x)) for w in log_w]).logsumexp(0) - math.log(k)

    return estimate


def by_numpyro(vae: VAE, x: Tensor) -> Estimate:
    """A NumPyro pair of one datum, vmapped over draws and data, under one jax.jit."""
    import jax
    import numpyro
    from jax import numpy as jnp
    from numpyro import distributions as ndist
    from numpyro import handlers
    from numpyro.infer.util import log_density

    def layers(part: nn.Module) -> list[Any]:
        return [jnp.asarray(t.numpy()) for t in part.state_dict().values()]

    def network(weights: list[Any], x: Any) -> Any:
        w1, b1, w2, b2 = weights
        return jax.nn.relu(x @ w1.T + b1) @ w2.T + b2

    def model(weights: Any, x: Any) -> None:
        z = numpyro.sample("z", ndist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
        logits = network(weights["decoder"], z)
        numpyro.sample("x", ndist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(weights: Any, x: Any) -> None:
        mean, log_variance = jnp.split(network(weights["encoder"], x), 2)
        numpyro.sample("z", ndist.Normal(mean, jnp.exp(0.5 * log_variance)).to_event(1))

    def log_weight(weights: Any, x: Any, key: Any) -> Any:
        drawn = handlers.trace(handlers.seed(guide, key)).get_trace(weights, x)
        z = {"z": drawn["z"]["value"]}
        log_joint, _ = log_density(model, (weights, x), {}, z)
        return log_joint - log_density(guide, (weights, x), {}, z)[0]

    def log_weights(weights: Any, x: Any, key: Any, size: int) -> Any:  # (N, size)
        keys = jax.random.split(key, (len(x), size))
        some = jax.vmap(log_weight, (None, None, 0))  # the encoder stays outside: vmap sees to it
        return jax.vmap(some, (None, 0, 0))(weights, x, keys)

    @functools.partial(jax.jit, static_argnums=3)
    def compiled(weights: Any, x: Any, key: Any, k: int) -> Any:
        *whole, last = chunks("numpyro", len(x), k)
        keys = jax.random.split(key, len(whole) + 1)
        log_w = log_weights(weights, x, keys[-1], last)
        if whole:
            blocks = jax.lax.map(lambda key: log_weights(weights, x, key, whole[0]), keys[:-1])
            log_w = jnp.concatenate([log_w, jnp.moveaxis(blocks, 0, 1).reshape(len(x), -1)], 1)
        return jax.nn.logsumexp(log_w, 1) - jnp.log(k)

    weights = {"encoder": layers(vae.posterior), "decoder": layers(vae.likelihood)}
    data = jnp.asarray(x.numpy())

    def estimate(k: int, seed: int) -> Tensor:
        found = compiled(weights, data, jax.random.key(seed), k)
        return torch.tensor(found.tolist())

    return estimate


def implementations() -> dict[str, Callable[[VAE, Tensor], Estimate]]:
    """Return those that can run here; NumPyro is the extra `bench`, and left out without it."""
    found = {"pyrovae": by_pyrovae, "torch": by_torch, "pyro": by_pyro}
    if importlib.util.find_spec("numpyro"):
        return found | {"numpyro": by_numpyro}
    print("numpyro is left out: it is not installed (pip install '.[bench]')", file=sys.stderr)
    return found


def throughput(rounds: int, images: int, particles: int) -> dict[str, dict[str, Any]]:
    """Return the figures of each implementation, by name."""
    vae, x = task(images)
    estimates = {name: make(vae, x) for name, make in implementations().items()}
    times: dict[str, list[float]] = {name: [] for name in estimates}
    busy = dict.fromkeys(estimates, 0.0)
    for seed in range(rounds + 1):  # the first compiles and warms up
        for name, estimate in estimates.items():
            start, used = time.perf_counter(), time.process_time()
            estimate(particles, seed)
            times[name].append(time.perf_counter() - start)
            busy[name] += (time.process_time() - used) * (seed > 0)
    figures = {}
    for name, (first, *rest) in times.items():
        pairs = zip(times["torch"][1:], rest, strict=True)
        figures[name] = {
            "image_samples_a_second": spread([images * particles / t for t in rest]),
            "ratio_to_torch": spread([by_hand / t for by_hand, t in pairs]),
            "cores": busy[name] / sum(rest),
            "compile_seconds": max(0.0, first - statistics.median(rest)),
        }
    return figures


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the least and the largest."""
    return statistics.median(values), min(values), max(values)


def mnist(images: int, particles: int) -> dict[str, float]:
    """Return the seconds of one call over MNIST's test images, compilation included."""
    x = data.load("mnist", binarize="static").test[:images].flatten(1)
    vae, _ = task(1)
    before, start = peak(), time.perf_counter()
    found = evidence.iwae(vae.model, vae.guide, x, num_particles=particles, progress=True)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds, "image_samples_a_second": len(x) * particles / seconds,
        "growth_mb": peak() - before, "log_evidence": float(found.log_evidence.mean()),
    }  # fmt: skip


def peak() -> float:
    """Return the most memory that this process has held at once, in MB.

    Linux's own count: getrusage's starts, in a new process, at the peak of the one that began it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def growth(images: int, particles: int) -> dict[str, float]:
    """Return how far `evidence.iwae` raised this process's peak, in MB, and its seconds.

    The compiler has been in memory before, by a draw that is not counted.
    """
    vae, x = task(images)
    run = functools.partial(evidence.iwae, vae.model, vae.guide, x, compile="always")
    run(num_particles=1)
    before, start = peak(), time.perf_counter()
    run(num_particles=particles)
    return {"growth_mb": peak() - before, "seconds": time.perf_counter() - start}


def memory(images: int, counts: Sequence[int], threads: int) -> dict[int, dict[str, float]]:
    """Return `growth` by draws a datum, each in a new process: a peak does not come down.

    Besides, "held_mb" is the growth where glibc gives freed memory back at once: what was held.
    Left to itself it keeps some for later, tens of MB more or less from run to run.
    """
    found = {}
    for k in counts:
        found[k] = _in_a_process(images, k, threads)
        os.environ[THRESHOLD] = "1000000"  # larger blocks are mapped, and unmapped when freed
        found[k]["held_mb"] = _in_a_process(images, k, threads)["growth_mb"]
        del os.environ[THRESHOLD]
    return found


def _in_a_process(images: int, particles: int, threads: int) -> dict[str, float]:
    with ProcessPoolExecutor(1, get_context("spawn"), use, (threads,)) as process:
        return process.submit(growth, images, particles).result()


def use(threads: int) -> None:
    """Give torch and XLA so many threads each; to be called before jax is imported."""
    torch.set_num_threads(threads)
    os.environ["NPROC"] = str(threads)  # the size of XLA's pool


def show(figures: dict[str, dict[str, Any]]) -> None:
    """Print the table of `throughput`."""
    print(f"{'':10}{'image-samples/s':>16}{'(least, most)':>20}{'ratio to torch':>16}", end="")
    print(f"{'(least, most)':>16}{'cores':>7}{'compile':>9}")
    for name, row in figures.items():
        rate, low, high = row["image_samples_a_second"]
        ratio, least, most = row["ratio_to_torch"]
        print(f"{name:10}{rate:16,.0f}{f'({low:,.0f}, {high:,.0f})':>20}{ratio:16.2f}", end="")
        print(f"{f'({least:.2f}, {most:.2f})':>16}{row['cores']:7.2f}", end="")
        print(f"{row['compile_seconds']:7.1f} s")


def show_memory(found: dict[int, dict[str, float]]) -> None:
    """Print the table of `memory`."""
    print(f"{'draws a datum':>14}{'growth of the peak':>20}{'of it held':>14}{'time':>10}")
    for k, row in found.items():
        print(f"{k:14,}{row['growth_mb']:17.1f} MB{row['held_mb']:11.1f} MB", end="")
        print(f"{row['seconds']:8.1f} s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(description="Time, or memory, of log p(x) by importance.")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each implementation")
    parser.add_argument("--images", type=int, help="100, 20 with --memory, or 10,000 with --mnist")
    parser.add_argument("--particles", type=int, help="draws an image: 1000, or 5000 with --mnist")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of XLA")
    parser.add_argument("--memory", action="store_true", help=f"peak memory at K = {COUNTS}")
    parser.add_argument("--mnist", action="store_true", help="one call over MNIST's test images")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    use(options.threads)
    images = options.images or (20 if options.memory else 10_000 if options.mnist else 100)
    particles = options.particles or (5000 if options.mnist else 1000)
    setting = {"images": images, "threads": options.threads, "cores": os.cpu_count()}
    packages = ["torch", "pyro-ppl"] + ["numpyro", "jax"] * bool(
        importlib.util.find_spec("numpyro")
    )
    setting |= {name: importlib.metadata.version(name) for name in packages}
    found: dict[Any, Any]
    if options.memory:
        found = memory(images, COUNTS, options.threads)
    elif options.mnist:
        found = mnist(images, particles)
        setting |= {"particles": particles}
    else:
        found = throughput(options.rounds, images, particles)
        setting |= {"rounds": options.rounds, "particles": particles}
    if options.json:
        print(json.dumps({"setting": setting, "figures": found}))
        return
    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    if options.mnist:
        print(", ".join(f"{name} {value:,.1f}" for name, value in found.items()))
        return
    (show_memory if options.memory else show)(found)


if __name__ == "__main__":
    main()
