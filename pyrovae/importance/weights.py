"""Importance weights and joint densities of any valid pair, by repeated rows."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrovae.distributions import seeded
from pyrovae.importance.passes import (
    CompiledPasses,
    Terms,
    _chunks,
    _log_prob,
    _only_site,
    _passes,
    _repeat,
)
from pyrovae.importance.structure import Repeated, batched, find_modules, inspect, samples
from pyrovae.nets import evaluating

MAX_ELEMENTS = 2**21  # numbers of x that one pass may hold: 8 MB in float32, near a cache's size
MAX_ROWS = 2**16  # rows of a pass, where a row of x is small beside the networks' layers


def log_terms(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_particles: int = 1,
    seed: int | None = 0,
    max_rows: int | None = None,
    modules: Sequence[nn.Module] = (),
    compiled: CompiledPasses | None = None,
) -> Terms:
    """Return log p(x|z), log p(z) and log q(z|x) at `num_particles` draws z ~ q(z|x) a datum.

    The rows of x and c are repeated and the data's plate takes the repeated size, so that any valid
    pair is served. Masks are honoured; the plate's scale, and any other, is left out.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        num_particles: number K of draws a datum.
        seed: of the draws; None for the global generator.
        max_rows: rows x particles of one pass; by default 2^16, or what holds 2^21 numbers of x.
        modules: those that the functions hold in their closures; set to evaluation mode here.
        compiled: compiles the passes; there are no gradients then.

    Returns:
        Terms, each (K, N), in nats.

    Raises:
        ValueError: no valid pair (the message names the site and the rule), or bad data.
    """
    if not isinstance(num_particles, int) or num_particles < 1:
        raise ValueError(
            f"expected num_particles to be a positive whole number; got {num_particles}"
        )
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    inspect(model, guide, x[:2], *(t[:2] for t in c), modules=modules).check()
    size = max_rows or rows_of_a_pass(x)
    blocks: dict[int, list[Terms]] = {}
    with seeded(seed), evaluating(*found):
        for rows, terms, _ in _passes(model, guide, x, c, num_particles, size, compiled):
            blocks.setdefault(rows.start, []).append(terms)
    columns = [[torch.cat(t) for t in zip(*block, strict=True)] for block in blocks.values()]
    return Terms(*(torch.cat(t, 1) for t in zip(*columns, strict=True)))


def guide_density(
    guide: Callable, x: Tensor, *c: Tensor, modules: Sequence[nn.Module] = ()
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Return log q(z|x) as a function of z; a guide of a single site runs just once.

    Args:
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        modules: those that the guide holds in its closure.

    Returns:
        A function of latents by site (K, N, *event_shape) that gives (K, N), in nats.
    """
    found = find_modules(guide, modules=modules)
    x, c = batched(x, c, found)
    with torch.no_grad(), evaluating(*found):
        site = _only_site(guide, x, c)

    def log_q(latents: Mapping[str, Tensor]) -> Tensor:
        if site is None:
            return log_joint(guide, latents, x, *c, modules=modules)
        value = latents[site["name"]]
        return _log_prob(site | {"value": value}, len(value), len(x))

    return log_q


def weighted_data(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_particles: int = 1,
    seed: int | None = 0,
    modules: Sequence[nn.Module] = (),
) -> Iterator[tuple[slice, Tensor, Any]]:
    """Yield, pass by pass, what the model makes of the datum at each draw z ~ q(z|x).

    Arguments and errors: see `log_weights`.

    Yields:
        The rows of x in the pass; their log weights (k, n); and p(x|z), of batch shape (k * n,),
        row by row for each particle.
    """
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    structure = inspect(model, guide, x[:2], *(t[:2] for t in c), modules=modules)
    structure.check()
    if structure.datum is None:
        raise ValueError("expected an observed site whose value is the argument x; got none")
    size = rows_of_a_pass(x)
    with torch.no_grad(), seeded(seed), evaluating(*found):
        for rows, terms, datum in _passes(model, guide, x, c, num_particles, size):
            yield rows, terms.log_weight, datum


def log_weights(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_particles: int = 1,
    seed: int | None = 0,
    max_rows: int | None = None,
    modules: Sequence[nn.Module] = (),
) -> Tensor:
    """Return log w = log p(x, z) - log q(z|x) at `num_particles` draws z ~ q(z|x) a datum.

    The mean over particles is the ELBO's estimate, logsumexp - log K that of log p(x).

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        num_particles: number K of draws a datum.
        seed: of the draws; None for the global generator.
        max_rows: rows x particles of one pass; by default 2^16, or what holds 2^21 numbers of x.
        modules: those that the functions hold in their closures; set to evaluation mode here.

    Returns:
        Tensor (K, N), in nats.

    Raises:
        ValueError: no valid pair (the message names the site and the rule), or bad data.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> log_weights(vae.model, vae.guide, torch.ones(3, 4), num_particles=10).shape
        torch.Size([10, 3])
    """
    return log_terms(
        model, guide, x, *c,
        num_particles=num_particles, seed=seed, max_rows=max_rows, modules=modules,
    ).log_weight  # fmt: skip


def site_log_probs(
    function: Callable,
    latents: Mapping[str, Tensor],
    x: Tensor,
    *c: Tensor,
    max_rows: int | None = None,
    modules: Sequence[nn.Module] = (),
) -> dict[str, Tensor]:
    """Return the log-density of each site of a model, or of a guide, at given latents.

    Args:
        function: Pyro model or guide of (x, *c).
        latents: for each latent site its values (K, N, *event_shape).
        x: data (N, ...).
        *c: context, N rows each.
        max_rows: rows x values of one pass; by default 2^16, or what holds 2^21 numbers of x.
        modules: those that the function holds in its closure.

    Returns:
        For each site a tensor (K, N), in nats; masks are honoured, scales left out.

    Raises:
        ValueError: a latent site is missing, or has other leading dimensions.
    """
    found = find_modules(function, modules=modules)
    x, c = batched(x, c, found)
    k = len(next(iter(latents.values()), x[:1]))
    for name, value in latents.items():
        if tuple(value.shape[:2]) != (k, len(x)):
            raise ValueError(
                f"site {name!r}: expected values of shape ({k}, {len(x)}, *event_shape); got "
                f"{tuple(value.shape)}"
            )
    blocks: dict[int, list[dict[str, Tensor]]] = {}
    first = {0: 0}
    with evaluating(*found):
        for rows, n in _chunks(len(x), k, max_rows or rows_of_a_pass(x)):
            start = first.get(rows.start, 0)
            first[rows.start] = start + n
            z = {name: v[start : start + n, rows].flatten(0, 1) for name, v in latents.items()}
            xs, cs = _repeat(x[rows], n), [_repeat(t[rows], n) for t in c]
            log_p = {s: t.reshape(n, -1) for s, t in _conditioned(function, z, xs, cs).items()}
            blocks.setdefault(rows.start, []).append(log_p)
    columns = [{s: torch.cat([t[s] for t in block]) for s in block[0]} for block in blocks.values()]
    return {site: torch.cat([t[site] for t in columns], 1) for site in columns[0]}


def rows_of_a_pass(x: Tensor) -> int:
    """Return how many rows like those of x one pass may hold."""
    return min(MAX_ROWS, max(1, MAX_ELEMENTS // max(1, math.prod(x.shape[1:]))))


def _conditioned(
    function: Callable, latents: Mapping[str, Tensor], x: Tensor, c: Sequence[Tensor]
) -> dict[str, Tensor]:
    with poutine.block(hide_types=["sample", "observe"]), Repeated():
        trace = poutine.trace(poutine.condition(function, data=latents)).get_trace(x, *c)
    log_p = {}
    for name, site in samples(trace).items():
        if not site["is_observed"]:
            raise ValueError(f"site {name!r}: it is latent in the model but no value was given")
        log_p[name] = _log_prob(site, len(x))
    return log_p


def log_joint(
    model: Callable,
    latents: Mapping[str, Tensor],
    x: Tensor,
    *c: Tensor,
    max_rows: int | None = None,
    modules: Sequence[nn.Module] = (),
) -> Tensor:
    """Return log p(x, z) at given latents; of a guide, log q(z|x).

    Arguments and errors: see `site_log_probs`, whose sum over sites this is.

    Returns:
        Tensor (K, N), in nats.
    """
    log_p = site_log_probs(model, latents, x, *c, max_rows=max_rows, modules=modules)
    return torch.stack(list(log_p.values())).sum(0)


class _Unobserved(Messenger):
    """Draw what is observed, as `poutine.uncondition` does, but compute what is deterministic."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not msg["infer"].get("_deterministic"):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def simulate(
    model: Callable,
    x: Tensor,
    *c: Tensor,
    seed: int | None = 0,
    modules: Sequence[nn.Module] = (),
) -> dict[str, Tensor]:
    """Draw every site of the model, the observed ones too: z ~ p(z), x ~ p(x|z).

    Args:
        model: Pyro model of (x, *c).
        x: data (N, ...): only its shape, dtype and device matter.
        *c: context, N rows each.
        seed: of the draws; None for the global generator.
        modules: those that the model holds in its closure.

    Returns:
        The drawn values by site, N rows each.
    """
    found = find_modules(model, modules=modules)
    x, c = batched(x, c, found)
    with torch.no_grad(), seeded(seed), evaluating(*found):
        with poutine.block(hide_types=["sample", "observe"]), Repeated():
            with poutine.trace() as tracer, _Unobserved():
                model(x, *c)
            trace = tracer.trace
    drawn = {
        name: site["value"]
        for name, site in samples(trace).items()
        if not site["infer"].get("_deterministic")
    }
    for name, value in drawn.items():
        if len(value) != len(x):
            raise ValueError(
                f"site {name!r}: expected {len(x)} rows of draws; got shape {tuple(value.shape)}: "
                "does it stand within the data's plate?"
            )
    return drawn


def guide_distributions(
    guide: Callable, x: Tensor, *c: Tensor, modules: Sequence[nn.Module] = ()
) -> dict[str, Any]:
    """Return q of each site of the guide, batch shape (N,), as one run of it made them.

    Args:
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        modules: those that the guide holds in its closure.
    """
    found = find_modules(guide, modules=modules)
    x, c = batched(x, c, found)
    with torch.no_grad(), seeded(0), evaluating(*found):
        with poutine.block(hide_types=["sample", "observe"]), Repeated():
            trace = poutine.trace(guide).get_trace(x, *c)
    return {name: site["fn"] for name, site in samples(trace).items()}


def enumerate_latents(
    model: Callable, x: Tensor, *c: Tensor, modules: Sequence[nn.Module] = ()
) -> dict[str, Tensor]:
    """Return every value that the model's discrete latents take together.

    Args:
        model: Pyro model of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        modules: those that the model holds in its closure.

    Returns:
        For each latent site a tensor (S, *event_shape), S the number of joint values.

    Raises:
        ValueError: a latent site that is not discrete and finite.
    """
    found = find_modules(model, modules=modules)
    x, c = batched(x, c, found)
    with torch.no_grad(), seeded(0), evaluating(*found):
        with poutine.block(hide_types=["sample", "observe"]), Repeated():
            trace = poutine.trace(model).get_trace(x, *c)
    values = {}
    for name, site in samples(trace).items():
        if site["is_observed"]:
            continue
        if not getattr(site["fn"], "has_enumerate_support", False):
            raise ValueError(
                f"site {name!r}: expected a discrete latent with finitely many values; got "
                f"{type(site['fn']).__name__}"
            )
        every = site["fn"].enumerate_support(expand=False)
        values[name] = every.reshape(len(every), *site["fn"].event_shape)
    counts = [torch.arange(len(v)) for v in values.values()]
    index = torch.cartesian_prod(*counts).reshape(-1, len(counts))
    return {name: v[index[:, i]] for i, (name, v) in enumerate(values.items())}
