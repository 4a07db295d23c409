"""What the sites of a pair depend on: whether KLs in closed form are right for it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrovae.distributions import seeded
from pyrovae.importance.structure import (
    Repeated,
    batched,
    find_modules,
    replayed,
    samples,
    traces,
)
from pyrovae.nets import evaluating

ROWS = 16  # that dependence is looked for in


def analytic_kl_problem(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    modules: Sequence[nn.Module] = (),
) -> str | None:
    """Return why KLs in closed form are wrong for a pair, or None where they are right.

    KL(q(a) || p(a|b)) in closed form integrates over a with b held where it was drawn. Its mean is
    that of log q(a) - log p(a|b) only if b is not drawn from a: no latent that the model's density
    of a depends on may descend from a in the guide (Pyro's docstring of `TraceMeanField_ELBO` has
    the condition; its code compares the order of the names alone). Sites whose KL has no closed
    form, and is sampled, are free of it.

    Dependence is what the graph of gradients shows, so that weights which are still zero count, or
    else what another value changes, for what is detached.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...); the first rows are looked at.
        *c: context, N rows each.
        modules: those that the functions hold in their closures.

    Returns:
        A sentence that names the sites and the remedy.
    """
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    rows, context = x[:ROWS], tuple(t[:ROWS] for t in c)
    with torch.no_grad(), evaluating(*found):
        crossed = list(_crossed(model, guide, rows, context))
    if not crossed:
        return None
    named = ", ".join(repr(s) for s in dict.fromkeys(site for two in crossed for site in two))
    told = ", ".join(f"p({a}|...) on {b!r}, drawn from {a!r}" for a, b in crossed)
    order = ", ".join(f"{b!r} before {a!r}" for a, b in crossed)
    return (
        f"sites {named}: expected, for KLs in closed form, no density of the model to depend on "
        f"what the guide draws from the same site; got a bottom-up guide: {told}. KL(q || p) would "
        "hold still what moves with the site, and its value be wrong: take Trace_ELBO (--objective "
        f"trace), or draw {order} in the guide"
    )


def _crossed(
    model: Callable, guide: Callable, x: Tensor, c: Sequence[Tensor]
) -> Iterator[tuple[str, str]]:
    """Yield sites (a, b): p(a) depends on b, b on a in the guide, and a's KL is closed."""
    with seeded(0):
        model_trace, guide_trace = traces(model, guide, x, c)
    ours, theirs = samples(model_trace), samples(guide_trace)
    drawn = [name for name in theirs if name in ours]
    before = {a: list(ours)[: list(ours).index(a)] for a in drawn}  # p(a) may depend on these alone
    turned = [(a, b) for i, a in enumerate(drawn) for b in drawn[i + 1 :] if b in before[a]]
    if not turned:
        return
    with seeded(1):
        other = samples(_traced(guide, x, c))

    def density(a: str, b: str, value: Tensor) -> Tensor:
        at = samples(replayed(model, _with(guide_trace, b, value), x, c))[a]
        log_p: Tensor = at["fn"].log_prob(theirs[a]["value"].detach())
        return log_p

    def draw(a: str, b: str, value: Tensor) -> Tensor:
        with seeded(2):
            at = samples(_traced(poutine.condition(guide, data={a: value}), x, c))[b]
        found: Tensor = at["value"]
        return found

    for a, b in turned:
        if (
            _closed(theirs[a]["fn"], ours[a]["fn"])
            and _depends(partial(density, a, b), theirs[b]["value"], other[b]["value"])
            and _depends(partial(draw, a, b), theirs[a]["value"], other[a]["value"])
        ):
            yield a, b


def _depends(f: Callable[[Tensor], Tensor], value: Tensor, other: Tensor) -> bool:
    """Does f(value) depend on value, by its graph or by what another value makes of it?"""
    leaf = value.detach()
    if leaf.is_floating_point():
        leaf.requires_grad_()
    with torch.enable_grad():
        at = f(leaf)
        if at.requires_grad and leaf.requires_grad:
            (gradient,) = torch.autograd.grad(at.sum(), leaf, allow_unused=True)
            if gradient is not None:
                return True
    return not torch.equal(at, f(other.detach()))


def _closed(q: Any, p: Any) -> bool:
    """Is KL(q || p) registered?"""
    try:
        kl_divergence(q, p)
    except NotImplementedError:
        return False
    return True


def _traced(function: Callable, x: Tensor, c: Sequence[Tensor]) -> poutine.Trace:
    with poutine.block(hide_types=["sample", "observe"]), Repeated():
        return poutine.trace(function).get_trace(x, *c)


def _with(trace: poutine.Trace, name: str, value: Tensor) -> poutine.Trace:
    """Return a trace that has another value at one site."""
    new = trace.copy()
    new.nodes[name] = new.nodes[name] | {"value": value}
    return new
