"""Is a pair valid, and do the estimators of its ELBO agree?"""

import contextlib
import functools
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
from torch import Tensor, nn

from pyrovae.distributions import seeded
from pyrovae.importance import batched, find_modules, inspect
from pyrovae.nets import evaluating
from pyrovae.testing import estimators, traced
from pyrovae.testing.report import Report, Row
from pyrovae.testing.work import Work, given_globals, global_latents, prepared

MAX_ROWS = 64

FINITE = "finite log-densities"

Check = Callable[[Work], Iterator[Row]]

ALWAYS: tuple[tuple[str, Check], ...] = (
    ("sites and plates", traced.sites),
    ("module names", traced.registered),
)
VALID: tuple[tuple[str, Check], ...] = (
    ("scales", traced.scales),
    ("subsample scale", traced.subsampling),
    ("reparameterisation", traced.reparameterisation),
    ("support", traced.supports),
    (FINITE, traced.finiteness),
    ("row independence", traced.row_independence),
)
WHOLE: tuple[str, Check] = ("TraceMeanField_ELBO", estimators.mean_field)
ESTIMATORS: tuple[tuple[str, Check], ...] = (
    ("Trace_ELBO", estimators.trace_elbo),
    ("log_weights", estimators.looped),
    WHOLE,
    ("density integrates to 1", estimators.normalisation),
    ("IWAE", estimators.bounds),
)
WITHIN = (*VALID, *ESTIMATORS)


def check_pair(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    modules: Sequence[nn.Module] = (),
    seed: int = 0,
) -> Report:
    """Check a model and guide: is the pair valid, and do the estimators of its ELBO agree?

    The rules of a valid pair; module names that other tensors hold; scales and masks of both sides,
    and the scale of a mini-batch; `rsample` and closed KLs; supports and finite log-densities; each
    row a function of its own row alone; Trace_ELBO, TraceMeanField_ELBO, `log_weights` and IWAE
    against one another and, where it is exact, log p(x), with gradients by parameter.

    What can be is compared at common random numbers, up to rounding; the rest alarms at 6 standard
    errors, seen twice over. A correct pair fails with probability below 2e-4. A sampled KL and a
    beta-ELBO are notes, not failures. Of a pair with latents outside the data's plate beside those
    within, what is asked of each datum is asked given one draw of them.

    The first 64 rows are used. Nothing is trained and nothing left changed: Pyro's parameter store,
    the modules and the global generator are as before. Modules are in evaluation mode, and in
    float64 where the pair can be run so.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...), N >= 2.
        *c: context, N rows each.
        modules: those that the functions hold in their closures.
        seed: of all draws.

    Returns:
        Report: `.ok`, `.rows`, `.failures` (each `.site`, `.cause`, `.message`); `str()` is the
        table, values in nats a datum.

    Raises:
        ValueError: x or c are no batch: fewer than 2 rows, or values that are not finite.

    Example:
        >>> import torch
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2, hidden=(3,))
        >>> assert check_pair(vae.model, vae.guide, torch.ones(5, 4)).ok
    """
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    if len(x) < 2:
        raise ValueError(f"expected x to have at least 2 rows; got {len(x)}")
    x, c = x[:MAX_ROWS], tuple(t[:MAX_ROWS] for t in c)
    store = pyro.get_param_store()
    with (
        warnings.catch_warnings(),
        store.scope(state=store.get_state()),
        seeded(seed),
        evaluating(*found),
        _parameters_kept(found),
    ):
        warnings.simplefilter("ignore")
        try:
            with prepared(model, guide, x, c, found, seed) as work:
                dtype = "float64" if work.double else "float32"
                rows = _rows(work)
        except Exception as error:
            dtype = "it cannot be run"
            rows = [
                _cannot_be_run(error, model, guide, x, c, found),
                *_unvalidated(model, guide, x, c, found, seed),
            ]
    names = f"model {_name(model)}, guide {_name(guide)}"
    return Report(f"{names}: {len(x)} rows, {dtype}", tuple(rows))


def _rows(work: Work) -> list[Row]:
    outside = global_latents(work)
    if not outside:
        return _checked(work, (*ALWAYS, *(() if work.structure.problems else WITHIN)))
    told = (
        f"{', '.join(outside)}: outside the data's plate, so log_weights, IWAE and evidence refuse "
        "the pair; the rows below are of the pair given one draw of it"
    )
    whole = _checked(work, (*ALWAYS[1:], WHOLE))
    rest = _checked(given_globals(work, outside), (ALWAYS[0], *WITHIN))
    return [*whole, Row("global latents", "note", told), *rest]


def _checked(work: Work, checks: Sequence[tuple[str, Check]]) -> list[Row]:
    rows: list[Row] = []
    for name, check in checks:
        if (name, check) in ESTIMATORS and any(r.name == FINITE and r.site for r in rows):
            break  # the estimators could tell nothing new
        try:
            rows += check(work)
        except Exception as error:  # whatever a user's functions raise
            reason = f"{type(error).__name__}: {_first_line(error)}"
            if any(r.verdict == "FAILS" for r in rows):
                told = textwrap.shorten(reason, 100)
                rows.append(Row(name, "note", f"not checked, as something fails above: {told}"))
            else:
                site = _site(error)
                rows.append(Row(name, "FAILS", f"{_prefix(site)}{reason}", site))
    return rows


def _cannot_be_run(
    error: Exception, model: Callable, guide: Callable, x: Tensor, c: Any, modules: Any
) -> Row:
    """Return the row of a pair that raises, with the rows that do so alone."""

    def alone(i: int) -> bool:
        try:
            inspect(model, guide, x[i : i + 1], *(t[i : i + 1] for t in c), modules=modules)
        except Exception:
            return False
        return True

    bad = [i for i in range(len(x)) if not alone(i)]
    where = f"; alone, row {bad[0]} fails and others do not" if 0 < len(bad) < len(x) else ""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    site = _site(error)
    detail = f"{_prefix(site)}{kind}{_first_line(error)}{where}"
    return Row("it can be run", "FAILS", detail, site or "pair")


def _unvalidated(
    model: Callable, guide: Callable, x: Tensor, c: Any, modules: Any, seed: int
) -> list[Row]:
    """Return what fails where Pyro does not validate, for a pair that it refuses to run."""
    try:
        with pyro.validation_enabled(False), prepared(model, guide, x, c, modules, seed) as work:
            rows = [*traced.sites(work), *traced.supports(work), *traced.finiteness(work)]
    except Exception:
        return []
    return [r for r in rows if r.verdict == "FAILS"]


def _site(error: Exception) -> str:
    """Return the site that an error message names, or nothing."""
    found = re.search(r"site '([^']+)'|site (\w+)", str(error))
    return (found.group(1) or found.group(2)) if found else ""


def _prefix(site: str) -> str:
    return f"site {site!r}: " if site else ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__name__)


@contextlib.contextmanager
def _parameters_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put back parameters that a PyroModule took over from the store."""
    owners = {m: dict(m._parameters) for module in modules for m in module.modules()}
    try:
        yield
    finally:
        for m, parameters in owners.items():
            m._parameters.update(parameters)
