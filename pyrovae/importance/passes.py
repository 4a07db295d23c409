"""One pass of draws through any valid pair: as it is written, or compiled."""

import contextlib
import logging
import math
import weakref
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.distributions import seeded
from pyrovae.importance.structure import Repeated, check_values, replayed, samples, traces
from pyrovae.nets.compiling import CompiledDraws, NotCompiled

LOG = logging.getLogger(__name__)

AGREEMENT = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative, of a pass's log-densities
SHAPES = 2  # of passes that are compiled in one call: of most rows, and of the last
REMEMBERED = 4  # compiled passes of a pair


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


def _log_prob(site: Any, *rows: int) -> Tensor:
    """Return log p of a site, of shape `rows`: masked, but without the plate's or other scales."""
    try:
        log_p = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except ValueError:
        check_values(site["name"], site["fn"], site["value"])  # says more than torch does
        raise
    log_p = scale_and_mask(log_p, mask=site["mask"])
    if tuple(log_p.shape) != rows:
        raise ValueError(
            f"site {site['name']!r}: expected a log-density of shape {rows}, one a row; got "
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


def _passes(
    model: Callable,
    guide: Callable,
    x: Tensor,
    c: Sequence[Tensor],
    k: int,
    size: int,
    compiled: "CompiledPasses | None" = None,
) -> Iterator[tuple[slice, Terms, Any]]:
    """Yield, pass by pass, the rows, their terms (draws, rows), and p(x|z) of (draws * rows,).

    A guide of a single site with `rsample` runs once for all draws of some rows: no other draw can
    have entered its distribution, so k draws of this are those of k rows alike, noise and all.
    Values are checked against their supports in the first pass of some rows, which sees all of x.
    """
    done: slice | None = None
    for rows, draws in _chunks(len(x), k, size):
        first, done = rows != done, rows
        data, context = x[rows], [t[rows] for t in c]
        if first:
            site = _only_site(guide, data, context) if k > 1 else None
            if site is not None and not site["fn"].has_rsample:
                site = None
        fast = None if compiled is None else compiled.like(data, context, draws, site)
        if fast is not None:
            if first:
                _look_at(model, guide, data, context)
            terms, datum = fast(data, context), None
        else:
            with contextlib.nullcontext() if first else pyro.validation_enabled(False):
                terms, datum = _pass(model, guide, data, context, draws, site)
        _check_finite(terms.log_weight)
        yield rows, terms, datum


def _look_at(model: Callable, guide: Callable, x: Tensor, c: Sequence[Tensor]) -> None:
    """Let the distributions validate their values, at a draw that is not counted."""
    with seeded(0):
        _pass(model, guide, x, c, 1, None)


def _check_finite(log_w: Tensor) -> None:
    """Refuse log weights (k, n) that are NaN or +inf; -inf is a weight of 0."""
    if bool((bad := log_w.isnan() | (log_w == math.inf)).any()):
        raise ValueError(
            f"expected finite densities; got log weights that are NaN or +inf at {int(bad.sum())} "
            f"of {bad.numel()} draws, of {int(bad.any(0).sum())} data: are the networks' outputs "
            "finite?"
        )


def _pass(
    model: Callable, guide: Callable, x: Tensor, c: Sequence[Tensor], k: int, site: Any
) -> tuple[Terms, Any]:
    """Return the terms (k, N) at k draws a datum, and p(x|z) of batch shape (k * N,).

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        c: context, N rows each.
        k: draws a datum.
        site: the guide's one site, already run; None to run the guide.
    """
    n, rows = len(x), _repeat(x, k)
    context = [_repeat(t, k) for t in c]
    if site is None:
        model_trace, guide_trace = traces(model, guide, rows, context)
        posterior = rows.new_zeros(len(rows))
        for drawn in samples(guide_trace).values():
            posterior = posterior + _log_prob(drawn, len(rows))
    else:
        z = site["fn"]((k,))
        posterior = _log_prob(site | {"value": z}, k, n).flatten()
        guide_trace = poutine.Trace()  # of the site alone: the plate's indices are the model's own
        guide_trace.add_node(site["name"], **site | {"value": z.flatten(0, 1)})
        model_trace = replayed(model, guide_trace, rows, context)
    likelihood, prior, datum = rows.new_zeros(len(rows)), rows.new_zeros(len(rows)), None
    for drawn in samples(model_trace).values():
        if drawn["value"] is rows:
            datum = drawn["fn"]
        if drawn["is_observed"]:
            likelihood = likelihood + _log_prob(drawn, len(rows))
        else:
            prior = prior + _log_prob(drawn, len(rows))
    return Terms(*(t.reshape(k, n) for t in (likelihood, prior, posterior))), datum


def _only_site(guide: Callable, x: Tensor, c: Sequence[Tensor], drawn: bool = True) -> Any:
    """Return the guide's site as one run made it, or None where it has several.

    The run draws a value, which must not move the generator; or it takes zeros in its place.
    """
    drawing = seeded(0) if drawn else _Zeros()
    with poutine.block(hide_types=["sample", "observe"]), drawing, Repeated():
        sites = list(samples(poutine.trace(guide).get_trace(x, *c)).values())
    return sites[0] if len(sites) == 1 and tuple(sites[0]["fn"].batch_shape) == (len(x),) else None


class _Zeros(Messenger):
    """Give zeros for draws."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and not site_is_subsample(msg):
            msg["value"], msg["done"] = torch.zeros(msg["fn"].shape()), True


class CompiledPass:
    """The terms at some draws a datum, compiled; the guide runs once, if one run serves all draws.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...), an example.
        c: context, N rows each.
        k: draws a datum.
        single: is the guide of a single site, with `rsample`?

    Raises:
        NotCompiled: what cannot be traced or compiled.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        x: Tensor,
        c: Sequence[Tensor],
        k: int,
        single: bool,
    ) -> None:
        def terms(x: Tensor, *c: Tensor) -> Terms:
            site = _only_site(guide, x, c, drawn=False) if single else None
            return _pass(model, guide, x, c, k, site)[0]

        with torch.no_grad(), pyro.validation_enabled(False):
            self.function = CompiledDraws(terms, [x, *c])
        self.at: Tensor | None = None

    def __call__(self, x: Tensor, c: Sequence[Tensor]) -> Terms:
        """Return the terms, (k, N) each."""
        if self.at is None or self.at.data_ptr() != x.data_ptr():
            self.function.start(x, *c)
            self.at = x
        likelihood, prior, posterior = cast(list[Tensor], self.function())
        return Terms(likelihood, prior, posterior)


Key = tuple[Any, ...]
MEMORY: MutableMapping[Any, dict[Key, dict[Key, CompiledPass]]] = weakref.WeakKeyDictionary()


class CompiledPasses:
    """Compiled passes of a pair, for as long as one call lasts.

    One that was compiled in an earlier call is taken from memory; each has to agree with the pass
    as it is written, on the same noise, once a call.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        must: raise ValueError where they cannot be compiled; otherwise say so, once.
    """

    def __init__(self, model: Callable, guide: Callable, must: bool = False) -> None:
        self.model, self.guide, self.must = model, guide, must
        self.refused = False
        self.passes: dict[Key, CompiledPass] = {}

    def like(self, x: Tensor, c: Sequence[Tensor], k: int, site: Any) -> CompiledPass | None:
        """Return the pass for such data and k draws; None where it is not compiled."""
        key = (k, torch.get_num_threads(), *((t.shape, t.dtype) for t in (x, *c)))
        if key in self.passes or self.refused or len(self.passes) == SHAPES:
            return self.passes.get(key)
        try:
            self.passes[key] = self._agreeing(key, x, c, k, site)
        except NotCompiled as reason:
            if self.must:
                raise ValueError(f"the passes cannot be compiled: {reason}") from reason
            LOG.warning("The passes are not compiled, and take Pyro's time: %s", reason)
            self.refused = True
        return self.passes.get(key)

    def _agreeing(
        self, key: Key, x: Tensor, c: Sequence[Tensor], k: int, site: Any
    ) -> CompiledPass:
        with torch.random.fork_rng(), torch.no_grad():
            expected = _pass(self.model, self.guide, x, c, k, site)[0]
        memory = self._memory()
        if key in memory:
            with contextlib.suppress(NotCompiled):  # the pair may have changed since
                _agree(memory[key], x, c, expected)
                return memory[key]
        found = CompiledPass(self.model, self.guide, x, c, k, site is not None)
        _agree(found, x, c, expected)
        while len(memory) >= REMEMBERED:
            del memory[next(iter(memory))]
        memory[key] = found
        return found

    def _memory(self) -> dict[Key, CompiledPass]:
        """Return what was compiled of this pair; it is gone when the pair is."""
        owner, guide = (getattr(f, "__self__", f) for f in (self.model, self.guide))
        names = tuple(getattr(f, "__func__", None) for f in (self.model, self.guide))
        try:
            return MEMORY.setdefault(owner, {}).setdefault((weakref.ref(guide), *names), {})
        except TypeError:  # what cannot be referred to weakly is not remembered
            return {}


def _agree(fast: CompiledPass, x: Tensor, c: Sequence[Tensor], expected: Terms) -> None:
    """Refuse a compiled pass that differs from the pass as it is written, on the same noise."""
    with torch.random.fork_rng():
        fast.at = None  # the weights may have changed
        got = fast(x, c)
    for name, one, other in zip(Terms._fields, got, expected, strict=True):
        error, size = float((one - other).norm()), float(other.norm())
        if not error <= AGREEMENT.get(other.dtype, 1e-5) * (size + len(other) ** 0.5):
            raise NotCompiled(f"its {name} differs from Pyro's by {error:.2g} of {size:.2g}")
