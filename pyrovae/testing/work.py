"""A pair under check: run once, in float64 where it can be, with its parameters at hand."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrovae.distributions import seeded
from pyrovae.importance import Structure, inspect, simulate
from pyrovae.importance.structure import samples, traces
from pyrovae.nets import in_double


class Parameters(Messenger):
    """Collect the `pyro.param` statements: name, and what the program offered as initial value."""

    def __init__(self) -> None:
        super().__init__()
        self.offered: list[tuple[str, Any]] = []

    def _pyro_post_param(self, msg: Any) -> None:
        self.offered.append((msg["name"], msg["args"][1] if len(msg["args"]) > 1 else None))

    def stored(self) -> dict[str, Tensor]:
        """Return the store's unconstrained tensors under the names seen."""
        store = dict(pyro.get_param_store().named_parameters())
        return {name: store[name] for name, _ in self.offered if name in store}


@dataclass(frozen=True)
class Work:
    """A pair and its data, ready for the checks.

    Attributes:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        c: context.
        modules: of the pair.
        structure: of the pair.
        offered: name and initial value of each `pyro.param` statement, those of modules too.
        parameters: unconstrained tensors that the pair computes with, by name.
        double: are all log-densities computed in float64?
        seed: of the draws.
    """

    model: Callable
    guide: Callable
    x: Tensor
    c: tuple[Tensor, ...]
    modules: tuple[nn.Module, ...]
    structure: Structure
    offered: tuple[tuple[str, Any], ...]
    parameters: dict[str, Tensor]
    double: bool
    seed: int

    @property
    def tolerance(self) -> float:
        """What rounding may do to a log-density v, as a part of 1 + |v|."""
        return 1e-8 if self.double else 1e-4

    @property
    def gradient_tolerance(self) -> float:
        """What rounding may do to a gradient, as a part of its norm."""
        return 1e-6 if self.double else 1e-3

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the latent sites of both sides."""
        return tuple(s.name for s in self.structure.latents if s.in_model and s.in_guide)

    @property
    def discrete(self) -> bool:
        """Is any latent discrete?"""
        return any(s.support.is_discrete for s in self.structure.latents)

    @property
    def reparameterised(self) -> bool:
        """Does every latent's guide have `rsample`?"""
        return all(s.reparameterised for s in self.structure.latents)

    def rows(self, index: Tensor | slice) -> "Work":
        """Return the same pair on some of the rows."""
        return replace(self, x=self.x[index], c=tuple(t[index] for t in self.c))

    def repeated(self, k: int) -> "Work":
        """Return the same pair on every row k times: rows 0 .. N-1, k times over."""
        return self.rows(torch.arange(len(self.x)).repeat(k))

    def run(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the sample sites of the model and of the guide, after one run of both."""
        with seeded(self.seed if seed is None else seed):
            model_trace, guide_trace = traces(self.model, self.guide, self.x, self.c)
        return samples(model_trace), samples(guide_trace)

    def draws(self, k: int, seed: int | None = None) -> dict[str, Tensor]:
        """Return k draws a datum of the guide's sites, (k, N, *event_shape), without gradients."""
        many = self.repeated(k)
        drawn = simulate(
            self.guide, many.x, *many.c,
            seed=self.seed if seed is None else seed, modules=self.modules,
        )  # fmt: skip
        return {name: t.reshape(k, len(self.x), *t.shape[1:]) for name, t in drawn.items()}


@contextlib.contextmanager
def prepared(
    model: Callable,
    guide: Callable,
    x: Tensor,
    c: tuple[Tensor, ...],
    modules: Sequence[nn.Module],
    seed: int,
) -> Iterator[Work]:
    """Run a pair, and inside the block compute in float64 if it can be run so.

    Modules in closures are not found, but their parameters are, in Pyro's store.

    Raises:
        Exception: whatever the pair raises, where it cannot be run.
    """
    structure = inspect(model, guide, x, *c, modules=modules)
    seen = Parameters()
    with seeded(seed), torch.no_grad(), seen:  # the second run: the first filled the store
        traces(model, guide, x, c)
    parameters = seen.stored()
    named = {name: p for m in modules for name, p in m.named_parameters() if p.requires_grad}
    known = {id(p) for p in parameters.values()}
    parameters |= {name: p for name, p in named.items() if id(p) not in known}
    work = Work(
        model, guide, x, c, tuple(modules), structure, tuple(seen.offered), parameters,
        double=False, seed=seed,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        lifted = _lifted(work, stack)
        yield lifted or replace(work, double=_in_float64(work))


def _lifted(work: Work, stack: contextlib.ExitStack) -> Work | None:
    """Return the work with its modules and parameters in float64 until `stack` closes."""
    holder = nn.Module()
    offered = [t for _, t in work.offered if isinstance(t, nn.Parameter)]
    for i, parameter in enumerate([*work.parameters.values(), *offered]):
        holder.register_buffer(str(i), parameter)
    with contextlib.ExitStack() as attempt:
        attempt.enter_context(in_double(*work.modules, holder))
        c = tuple(t.double() if t.is_floating_point() else t for t in work.c)
        double = replace(work, x=work.x.double(), c=c, double=True)
        try:
            structure = inspect(work.model, work.guide, double.x, *double.c, modules=work.modules)
            if structure.problems == work.structure.problems and _in_float64(double):
                stack.push(attempt.pop_all())
                return replace(double, structure=structure)
        except Exception:  # constants in float32 that no module holds: as it is, then
            pass
    return None


def _in_float64(work: Work) -> bool:
    if work.structure.problems:
        return True
    with torch.no_grad():
        sites = [s for side in work.run() for s in side.values()]
        drawn = [s["value"].dtype for s in sites if s["value"].is_floating_point()]
        scored = [s["fn"].log_prob(s["value"]).dtype for s in sites if not s["is_observed"]]
    return set(drawn + scored) <= {torch.float64}


def global_latents(work: Work) -> tuple[str, ...]:
    """Return the latents outside every plate on both sides, where others stand within the data's.

    They are no broken rule then: what is broken is broken for them alone.
    """
    latents = [s for s in work.structure.latents if s.in_guide]
    outside = tuple(s.name for s in latents if not s.plates)
    others = {site for site, _ in work.structure.problems} - set(outside)
    return () if others or len(outside) == len(latents) else outside


def given_globals(work: Work, names: Sequence[str]) -> Work:
    """Return the pair given one draw of its global latents: p(x, z|w) with q(z|x, w)."""
    with seeded(work.seed), torch.no_grad():
        drawn = samples(traces(work.model, work.guide, work.x, work.c)[1])
    values = {name: drawn[name]["value"] for name in names}

    def fixed(function: Callable) -> Callable:
        def run(*args: Tensor) -> object:
            with poutine.block(hide=list(names)), poutine.condition(data=values):
                return function(*args)

        return run

    model, guide = fixed(work.model), fixed(work.guide)
    structure = inspect(model, guide, work.x, *work.c, modules=work.modules)
    return replace(work, model=model, guide=guide, structure=structure)
