"""What a pair is made of: its sites, supports and plates, and the rules it breaks."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrovae.distributions import seeded
from pyrovae.nets import evaluating, find_modules
from pyrovae.pairs.refinement import Repeated

LARGE = 100.0  # data beyond this may be what takes a distribution's parameters out of range


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


def batched(
    x: Any, c: Sequence[Any] = (), modules: Sequence[nn.Module] = ()
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return data and context as tensors on the modules' device, x in their dtype.

    Args:
        x: data (N, ...), a tensor or array.
        c: context, tensors or arrays of N rows; whole numbers stay whole.
        modules: the pair's, whose first floating parameter gives device and dtype; without one
            whole-numbered x becomes torch's default dtype.

    NaN in x is let through where a module has the attribute `missing` (`likelihoods.Masked`).

    Raises:
        ValueError: no rows, rows that differ in number, a dtype that is no number, or values that
            are not finite.
    """
    missing = any(getattr(m, "missing", False) for module in modules for m in module.modules())
    parameters = (p for m in modules for p in m.parameters() if p.is_floating_point())
    like = next(parameters, None)
    tensors: list[Tensor] = []
    for i, value in enumerate((x, *c)):
        name = "x" if i == 0 else f"context {i}"
        try:
            t = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"expected {name} to be an array of numbers; got {error}") from None
        if t.is_complex():
            raise ValueError(f"expected {name} to be real; got {t.dtype}: take its parts")
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
        bad = t.isinf() if missing and i == 0 else ~t.isfinite()
        if bool(bad.any()):
            first = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"expected {name} to be finite; got {int(bad.sum())} bad values, the first "
                f"{float(t[first])} at index {first}: drop the rows, fill the values in, or "
                "take likelihoods.Masked, which integrates out what is NaN"
            )
        tensors.append(t)
    return tensors[0], tuple(tensors[1:])


def traces(
    model: Callable, guide: Callable, x: Tensor, c: Sequence[Tensor]
) -> tuple[poutine.Trace, poutine.Trace]:
    """Run the guide, then the model with the guide's latents; nothing shows outside."""
    with poutine.block(hide_types=["sample", "observe"]), Repeated():
        guide_trace = poutine.trace(guide).get_trace(x, *c)
    return replayed(model, guide_trace, x, c), guide_trace


def replayed(
    model: Callable, guide_trace: poutine.Trace, x: Tensor, c: Sequence[Tensor]
) -> poutine.Trace:
    """Run the model with the guide's latents."""
    with poutine.block(hide_types=["sample", "observe"]), Repeated():
        return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x, *c)


def _why_not(model: Callable, guide: Callable, x: Tensor, c: Sequence[Tensor]) -> str | None:
    """Return the site whose event shapes differ, where each side runs alone but not together."""
    try:
        with poutine.block(hide_types=["sample", "observe"]), Repeated():
            ours, theirs = (samples(poutine.trace(f).get_trace(x, *c)) for f in (model, guide))
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


def samples(trace: poutine.Trace) -> dict[str, Any]:
    """Return the random variables of a trace, the plates' indices left out."""
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
            model_trace, guide_trace = traces(model, guide, x, c)
        except (ValueError, RuntimeError, IndexError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            cause = _why_not(model, guide, x, c)
            if cause is None and ("plate" in reason or not isinstance(error, ValueError)):
                cause = (
                    "are event dimensions declared with .to_event, and is the data's plate of size "
                    "len(x) at dim -1?"
                )
            largest = float(x.abs().max()) if x.numel() else 0.0
            if cause is None and "constraint" in reason and largest > LARGE:
                cause = (
                    "expected data that the networks' first weights can take; got numbers as "
                    f"large as {largest:.3g}: scale them, to unit variance for instance; counts "
                    "are what they are: give the posterior an input_scale (1e-3, say)"
                )
            raise ValueError(
                f"the pair cannot be run on {len(x)} rows: {reason}"
                + (f" ({cause})" if cause else "")
            ) from error
    ours, theirs = samples(model_trace), samples(guide_trace)
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
            distribution=_name(node["fn"]),
            support=node["fn"].support,
            batch_shape=tuple(node["fn"].batch_shape),
            event_shape=tuple(node["fn"].event_shape),
            plates=tuple(f.name for f in frames),
            reparameterised=name in theirs and bool(theirs[name]["fn"].has_rsample),
        )
    around = next((s.plates for s in sites.values() if s.is_datum), tuple(plates))
    data_plate = next(
        (p for n in around if (p := plates[n]).dim == -1 and p.subsample_size == len(x)), None
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
    _check(site.name, site.distribution, site.support, x, first_row)


def for_any_rows(site: Site) -> Site | None:
    """Return a site, seen on some rows, as it is on any; None where its support differs by row."""
    support = site.support
    while isinstance(support, dist.constraints.independent):
        support = support.base_constraint
    support = copy.copy(support)
    for name in ("lower_bound", "upper_bound"):
        if hasattr(support, name):
            bound = torch.as_tensor(getattr(support, name)).flatten()
            if not bool((bound == bound[0]).all()):
                return None
            setattr(support, name, bound[0])
    return replace(site, support=support)


def check_values(name: str, distribution: Any, x: Tensor) -> None:
    """Refuse values off a distribution's support, as `check_support` does."""
    _check(name, _name(distribution), distribution.support, x, 0)


def _name(distribution: Any) -> str:
    return type(getattr(distribution, "base_dist", distribution)).__name__


def _check(name: str, distribution: str, support: Any, x: Tensor, first_row: int) -> None:
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
        f"site {name!r}: expected data on the support of {distribution} ({kind}{within}); got "
        f"{int((~good).sum())} of {good.numel()} values off it, the first "
        f"{float(x[row, *place].flatten()[0]):.6g} at index {(first_row + row, *place)}: {remedy}"
    )
