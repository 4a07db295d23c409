"""Hamiltonian Monte Carlo of p(z|x): the reference that a guide is looked at beside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor, nn

from pyrovae.distributions import mixed, seeded
from pyrovae.importance import batched, find_modules, inspect, log_joint, simulate
from pyrovae.nets import evaluating
from pyrovae.pairs.refinement import Repeated


@dataclass(frozen=True)
class PosteriorDraws:
    """Draws of p(z|x) of one datum by a Markov chain.

    Attributes:
        samples: z by site, (chains, draws, *event_shape).
        log_joint: log p(x, z) of each, (chains, draws), in nats.
        rhat: split R-hat by site, (*event_shape): above 1.01 the chains do not agree.
        effective_sample_size: by site, (*event_shape).
        divergences: how many transitions diverged, of all chains.
    """

    samples: dict[str, Tensor]
    log_joint: Tensor
    rhat: dict[str, Tensor]
    effective_sample_size: dict[str, Tensor]
    divergences: int


def nuts(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_samples: int = 500,
    num_warmup: int = 300,
    num_chains: int = 4,
    seed: int = 0,
    progress: bool = False,
    modules: Sequence[nn.Module] = (),
) -> PosteriorDraws:
    """Draw z ~ p(z|x) of one datum by Pyro's No-U-Turn Sampler.

    Hoffman & Gelman (2014). The chains start at draws of the guide and run one after the other. It
    is exact in the long run, whatever the guide, and takes seconds for a datum: a reference to look
    at, `convert.posterior_to_arviz` makes it ready for ArviZ.

    Args:
        model: Pyro model of (x, *c), its latents continuous.
        guide: Pyro guide of (x, *c), where the chains start.
        x: one datum (1, ...), as x[i : i + 1].
        *c: context, one row each.
        num_samples: draws kept of each chain, at least 4.
        num_warmup: transitions before, which adapt step size and mass matrix.
        num_chains: chains.
        seed: of the draws.
        progress: show Pyro's bar, on stderr.
        modules: those that the functions hold in their closures.

    Returns:
        PosteriorDraws.

    Raises:
        ValueError: more than one datum, discrete latents, no valid pair, bad data, or a count that
            is not positive.
    """
    for name, value, least in (
        ("num_samples", num_samples, 4), ("num_warmup", num_warmup, 1),
        ("num_chains", num_chains, 1),
    ):  # fmt: skip
        if not isinstance(value, int) or value < least:
            raise ValueError(f"expected {name} to be a whole number >= {least}; got {value!r}")
    if len(x) != 1:
        raise ValueError(f"expected one datum, such as x[:1]; got {len(x)}")
    found = find_modules(model, guide, modules=modules)
    with evaluating(*found):
        x, c = batched(x, c, found)
        structure = inspect(model, guide, x, *c, modules=modules)
        structure.check()
        for site in structure.latents:
            if site.support.is_discrete:
                raise ValueError(
                    f"site {site.name!r}: expected continuous latents; got a discrete one: use "
                    "evidence.enumeration"
                )
        chains: list[dict[str, Tensor]] = []
        divergences = 0
        for chain in range(num_chains):
            start = simulate(guide, x, *c, seed=mixed(seed, chain, 0), modules=modules)
            with seeded(mixed(seed, chain, 1)), Repeated():
                kernel = NUTS(model, init_strategy=init_to_value(values=start))
                mcmc = MCMC(
                    kernel, num_samples, warmup_steps=num_warmup, disable_progbar=not progress
                )
                mcmc.run(x, *c)
            chains.append({name: z.detach() for name, z in mcmc.get_samples().items()})
            divergences += sum(len(at) for at in mcmc.diagnostics()["divergences"].values())
        drawn = {name: torch.stack([z[name] for z in chains]) for name in chains[0]}
        with torch.no_grad():
            rows = {name: z.flatten(0, 1) for name, z in drawn.items()}
            joint = log_joint(model, rows, x, *c, modules=modules)
    samples = {name: z.squeeze(2) for name, z in drawn.items()}  # of the data's plate, of size 1
    return PosteriorDraws(
        samples,
        joint.reshape(num_chains, num_samples),
        {name: split_gelman_rubin(z) for name, z in samples.items()},
        {name: effective_sample_size(z) for name, z in samples.items()},
        divergences,
    )
