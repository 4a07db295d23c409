"""Importance weights and joint densities of any valid pair, by repeated rows."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn

from pyrovae.distributions import seeded
from pyrovae.importance.structure import Repeated, batched, find_modules, inspect, samples, traces
from pyrovae.nets import evaluating

MAX_ELEMENTS = 2**23  # numbers of x that one pass may hold: 32 MB in float32


class Terms(NamedTuple):
    """The terms of a log weight, each (K, N) in nats.

    log p(x, z) - log q(z|x) = log_likelihood + log_prior - log_guide
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_guide: Tensor

    @property
    def log_weight(self) -> Tensor:
        """The log weight, log p(x, z) - log q(z|x)."""
        return self.log_likelihood + self.log_prior - self.log_guide


def _log_prob(site: Any, rows: int) -> Tensor:
    """Return log p of a site, (rows,): masked, but without the plate's or any other scale."""
    log_p = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    log_p = scale_and_mask(log_p, mask=site["mask"])
    if tuple(log_p.shape) != (rows,):
        raise ValueError(
            f"site {site['name']!r}: expected a log-density of shape ({rows},), one a row; got "
            f"{tuple(log_p.shape)}: is each row's distribution a function of that row alone?"
        )
    return log_p


def _repeat(t: Tensor, k: int) -> Tensor:
    return t.repeat(k, *[1] * (t.dim() - 1))


def _chunks(n: int, k: int, size: int) -> Iterator[tuple[slice, int]]:
    """Yield (rows, particles) that cover n rows x k particles, at most `size` of both a pass."""
    rows = max(1, min(n, size))
    particles = max(1, size // rows)
    for start in range(0, n, rows):
        for first in range(0, k, particles):
            yield slice(start, min(start + rows, n)), min(particles, k - first)


def log_terms(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_particles: int = 1,
    seed: int | None = 0,
    max_rows: int | None = None,
    modules: Sequence[nn.Module] = (),
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
        max_rows: rows x particles of one pass; by default as many as hold 2^23 numbers of x.
        modules: those that the functions hold in their closures; set to evaluation mode here.

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
    size = max_rows or max(1, MAX_ELEMENTS // max(1, math.prod(x.shape[1:])))
    blocks: dict[int, list[Terms]] = {}
    with seeded(seed), evaluating(*found):
        for rows, k in _chunks(len(x), num_particles, size):
            xs, cs = _repeat(x[rows], k), [_repeat(t[rows], k) for t in c]
            terms = [t.reshape(k, -1) for t in _row_terms(model, guide, xs, cs)]
            blocks.setdefault(rows.start, []).append(Terms(*terms))
    columns = [[torch.cat(t) for t in zip(*block, strict=True)] for block in blocks.values()]
    return Terms(*(torch.cat(t, 1) for t in zip(*columns, strict=True)))


def _row_terms(model: Callable, guide: Callable, x: Tensor, c: Sequence[Tensor]) -> Terms:
    model_trace, guide_trace = traces(model, guide, x, c)
    likelihood, prior, posterior = x.new_zeros(len(x)), x.new_zeros(len(x)), x.new_zeros(len(x))
    for site in samples(model_trace).values():
        if site["is_observed"]:
            likelihood = likelihood + _log_prob(site, len(x))
        else:
            prior = prior + _log_prob(site, len(x))
    for site in samples(guide_trace).values():
        posterior = posterior + _log_prob(site, len(x))
    return Terms(likelihood, prior, posterior)


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
        max_rows: rows x particles of one pass; by default as many as hold 2^23 numbers of x.
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


def log_joint(
    model: Callable,
    latents: Mapping[str, Tensor],
    x: Tensor,
    *c: Tensor,
    modules: Sequence[nn.Module] = (),
) -> Tensor:
    """Return log p(x, z) at given latents.

    Args:
        model: Pyro model of (x, *c).
        latents: for each latent site its values (K, N, *event_shape).
        x: data (N, ...).
        *c: context, N rows each.
        modules: those that the model holds in its closure.

    Returns:
        Tensor (K, N), in nats.

    Raises:
        ValueError: a latent site is missing, or has other leading dimensions.
    """
    found = find_modules(model, modules=modules)
    x, c = batched(x, c, found)
    k = len(next(iter(latents.values()), x[:1]))
    for name, value in latents.items():
        if tuple(value.shape[:2]) != (k, len(x)):
            raise ValueError(
                f"site {name!r}: expected values of shape ({k}, {len(x)}, *event_shape); got "
                f"{tuple(value.shape)}"
            )
    given = {name: value.flatten(0, 1) for name, value in latents.items()}
    with evaluating(*found), poutine.block(hide_types=["sample"]), Repeated():
        trace = poutine.trace(poutine.condition(model, data=given)).get_trace(
            _repeat(x, k), *(_repeat(t, k) for t in c)
        )
    total = x.new_zeros(k * len(x))
    for name, site in samples(trace).items():
        if not site["is_observed"]:
            raise ValueError(f"site {name!r}: it is latent in the model but no value was given")
        total = total + _log_prob(site, k * len(x))
    return total.reshape(k, len(x))


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
        with poutine.block(hide_types=["sample"]), Repeated():
            trace = poutine.trace(poutine.uncondition(model)).get_trace(x, *c)
    return {name: site["value"] for name, site in samples(trace).items()}
