"""Importance weights of any pair. The only reader of traces in the library.

A pair is Pyro's own: two callables of a batch `x` (leading dimension = data points) and optional
context tensors `*c` with len(x) rows each. A *valid* pair has one plate at dim -1 that holds the
data, of size len(x) or of a larger size with `subsample_size=len(x)`; event dimensions declared
with `.to_event`; the same latent sites on both sides; and row n of both depends on row n of `x` and
`c` alone.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrovae.distributions import seeded
from pyrovae.nets import evaluating

__all__ = [
    "Plate", "Site", "Structure", "Terms", "batched", "find_modules", "inspect", "log_joint",
    "log_terms", "log_weights", "simulate",
]  # fmt: skip

MAX_ELEMENTS = 2**23  # numbers of x that one pass may hold: 32 MB in float32


@dataclass(frozen=True)
class Plate:
    """A plate of a trace.

    Attributes:
        name: its name.
        dim: its dimension, -1 for the data's.
        size: how many there are in all.
        subsample_size: how many are in the batch.
    """

    name: str
    dim: int
    size: int
    subsample_size: int


@dataclass(frozen=True)
class Site:
    """A random variable of a pair.

    Attributes:
        name: its name.
        observed: observed in the model?
        is_datum: observed, and its value *is* the argument x?
        in_model: sampled in the model?
        in_guide: sampled in the guide?
        distribution: name of the model's distribution (the guide's for an auxiliary site).
        support: its support, in the model.
        batch_shape: of the model's distribution.
        event_shape: of the model's distribution.
        plates: names of the plates around it, outermost last.
        reparameterised: does the guide's distribution have `rsample`?
    """

    name: str
    observed: bool
    is_datum: bool
    in_model: bool
    in_guide: bool
    distribution: str
    support: Any
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    plates: tuple[str, ...]
    reparameterised: bool


@dataclass(frozen=True)
class Structure:
    """What a pair is made of.

    Attributes:
        sites: by name, in the model's order.
        plates: by name.
        data_plate: the plate at dim -1 that holds the batch, if there is one.
        problems: (site, rule it breaks) for each rule of a valid pair that is broken; global
            latents, which per-datum functions refuse, are among them.
    """

    sites: dict[str, Site]
    plates: dict[str, Plate]
    data_plate: Plate | None
    problems: tuple[tuple[str, str], ...]

    @property
    def latents(self) -> tuple[Site, ...]:
        """The unobserved sites."""
        return tuple(s for s in self.sites.values() if not s.observed)

    @property
    def datum(self) -> Site | None:
        """The observed site whose value is the argument x, if there is one."""
        return next((s for s in self.sites.values() if s.is_datum), None)

    def check(self) -> None:
        """Refuse what is not a valid pair.

        Raises:
            ValueError: naming the site and the rule it breaks, for every problem.
        """
        if self.problems:
            raise ValueError("; ".join(f"site {s!r}: {rule}" for s, rule in self.problems))


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


def find_modules(*functions: Any, modules: Sequence[nn.Module] = ()) -> list[nn.Module]:
    """Return the modules of a pair: `f.__self__`, callables that are modules, and `modules`.

    Args:
        *functions: the model and the guide.
        modules: further ones, that the functions hold in their closures.
    """
    found: list[nn.Module] = []
    for function in functions:
        while isinstance(function, functools.partial):
            function = function.func
        owner = getattr(function, "__self__", function)
        if isinstance(owner, nn.Module):
            found.append(owner)
    return list(dict.fromkeys([*found, *modules]))


def batched(
    x: Any, c: Sequence[Any] = (), modules: Sequence[nn.Module] = ()
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return data and context as tensors on the modules' device, x in their dtype.

    Args:
        x: data (N, ...), a tensor or array.
        c: context, tensors or arrays of N rows; whole numbers stay whole.
        modules: the pair's, whose first floating parameter gives device and dtype; without one
            whole-numbered x becomes torch's default dtype.

    Raises:
        ValueError: no rows, rows that differ in number, a dtype that is no number, or values that
            are not finite.
    """
    parameters = (p for m in modules for p in m.parameters() if p.is_floating_point())
    like = next(parameters, None)
    tensors: list[Tensor] = []
    for i, value in enumerate((x, *c)):
        name = "x" if i == 0 else f"context {i}"
        try:
            t = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"expected {name} to be an array of numbers; got {error}") from None
        if t.dim() == 0 or len(t) == 0:
            raise ValueError(f"expected {name} to have at least one row; got {tuple(t.shape)}")
        if tensors and len(t) != len(tensors[0]):
            raise ValueError(
                f"expected {name} to have as many rows as x; got {len(t)}, x has {len(tensors[0])}"
            )
        dtype = t.dtype
        if i == 0 or dtype.is_floating_point:
            if like is not None:
                dtype = like.dtype
            elif not dtype.is_floating_point:
                dtype = torch.get_default_dtype()
        t = t.to(dtype=dtype, device=t.device if like is None else like.device)
        if t.is_floating_point() and not bool((finite := t.isfinite()).all()):
            bad = ~finite
            first = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"expected {name} to be finite; got {int(bad.sum())} bad values, the first "
                f"{float(t[first])} at index {first}: drop the rows or fill the values in"
            )
        tensors.append(t)
    return tensors[0], tuple(tensors[1:])


class _Repeated(Messenger):
    """Give every plate that subsamples the indices 0, 1, ...: the rows are all there."""

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["value"] is None:
            size = msg["fn"].size if msg["fn"].subsample_size is None else msg["fn"].subsample_size
            msg["value"] = torch.arange(size)
            msg["done"] = True


def _traces(
    model: Callable, guide: Callable, x: Tensor, c: Sequence[Tensor]
) -> tuple[poutine.Trace, poutine.Trace]:
    """Run the guide, then the model with the guide's latents; nothing shows outside."""
    with poutine.block(hide_types=["sample"]), _Repeated():
        guide_trace = poutine.trace(guide).get_trace(x, *c)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x, *c)
    return model_trace, guide_trace


def _why_not(model: Callable, guide: Callable, x: Tensor, c: Sequence[Tensor]) -> str | None:
    """Return the site whose event shapes differ, where each side runs alone but not together."""
    try:
        with poutine.block(hide_types=["sample"]), _Repeated():
            ours, theirs = (_samples(poutine.trace(f).get_trace(x, *c)) for f in (model, guide))
    except (ValueError, RuntimeError, IndexError):
        return None
    rules = ((n, _events(ours[n], theirs[n])) for n in ours if n in theirs)
    return next((f"site {n!r}: {rule}." for n, rule in rules if rule), None)


def _events(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """Return the rule broken where a latent's event shapes differ."""
    event, guide_event = tuple(ours["fn"].event_shape), tuple(theirs["fn"].event_shape)
    if event == guide_event:
        return None
    rule = f"event shape {event} in the model, {guide_event} in the guide"
    return f"{rule}: declare event dimensions with .to_event on both sides"


def _samples(trace: poutine.Trace) -> dict[str, Any]:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def inspect(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    modules: Sequence[nn.Module] = (),
) -> Structure:
    """Return the sites, supports and plates of a pair, and the rules of a valid pair it breaks.

    Runs each once, with a generator of its own.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        modules: those that the functions hold in their closures.

    Raises:
        ValueError: Pyro cannot run the pair; the message says why and names the usual remedy.
    """
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    with torch.no_grad(), seeded(0), evaluating(*found):
        try:
            model_trace, guide_trace = _traces(model, guide, x, c)
        except (ValueError, RuntimeError, IndexError) as error:
            reason = str(error).splitlines()[0]
            cause = _why_not(model, guide, x, c) or (
                "are event dimensions declared with .to_event, and is the data's plate of size "
                "len(x) at dim -1?"
            )
            raise ValueError(
                f"the pair cannot be run on {len(x)} rows: {cause} Pyro or torch said: {reason}"
            ) from error
    ours, theirs = _samples(model_trace), _samples(guide_trace)
    sites, plates = {}, {}
    for name in [*ours, *(n for n in theirs if n not in ours)]:
        node = ours.get(name, theirs.get(name))
        assert node is not None
        frames = node["cond_indep_stack"]
        for f in frames:
            plates[f.name] = Plate(f.name, f.dim, f.full_size or f.size, f.size)
        sites[name] = Site(
            name=name,
            observed=node["is_observed"] and name in ours,
            is_datum=node["is_observed"] and node["value"] is x,
            in_model=name in ours,
            in_guide=name in theirs,
            distribution=type(getattr(node["fn"], "base_dist", node["fn"])).__name__,
            support=node["fn"].support,
            batch_shape=tuple(node["fn"].batch_shape),
            event_shape=tuple(node["fn"].event_shape),
            plates=tuple(f.name for f in frames),
            reparameterised=name in theirs and bool(theirs[name]["fn"].has_rsample),
        )
    data_plate = next(
        (p for p in plates.values() if p.dim == -1 and p.subsample_size == len(x)), None
    )
    problems = tuple(_problems(sites, ours, theirs, data_plate, len(x)))
    return Structure(sites, plates, data_plate, problems)


def _problems(
    sites: Mapping[str, Site],
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    data_plate: Plate | None,
    n: int,
) -> Iterator[tuple[str, str]]:
    for name, site in sites.items():
        if not site.in_guide and not site.observed:
            yield name, "it is latent in the model but the guide does not sample it"
            continue
        if not site.in_model:
            if not theirs[name]["infer"].get("is_auxiliary"):
                rule = "the guide samples it but the model does not"
                yield name, f"{rule} (an auxiliary variable has infer={{'is_auxiliary': True}})"
            continue
        for side, nodes in (("model", ours), ("guide", theirs)):
            if name in nodes:
                yield from _placement(side, nodes[name], data_plate, n)
        if name in theirs and (differs := _events(ours[name], theirs[name])):
            yield name, differs


def _placement(
    side: str, node: Mapping[str, Any], data_plate: Plate | None, n: int
) -> Iterator[tuple[str, str]]:
    plates = [f.name for f in node["cond_indep_stack"]]
    batch = tuple(node["fn"].batch_shape)
    if data_plate is None or data_plate.name not in plates:
        rule = f"in the {side} it stands outside the data's plate, so it has no value a datum"
        yield node["name"], f"{rule} (expected pyro.plate('data', len(x)) at dim -1, {n} rows)"
    elif len(plates) > 1 or batch != (n,):
        rule = f"in the {side} expected batch shape ({n},) within the data's plate alone"
        remedy = "declare the other dimensions as event dimensions with .to_event"
        yield node["name"], f"{rule}; got {batch} within {plates}: {remedy}"


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
    model_trace, guide_trace = _traces(model, guide, x, c)
    likelihood, prior, posterior = x.new_zeros(len(x)), x.new_zeros(len(x)), x.new_zeros(len(x))
    for site in _samples(model_trace).values():
        if site["is_observed"]:
            likelihood = likelihood + _log_prob(site, len(x))
        else:
            prior = prior + _log_prob(site, len(x))
    for site in _samples(guide_trace).values():
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
    with evaluating(*found), poutine.block(hide_types=["sample"]), _Repeated():
        trace = poutine.trace(poutine.condition(model, data=given)).get_trace(
            _repeat(x, k), *(_repeat(t, k) for t in c)
        )
    total = x.new_zeros(k * len(x))
    for name, site in _samples(trace).items():
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
        with poutine.block(hide_types=["sample"]), _Repeated():
            trace = poutine.trace(poutine.uncondition(model)).get_trace(x, *c)
    return {name: site["value"] for name, site in _samples(trace).items()}


REMEDIES = {
    "Boolean": "binarise them (data.binarize, --binarize threshold, static or dynamic), or take a "
    "likelihood of grey values: ContinuousBernoulli or Normal, or Binomial for pixel levels",
    "IntegerInterval": "give whole numbers within the range (data.load(values='levels'), "
    "total_count), or take a likelihood of real values",
    "Interval": "rescale x to the interval (data.load(values='unit')), or take another likelihood",
}


def check_support(site: Site, x: Tensor, first_row: int = 0) -> None:
    """Refuse data off the support of an observed site.

    Args:
        site: from `inspect` on these rows: a support may depend on them.
        x: values of the site (N, *event_shape).
        first_row: of x among all the data, for the error.

    Raises:
        ValueError: with the count of bad values, the first place and the remedies.
    """
    support = site.support
    while isinstance(support, dist.constraints.independent):
        support = support.base_constraint
    good = support.check(x)
    if bool(good.all()):
        return
    row, *place = (~good).nonzero()[0].tolist()
    kind = type(support).__name__.strip("_")
    remedy = REMEDIES.get(kind, "take a likelihood with their support")
    bounds = [
        f"{float(torch.as_tensor(bound).max()):g}"
        for bound in (getattr(support, f"{b}_bound", None) for b in ("lower", "upper"))
        if bound is not None
    ]
    within = f" in [{', '.join(bounds)}]" if len(bounds) == 2 else ""
    raise ValueError(
        f"site {site.name!r}: expected data on the support of {site.distribution} "
        f"({kind}{within}); got {int((~good).sum())} of {good.numel()} values off it, the first "
        f"{float(x[row, *place].flatten()[0]):.6g} at index {(first_row + row, *place)}: {remedy}"
    )
