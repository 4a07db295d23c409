"""Weighted draws with their graph: what objectives of one draw a datum, or many, are made of."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.importance.structure import Repeated, inspect, replayed, samples
from pyrovae.importance.weights import _log_prob, _repeat, _Unobserved

Scale = float | Tensor  # one for all data, or (N,)


@dataclass(frozen=True)
class Latent:
    """A latent site of one draw a datum.

    Attributes:
        name: of the site.
        guide: q, batch shape (N,).
        model: p, batch shape () or (N,).
        value: z (N, *event_shape).
        scale: what its log-densities are multiplied by, relative to the datum's.
        mask: of the site; None where there is none.
    """

    name: str
    guide: Any
    model: Any
    value: Tensor
    scale: Scale
    mask: Tensor | bool | None


@dataclass(frozen=True)
class Particles:
    """K draws z ~ q(z|x) of each datum: log-densities with their gradients, (K, N) in nats.

    Masks are honoured. A site's scale counts relative to that of the datum's site, so that a factor
    of the latents alone (beta) is in the weight; the datum's own is `scale`.

    Attributes:
        log_likelihood: log p(x|z).
        log_prior: log p(z).
        log_guide: log q(z|x).
        log_score: the part of log q(z|x) of the sites whose draws carry no gradient, unscaled; None
            where all do.
        scale: of each datum, by its plate and `poutine.scale`: it multiplies what is made of the
            log weights of one datum.
        plate_scale: of it, the plate's part: how many data a row stands for.
        latents: of one draw a datum (K = 1); empty otherwise.
        crossed: the draws, (K N, *event_shape) a site, where they pass from guide to densities.
        log_joint_at_rest: log p(x, z) at the same z without their gradients, (K, N), if asked for.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_guide: Tensor
    log_score: Tensor | None
    scale: Scale
    plate_scale: float = 1.0
    latents: tuple[Latent, ...] = ()
    crossed: tuple[Tensor, ...] = ()
    log_joint_at_rest: Tensor | None = None

    @property
    def log_joint(self) -> Tensor:
        """Return log p(x, z), (K, N)."""
        return self.log_likelihood + self.log_prior

    @property
    def log_weight(self) -> Tensor:
        """Return the log weight, log p(x, z) - log q(z|x), (K, N)."""
        return self.log_joint - self.log_guide

    def weigh_gradient(self, weight: Tensor) -> None:
        """Multiply by weight (K, N) the gradient that comes back from the densities to the draws.

        It is the gradient *at z*: what depends on the same parameters otherwise (a prior made of
        the encoder, say) is left alone.
        """
        for z in self.crossed:
            if z.requires_grad:
                factor = weight.reshape(-1, *[1] * (z.dim() - 1))
                z.register_hook(lambda gradient, factor=factor: gradient * factor)


def particles(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_particles: int = 1,
    draws: str = "reparameterised",
    at_rest: bool = False,
) -> Particles:
    """Draw z ~ q(z|x) `num_particles` times a datum, by the global generator, and keep the graph.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        num_particles: K.
        draws: "reparameterised", z as the guide draws it; "path", the same, but log q(z|x) has no
            gradient except that through z (its score is taken off again: the guide replayed at the
            detached z); "detached", z has no gradient.
        at_rest: evaluate log p(x, z) at the detached z besides.

    Raises:
        ValueError: no valid pair: the message names the site and the rule. With "path": a site
            whose draws carry no gradient.
    """
    with _explained(model, guide, x, c):
        return _particles(model, guide, x, c, num_particles, draws, at_rest)


def simulated(model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Particles:
    """Draw (z, x') ~ p(z, x' | c), one a row of x, and return log q(z | x', c) as `log_guide`.

    The draws carry no gradient, and come from the global generator. Of x only shape and dtype
    matter; the other log-densities are left out (0).

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.

    Raises:
        ValueError: no valid pair, or a model that observes no site whose value is x.
    """
    n = len(x)
    with _explained(model, guide, x, c):
        with torch.no_grad():
            seen = samples(_run(model, x, c))
            datum = _datum(seen, x)
            if datum is None or datum["value"] is not x:
                raise ValueError("expected a model with an observed site whose value is x")
            trace = _run(_Unobserved()(model), x, c)
        fresh = trace.nodes[datum["name"]]["value"]
        outer, log_q = _own_scale(datum, n), x.new_zeros(1, n)
        sites = samples(_run(guide, fresh, c, trace))
        _check_names(seen, sites)
        for site in sites.values():
            log_q = log_q + _log_prob(site, n) * _relative(_own_scale(site, n), outer)
        nothing = torch.zeros_like(log_q)
        return Particles(nothing, nothing, log_q, None, _outer(outer, datum))


def _particles(
    model: Callable,
    guide: Callable,
    x: Tensor,
    c: Sequence[Tensor],
    k: int,
    draws: str,
    at_rest: bool,
) -> Particles:
    n = len(x)
    trace = _run(guide, x, c)
    sites = samples(trace)
    around = next(iter(sites.values()), None)  # the plate as it is without repetition
    rows, context = (x, c) if k == 1 else (_repeat(x, k), [_repeat(t, k) for t in c])
    batch: tuple[int, ...] = (k * n,)
    # a single site's distribution has seen no draw: it serves all k, and the guide runs once
    alone = len(sites) == 1 and all(tuple(s["fn"].batch_shape) == (n,) for s in sites.values())
    if alone and k > 1:
        batch = k, n
        sites = {name: s | {"value": s["fn"]((k,))} for name, s in sites.items()}
    elif k > 1:
        trace = _run(guide, rows, context)
        sites = samples(trace)

    def density(site: Any, value: Tensor) -> Tensor:
        value = value.reshape(site["value"].shape)
        return _log_prob(site | {"value": value}, *batch).reshape(k, n)

    def log_q(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return log q(z|x) of each site at given draws, which its distributions depend on too."""
        at = sites if alone else samples(_run(guide, rows, context, _with(trace, values)))
        return {
            name: density(sites[name] | {"fn": s["fn"]}, values[name]) for name, s in at.items()
        }

    # each draw a tensor of its own, by which only what the densities say of it flows back
    crossed = {name: _flat(s["value"], batch) for name, s in sites.items()}
    if draws == "detached":
        crossed = {name: z.detach() for name, z in crossed.items()}
    if draws == "reparameterised":  # at the draws as they came: flows remember where from
        posterior = {name: density(s, s["value"]) for name, s in sites.items()}
    else:
        posterior = log_q(crossed)
    if draws == "path":
        _check_gradients(sites)
        score = log_q({name: z.detach() for name, z in crossed.items()})
        posterior = {
            name: q - (score[name] - score[name].detach()) for name, q in posterior.items()
        }
    ours = samples(replayed(model, _with(trace, crossed), rows, context))
    _check_names(ours, sites)
    datum = _datum(ours, rows)
    outer = 1.0 if datum is None else _own_scale(datum, n)

    def relative(site: Any) -> Scale:
        return _relative(_own_scale(site, n), outer)

    def log_p(sites: Mapping[str, Any], observed: bool) -> Tensor:
        of = (s for s in sites.values() if s["is_observed"] == observed)
        each = (_log_prob(s, k * n).reshape(k, n) * relative(s) for s in of)
        return sum(each, start=rows.new_zeros(k, n))

    log_guide = sum((posterior[n] * relative(s) for n, s in sites.items()), rows.new_zeros(k, n))
    score_of = [posterior[name] for name, s in sites.items() if not s["fn"].has_rsample]
    still = None
    if at_rest:
        there = _with(trace, {name: z.detach() for name, z in crossed.items()})
        theirs = samples(replayed(model, there, rows, context))
        still = log_p(theirs, observed=True) + log_p(theirs, observed=False)
    return Particles(
        log_likelihood=log_p(ours, observed=True),
        log_prior=log_p(ours, observed=False),
        log_guide=log_guide,
        log_score=torch.stack(score_of).sum(0) if score_of else None,
        scale=_outer(outer, around),
        plate_scale=1.0 if around is None else _plate_scale(around),
        latents=tuple(
            Latent(name, sites[name]["fn"], s["fn"], crossed[name], relative(s), s["mask"])
            for name, s in ours.items() if name in sites and k == 1
        ),
        crossed=tuple(crossed.values()),
        log_joint_at_rest=still,
    )  # fmt: skip


@contextlib.contextmanager
def _explained(model: Callable, guide: Callable, x: Tensor, c: Sequence[Tensor]) -> Iterator[None]:
    """Where the block fails, let `inspect` say which rule of a valid pair is broken, if one is."""
    try:
        yield
    except (ValueError, RuntimeError, IndexError, KeyError):
        inspect(model, guide, x[:2], *(t[:2] for t in c)).check()
        raise


def _run(
    function: Callable, x: Tensor, c: Sequence[Tensor], given: poutine.Trace | None = None
) -> poutine.Trace:
    """Trace a model or guide, at the values of a trace if one is given; nothing shows outside."""
    called = function if given is None else poutine.replay(function, trace=given)
    with poutine.block(hide_types=["sample", "observe"]), Repeated():
        return poutine.trace(called).get_trace(x, *c)


def _with(trace: poutine.Trace, values: Mapping[str, Tensor]) -> poutine.Trace:
    """Return a trace of the sites of another, at other values."""
    new = poutine.Trace()
    for name, value in values.items():
        new.add_node(name, **trace.nodes[name] | {"value": value})
    return new


def _flat(value: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Return draws (*batch, ...) as rows, a tensor of its own."""
    return value.flatten(0, 1) if len(batch) == 2 else value.view_as(value)


def _check_names(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse latents of the model or the guide alone."""
    latent = {name for name, s in ours.items() if not s["is_observed"]}
    own = {name for name, s in theirs.items() if not s["infer"].get("is_auxiliary")}
    if latent != own:
        raise ValueError(f"expected the same latent sites in model and guide; got {latent ^ own}")


def _check_gradients(sites: Mapping[str, Any]) -> None:
    for name, site in sites.items():
        base = getattr(site["fn"], "base_dist", site["fn"])
        biased = getattr(base, "biased_gradient", False)
        if biased or not site["fn"].has_rsample:
            why = ", whose draws' gradient is no derivative" if biased else ""
            raise ValueError(
                f"site {name!r}: expected draws with a gradient (rsample) for an estimator of its "
                f"path; got {type(base).__name__}{why}: take IWAE or ReweightedWakeSleep"
            )


def _datum(sites: Mapping[str, Any], x: Tensor) -> Any:
    """Return the observed site whose value is x; or else the first observed one, if any."""
    observed = [s for s in sites.values() if s["is_observed"]]
    return next((s for s in observed if s["value"] is x), next(iter(observed), None))


def _plate_scale(site: Any) -> float:
    """Return how many data each row of a site's plates stands for."""
    scale = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None:  # it subsamples
            scale *= frame.full_size / frame.size
    return scale


def _own_scale(site: Any, n: int) -> Scale:
    """Return a site's scale but for its plates', a number or (K, N)."""
    scale = site["scale"] / _plate_scale(site)
    return scale.reshape(-1, n) if isinstance(scale, Tensor) and scale.numel() > 1 else scale


def _relative(scale: Scale, outer: Scale) -> Scale:
    return 1.0 if scale is outer else scale / outer


def _outer(outer: Scale, site: Any) -> Scale:
    """Return the scale of each datum: the datum site's own, and the plate's around a site."""
    own = outer[0] if isinstance(outer, Tensor) and outer.dim() else outer
    return own if site is None else own * _plate_scale(site)
