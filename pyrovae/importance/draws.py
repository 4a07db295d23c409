"""Every draw of a pair kept: latents, what the model makes of them, and their densities."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae.distributions import mixed, seeded
from pyrovae.importance.structure import Repeated, batched, find_modules, inspect, samples, traces
from pyrovae.importance.weights import (
    _chunks,
    _log_prob,
    _repeat,
    _Unobserved,
    rows_of_a_pass,
    simulate,
)
from pyrovae.nets import evaluating

Kept = dict[str, Tensor]
Place = tuple[slice, slice]  # of a pass: its draws and its rows


@dataclass(frozen=True)
class Draws:
    """Draws z ~ q(z|x) and x' ~ p(x|z) by site, and log-densities in nats, all on the CPU.

    Attributes:
        latents: z, for each site of the guide (K, N, *event_shape).
        predictive: x', for each observed site (K, N, *event_shape).
        observed: what was observed there, (N, *event_shape).
        log_likelihood: log p(x|z) of each observed site, (K, N).
        log_joint: log p(x, z), (K, N).
        log_guide: log q(z|x), (K, N).
    """

    latents: Kept
    predictive: Kept
    observed: Kept
    log_likelihood: Kept
    log_joint: Tensor
    log_guide: Tensor


def posterior_draws(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_draws: int = 1,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
) -> Draws:
    """Draw z ~ q(z|x) and x' ~ p(x|z), `num_draws` times a datum, and keep it all.

    The z are those of `log_weights` with the same seed. Where several sites are observed they are
    drawn together: x' of one is given x' of another, not what was observed there.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        num_draws: number K of draws a datum.
        seed: of the draws.
        modules: those that the functions hold in their closures; set to evaluation mode here.

    Raises:
        ValueError: no valid pair, nothing observed, bad data, or num_draws that is no positive
            whole number.
    """
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    inspect(model, guide, x[:2], *(t[:2] for t in c), modules=modules).check()
    shape = _shape(num_draws, x)
    latents: Kept = {}
    predictive: Kept = {}
    observed: Kept = {}
    likelihood: Kept = {}
    total: Kept = {}
    with torch.no_grad(), seeded(seed), evaluating(*found):
        for at in _passes(shape, x):
            xs, *cs = _rows(x, c, at)
            model_trace, guide_trace = traces(model, guide, xs, cs)
            ours, theirs = _random(model_trace), _random(guide_trace)
            log_p = {name: _log_prob(site, len(xs)) for name, site in ours.items()}
            log_q = [_log_prob(site, len(xs)) for site in theirs.values()]
            # pyro.factor is an observed site of no numbers
            seen = [n for n, site in ours.items() if site["is_observed"] and site["value"].numel()]
            if not seen:
                raise ValueError("expected a model with an observed site; got none")
            nothing = xs.new_zeros(len(xs))
            sums = {"model": sum(log_p.values(), nothing), "guide": sum(log_q, nothing)}
            with seeded(mixed(seed, at[0].start, at[1].start)):  # so z is drawn as without x'
                drawn = _replicated(model, guide_trace, xs, cs)
            _keep(latents, {name: site["value"] for name, site in theirs.items()}, at, shape)
            _keep(predictive, {name: drawn[name] for name in seen}, at, shape)
            _keep(likelihood, {name: log_p[name] for name in seen}, at, shape)
            _keep(total, sums, at, shape)
            one = slice(0, 1), at[1]
            data = {name: ours[name]["value"][: len(x[at[1]])] for name in seen}
            _keep(observed, data, one, (1, len(x)))
    observed = {name: value[0] for name, value in observed.items()}
    return Draws(latents, predictive, observed, likelihood, total["model"], total["guide"])


def prior_draws(
    model: Callable,
    x: Tensor,
    *c: Tensor,
    num_draws: int = 1,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
) -> Kept:
    """Draw every site of the model, `num_draws` times a datum: z ~ p(z), x' ~ p(x|z).

    Arguments and errors: see `posterior_draws`; of x only shape, dtype and device matter.

    Returns:
        For each site, the observed ones too, (K, N, *event_shape), on the CPU.
    """
    x, c = batched(x, c, find_modules(model, modules=modules))
    shape = _shape(num_draws, x)
    kept: Kept = {}
    for at in _passes(shape, x):
        own = mixed(seed, 1, at[0].start, at[1].start)
        drawn = simulate(model, *_rows(x, c, at), seed=own, modules=modules)
        _keep(kept, drawn, at, shape)
    return kept


def _shape(num_draws: int, x: Tensor) -> tuple[int, int]:
    if not isinstance(num_draws, int) or num_draws < 1:
        raise ValueError(f"expected num_draws to be a positive whole number; got {num_draws!r}")
    return num_draws, len(x)


def _passes(shape: tuple[int, int], x: Tensor) -> Iterator[Place]:
    """Yield the draws and rows of each pass, the passes of `log_weights`."""
    first = 0
    for rows, k in _chunks(shape[1], shape[0], rows_of_a_pass(x)):
        yield slice(first, first + k), rows
        first = (first + k) % shape[0]


def _rows(x: Tensor, c: Sequence[Tensor], at: Place) -> tuple[Tensor, ...]:
    """Return the rows of a pass, repeated."""
    k = at[0].stop - at[0].start
    return tuple(_repeat(t[at[1]], k) for t in (x, *c))


def _keep(kept: Kept, values: Mapping[str, Tensor], at: Place, shape: tuple[int, int]) -> None:
    """Put the values (k * n, ...) of a pass in their place among all, (K, N, ...)."""
    k = at[0].stop - at[0].start
    for name, value in values.items():
        value = value.reshape(k, len(value) // k, *value.shape[1:])
        if name not in kept:
            kept[name] = torch.empty(*shape, *value.shape[2:], dtype=value.dtype)
        kept[name][at] = value.cpu()


def _random(trace: poutine.Trace) -> dict[str, Any]:
    """Return the sites of a trace without those that are deterministic."""
    return {n: s for n, s in samples(trace).items() if not s["infer"].get("_deterministic")}


def _replicated(
    model: Callable, guide_trace: poutine.Trace, x: Tensor, c: Sequence[Tensor]
) -> Kept:
    """Run the model with the guide's latents, what it observes drawn anew."""
    with poutine.block(hide_types=["sample", "observe"]), Repeated():
        with poutine.trace() as tracer, _Unobserved():
            poutine.replay(model, trace=guide_trace)(x, *c)
    return {name: site["value"] for name, site in _random(tracer.trace).items()}
