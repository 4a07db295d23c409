"""The pair under training: its objective a datum, its gradients and its parameters."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyrovae.distributions import mixed, reseed, seeded
from pyrovae.importance import (
    Site,
    Structure,
    analytic_kl_problem,
    check_support,
    for_any_rows,
    inspect,
    log_terms,
    not_finite,
)
from pyrovae.nets import evaluating
from pyrovae.nets.precision import bf16_matmuls
from pyrovae.objectives import with_beta
from pyrovae.objectives.joined import apart
from pyrovae.training import ranks, rundir
from pyrovae.training.batches import EVALUATION_ROWS, Batch, Epochs, Source
from pyrovae.training.compiled import CompiledStep, NotCompiled, is_worth_it

LOG = logging.getLogger(__name__)

MODULE_DIVIDER = "$$$"  # what Pyro puts between a module's name and its parameter's


def _analytic(objective: ELBO) -> bool:
    """Does an objective take KLs in closed form?"""
    return getattr(objective, "analytic_kl", isinstance(objective, TraceMeanField_ELBO))


class Trainee:
    """The pair under training: its objective per datum, and its parameters."""

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        objective: ELBO,
        modules: Sequence[nn.Module],
        precision: str = "float32",
    ) -> None:
        self.model, self.guide, self.objective = model, guide, objective
        self.modules, self.precision = modules, precision
        self.bare: list[str] = []  # parameters that no module owns: the caller's store has them
        self.loose: list[str] = []  # those, and what modules in the functions' closures own
        self.theirs: dict[str, Tensor] = {}
        self.valid = False
        self.fixed: Site | None = None  # the datum's, where its support is that of any rows
        self.compiled: CompiledStep | None = None
        self.asks = getattr(objective, "num_data", 0) is None  # how many data there are
        self._sizes: dict[int, int] = {}

    def check(self, data: Epochs, held_out: Source | None) -> None:
        """Refuse data off the support of the observed site; of a stream the first batch alone."""
        self._check_last(len(data.rows), data.batch_size)
        to_see = [(data.rows, data.in_order())]
        if held_out is not None:
            to_see.append((held_out, held_out.batches(EVALUATION_ROWS)))
        for rows, batches in to_see:
            row = 0
            for batch in batches:
                structure = inspect(self.model, self.guide, *batch, modules=self.modules)
                self.valid = not structure.problems
                self._check_draws(structure)
                self._check_order(batch)
                if structure.datum is None:
                    return
                check_support(structure.datum, batch[0], row)
                row += len(batch[0])
                if rows.streamed:
                    self.fixed = for_any_rows(structure.datum)
                    break

    def check_as_it_comes(self, data: Epochs, epoch: int, i: int, batch: Batch) -> None:
        """Refuse a stream's batch off the support of the observed site, by its rows' numbers."""
        datum = self.fixed  # an inspection would take as long as a step
        if datum is None:
            datum = inspect(self.model, self.guide, *batch, modules=self.modules).datum
        if datum is None:
            return
        try:
            check_support(datum, batch[0])
        except ValueError:  # said again, of its row among all
            for place in range(len(batch[0])):
                one = tuple(t[place : place + 1] for t in batch)
                site = inspect(self.model, self.guide, *one, modules=self.modules).datum
                if site is not None:
                    check_support(site, one[0], data.row(epoch, i, place))

    def _check_last(self, n: int, size: int) -> None:
        """Refuse a batch size that leaves too few data for the last batch."""
        coupled = getattr(self.objective, "couples_batch", False)
        least = max(getattr(self.objective, "least_rows", 1), ranks.size() if coupled else 1)
        last = n % size or size
        if last < least:
            raise ValueError(
                f"expected at least {least} data in each batch for {type(self.objective).__name__}"
                f"{', one a process' if least == ranks.size() > 1 else ''}; {n} data in batches of "
                f"{size} leave {last} for the last: take another batch_size"
            )

    def _check_draws(self, structure: Structure) -> None:
        """Refuse draws without a gradient where the objective has none for them."""
        for site in structure.latents:
            if _analytic(self.objective) and not site.reparameterised:
                raise ValueError(
                    f"site {site.name!r}: expected draws with a gradient (rsample) for "
                    f"{type(self.objective).__name__}; got {site.distribution}: take Trace_ELBO "
                    "(--objective trace), which has the score function's, or a guide such as "
                    "straight-through or gumbel-softmax"
                )

    def _check_order(self, batch: Batch) -> None:
        """Refuse a guide for which KLs in closed form are wrong where the objective takes them."""
        if _analytic(self.objective):
            problem = analytic_kl_problem(self.model, self.guide, *batch, modules=self.modules)
            if problem is not None:
                raise ValueError(problem)

    @contextlib.contextmanager
    def told(self, num_data: int, time: float) -> Iterator[None]:
        """Tell the objective how many data there are, if it asks, and the time by its clock.

        Both are as they were afterwards.
        """
        clock = getattr(self.objective, "clock", None)
        before = getattr(self.objective, "num_data", None), getattr(clock, "epoch", None)
        if self.asks:
            self.objective.num_data = num_data
        if clock is not None:
            clock.epoch = time
        try:
            yield
        finally:
            if self.asks:
                self.objective.num_data = before[0]
            if clock is not None:
                clock.epoch = before[1]

    @contextlib.contextmanager
    def own_store(self) -> Iterator[None]:
        """Work in a parameter store of one's own; hand the bare parameters back at the end."""
        store = pyro.get_param_store()
        self.theirs = {name: store[name].detach().clone() for name in store.keys()}
        trained: dict[str, tuple[Tensor, Any]] = {}
        try:
            with store.scope():
                try:
                    yield
                finally:
                    constraints = store.get_state()["constraints"]
                    for name in self.bare:
                        trained[name] = store[name].detach().clone(), constraints[name]
        finally:
            for name, (value, constraint) in trained.items():
                if name in store:
                    del store[name]
                store.setdefault(name, value, constraint)

    def parameters(self, batch: Batch) -> list[Tensor]:
        """Find what SVI would train on a batch; bare parameters start from the caller's values."""
        store = pyro.get_param_store()
        with seeded(0), apart(), poutine.trace(param_only=True) as capture:
            self.objective.loss_and_grads(self.model, self.guide, *batch)
        owned = {id(p) for m in self.modules for p in m.parameters()}
        leaves: dict[int, Tensor] = {}
        for name in capture.trace.nodes:
            store[name].unconstrained().grad = None
            if id(store[name].unconstrained()) not in owned:
                self.loose.append(name)
                if MODULE_DIVIDER not in name:
                    self.bare.append(name)
                    if name in self.theirs:
                        store[name] = self.theirs[name]
            leaf = store[name].unconstrained()
            leaves[id(leaf)] = leaf
        if not leaves:
            raise ValueError(
                "expected a pair with parameters; got none: register networks with pyro.module, or "
                "use pyro.param"
            )
        return list(leaves.values())

    def live(self) -> dict[str, Tensor]:
        """Return the modules' own tensors, buffers too, and the loose parameters' unconstrained.

        Those are what the steps change: copied back, training goes on bit for bit.
        """
        store = pyro.get_param_store()
        found = {rundir.PARAM + name: store[name].unconstrained() for name in self.loose}
        for i, module in enumerate(self.modules):
            found |= {f"{i}:{k}": t for k, t in module.state_dict(keep_vars=True).items()}
        return found

    def state(self) -> dict[str, Tensor]:
        """Return copies of the modules' tensors, buffers too, and of the loose parameters."""
        return rundir.state_of(self.modules, self.loose)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set modules and loose parameters back, in place."""
        rundir.restore(state, self.modules)

    def plate_size(self, batch: Batch) -> int:
        """Return the size of the plate that holds the data, for a batch of this length."""
        n = len(batch[0])
        if n not in self._sizes:
            plate = inspect(self.model, self.guide, *batch, modules=self.modules).data_plate
            self._sizes[n] = n if plate is None else plate.size
        return self._sizes[n]

    def compile(self, mode: str, parameters: list[Tensor], batch: Batch, rows: int) -> None:
        """Compile the step at batches like this one, if that is wanted and can be done."""
        rows *= self.objective.num_particles
        if mode == "never" or (mode == "auto" and not is_worth_it(parameters, rows)):
            return
        mine = ranks.share(len(batch[0]))
        batch = tuple(t[mine] for t in batch)
        size = self.plate_size(batch)

        def loss(beta: Tensor, batch: Batch) -> Tensor:
            with self._rounded(), self._at(beta) as (model, guide):
                value: Tensor = self.objective.differentiable_loss(model, guide, *batch)
            return value / size

        try:
            if ranks.size() > 1 and getattr(self.objective, "couples_batch", False):
                raise NotCompiled("the processes join what they need of the batch")
            self.compiled = CompiledStep(loss, self.objective, parameters, batch)
        except NotCompiled as reason:
            if mode == "always":
                raise ValueError(f"the step cannot be compiled: {reason}") from reason
            LOG.warning("The step is not compiled, and takes Pyro's time: %s", reason)

    def step(
        self, batch: Batch, epoch: float, beta: float, parameters: Sequence[Tensor], noise: int
    ) -> float:
        """Leave the gradient of objective / plate size in `.grad`, and return its value.

        The noise depends on the number that is given alone, so that any step can be taken again.
        Where several processes share the batch, the gradient is that of all of it.
        """
        mine = ranks.share(len(batch[0]))
        rows = mine.stop - mine.start
        part = rows / len(batch[0])
        reseed(mixed(noise, ranks.rank()))
        loss = 0.0
        if rows:
            loss = self._step(tuple(t[mine] for t in batch), epoch, beta, parameters, part)
        return self._of_all(loss, part, parameters)

    def _step(
        self, batch: Batch, epoch: float, beta: float, parameters: Sequence[Tensor], part: float
    ) -> float:
        """Do the same for a part of a batch; `part` is how much of it this is."""
        if self.compiled is not None and self.compiled.fits(batch):
            return float(self.compiled(beta, batch))
        size = self.plate_size(batch)
        unit: float  # of the gradient
        if hasattr(self.objective, "clock"):
            self.objective.clock.epoch = epoch
        # the first batch went through with validation on
        with pyro.validation_enabled(False), self._rounded(), self._at(beta) as (model, guide):
            if ranks.size() > 1 and getattr(self.objective, "couples_batch", False):
                # what the parts have to say of each other's rows counts as they do
                loss = self.objective.differentiable_loss(model, guide, *batch) / size
                (loss * part).backward()
                loss, unit = loss.detach(), part
            else:
                loss = self.objective.loss_and_grads(model, guide, *batch) / size
                unit = size
        for p in parameters:
            if p.grad is not None:
                p.grad.div_(unit)
        return float(loss)

    def _of_all(self, loss: float, part: float, parameters: Sequence[Tensor]) -> float:
        """Put the gradient of the whole batch in `.grad`, and return its loss."""
        if ranks.size() == 1:
            return loss
        total = parameters[0].new_tensor([loss * part])
        for p in parameters:  # one that a part does not reach has no gradient there
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad.mul_(part)
        ranks.add([total, *(p.grad for p in parameters if p.grad is not None)])
        return float(total)

    def explain(self, batch: Batch, beta: float, noise: int) -> str:
        """Say where a step that is not finite is not, as the end of a sentence."""
        mine = ranks.share(len(batch[0]))
        with (
            torch.no_grad(), seeded(mixed(noise, ranks.rank())), pyro.validation_enabled(False),
            self._at(beta) as pair,
        ):  # fmt: skip
            site = not_finite(*pair, *(t[mine] for t in batch))
        if site is not None:
            return f", {site}"
        for module in self.modules:
            for name, p in module.named_parameters():
                if p.grad is not None and not bool(p.grad.isfinite().all()):
                    return f", first in the gradient of {name}"
        return ""

    def loss(self, rows: Source) -> float:
        """Return the objective at beta = 1, a mean per datum, with the same noise every time.

        Schedules are at their end: under a capacity that grows, say, later epochs would seem worse.
        """
        total = 0.0
        with (
            torch.no_grad(), evaluating(*self.modules), self.told(len(rows), math.inf),
            self._at(1.0) as pair, apart(),
        ):  # fmt: skip
            for i, batch in self._dealt(rows.batches(EVALUATION_ROWS)):
                with seeded(mixed(0, i)):
                    loss = self.objective.loss(*pair, *batch) / self.plate_size(batch)
                total += float(loss) * len(batch[0])
        return sum(ranks.gathered(total)) / len(rows)

    def terms(self, batches: Iterator[Batch]) -> tuple[float | None, float | None]:
        """Return the mean reconstruction and KL, by one draw of z a datum."""
        if not self.valid:  # a global latent has no term a datum
            return None, None
        reconstruction, kl, rows = 0.0, 0.0, 0
        for seed, batch in self._dealt(batches):
            with torch.no_grad():
                terms = log_terms(self.model, self.guide, *batch, seed=seed, modules=self.modules)
            reconstruction += float(terms.log_likelihood.sum())
            kl += float((terms.log_guide - terms.log_prior).sum())
            rows += len(batch[0])
        found = ranks.gathered((reconstruction, kl, rows))
        one, other, n = (float(sum(column)) for column in zip(*found, strict=True))
        return one / n, other / n

    def _dealt(self, batches: Iterator[Batch]) -> Iterator[tuple[int, Batch]]:
        """Yield the batches of this process, each with its number."""
        for i, batch in enumerate(batches):
            if i % ranks.size() == ranks.rank():
                yield i, batch

    def _rounded(self) -> contextlib.AbstractContextManager[Any]:
        return bf16_matmuls() if self.precision == "bf16" else contextlib.nullcontext()

    @contextlib.contextmanager
    def _at(self, beta: float | Tensor) -> Iterator[tuple[Callable, Callable]]:
        if hasattr(self.objective, "beta"):  # it works on the parts, and sees no handler
            before = self.objective.beta
            self.objective.beta = beta
            try:
                yield self.model, self.guide
            finally:
                self.objective.beta = before
        else:
            yield with_beta(self.model, beta), with_beta(self.guide, beta)
