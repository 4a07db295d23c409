"""`fit`: train a pair."""

import contextlib
import functools
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from tqdm import tqdm

from pyrovae.distributions import seeded
from pyrovae.importance import (
    Structure,
    analytic_kl_problem,
    check_support,
    find_modules,
    inspect,
    log_terms,
)
from pyrovae.nets import evaluating
from pyrovae.objectives import BetaELBO, with_beta
from pyrovae.optimise import Optimizer, Schedule, adam, descend
from pyrovae.training import rundir
from pyrovae.training.batches import EVALUATION_ROWS, Batch, Epochs, Source, Transform, source
from pyrovae.training.compiled import CompiledStep, NotCompiled, is_worth_it
from pyrovae.training.history import History

LOG = logging.getLogger(__name__)

Beta = float | Callable[[int], float]
Callback = Callable[[int, Mapping[str, float | None]], None]

NEARLY = 0.01  # of the last epoch's beta: sigmoids come near it, and are never there
TERMS_ROWS = 2000  # training rows that the terms are measured on where there is no validation
MODULE_DIVIDER = "$$$"  # what Pyro puts between a module's name and its parameter's


def fit(
    model: Callable,
    guide: Callable,
    train: Any,
    objective: ELBO | None = None,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    validation: Any = None,
    seed: int = 0,
    compile: str = "auto",
    run: str | Path | None = None,
    *,
    optimizer: Optimizer = adam,
    schedule: Schedule | None = None,
    beta: Beta | None = None,
    patience: int | None = None,
    clip_norm: float | None = None,
    transform: Transform | None = None,
    callbacks: Sequence[Callback] = (),
    device: str | torch.device | None = None,
    modules: Sequence[nn.Module] = (),
) -> History:
    """Train whatever SVI would train, with one torch optimizer over all parameters.

    Minimises objective / plate size, so losses and gradients are means per datum whatever the
    plate's scale. The same seed gives the same weights on one machine. Data are checked against
    the support of the observed site, after one pass of `transform`, before the first step.

    It works in a parameter store of its own: of the caller's store it reads and writes the bare
    `pyro.param`s (those that belong to no module) and nothing else.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        train: x (N, ...), a tuple (x, *c), or a torch Dataset of such items.
        objective: a Pyro ELBO; by default `TraceMeanField_ELBO()`.
        epochs: passes over the data, at the most.
        batch_size: rows of a step; the last batch of an epoch may be shorter, and weighs less.
        lr: learning rate.
        validation: like `train`; then the weights of the best epoch are kept.
        seed: of the order of the data, of `transform`, and of the draws of z.
        compile: "auto" compiles the step, without Pyro in its loop, where the training is long
            enough to be worth it and the step can be compiled; "always" whatever its length, or
            raises; "never". The noise is the same, and the weights are up to rounding.
        run: directory to write weights, history and, for a pair from `build`, its configuration to.
        optimizer: `optimizer(parameters, lr=lr)` gives a torch optimizer; by default fused Adam.
        schedule: factor of lr as a function of the part of training done; `optimise.cosine` is one.
        beta: factor of the latent sites' log-densities in model and guide alike, a number or a
            function of the epoch (from 0); by default the objective's own, or 1. The schedule of a
            `BetaELBO` moves at every step. Validation is always at beta = 1.
        patience: stop after this many epochs without a better validation loss, counted only while
            beta is what it is in the last epoch (full beta).
        clip_norm: upper bound of the gradient's 2-norm.
        transform: `transform(batch, generator)` gives the batch to train on, drawn afresh each
            epoch (`data.binarize` is one); the batch is x, or (x, *c).
        callbacks: each called with (epoch from 1, that epoch's record) after every epoch.
        device: where to train; moves the pair's modules, and the data.
        modules: those that the functions hold in their closures.

    Returns:
        History.

    Raises:
        ValueError: an argument out of its range, data off the support or not finite, or a pair that
            Pyro cannot run or that has nothing to train.
        FloatingPointError: the loss stopped being finite.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> history = fit(vae.model, vae.guide, torch.ones(32, 4), epochs=2)
        >>> len(history["loss"])
        2
    """
    check_arguments(epochs, batch_size, lr, compile, patience, clip_norm, validation)
    objective = TraceMeanField_ELBO() if objective is None else objective
    factor = _factor(objective, beta)
    betas = [factor(float(e)) for e in range(epochs)]
    if any(not 0 <= b < math.inf for b in betas):
        raise ValueError(f"expected beta to be finite and >= 0 in every epoch; got {betas}")
    found = find_modules(model, guide, modules=modules)
    if device is not None:
        for module in found:
            module.to(device)
    pair = _Pair(model, guide, objective, found)
    with (
        contextlib.ExitStack() as stack, rundir.claimed(run) as path, seeded(seed),
        _training(found), pair.own_store(),
    ):  # fmt: skip
        data = Epochs(source(train, found), transform, seed, batch_size)
        stack.enter_context(pair.told(len(data.rows), 0.0))
        held_out = None if validation is None else source(validation, found)
        pair.check(data, held_out)
        batch = next(data.epoch(0))
        parameters = pair.parameters(batch)
        pair.compile(compile, parameters, batch, epochs * len(data.rows))
        history = _run(
            pair, parameters, data, held_out, betas, factor, patience, callbacks,
            lr=lr, optimizer=optimizer, schedule=schedule, clip_norm=clip_norm,
        )  # fmt: skip
        if path is not None:
            rundir.save(path, pair.state(), history, config=_config(model))
    return history


def check_arguments(
    epochs: int,
    batch_size: int,
    lr: float,
    compile: str = "auto",
    patience: int | None = None,
    clip_norm: float | None = None,
    validation: Any = None,
) -> None:
    """Refuse numbers out of their range, before anything is made.

    Raises:
        ValueError: naming the argument.
    """
    counts = {"epochs": epochs, "batch_size": batch_size, "patience": patience}
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"expected {name} to be a positive whole number; got {value!r}")
    for name, real in {"lr": lr, "clip_norm": clip_norm}.items():
        if real is not None and not 0 < real < math.inf:
            raise ValueError(f"expected {name} to be positive and finite; got {real!r}")
    if compile not in ("auto", "always", "never"):
        raise ValueError(f"expected compile to be 'auto', 'always' or 'never'; got {compile!r}")
    if patience is not None and validation is None:
        raise ValueError("expected validation data with patience; got none: pass validation=...")


def _factor(objective: ELBO, beta: Beta | None) -> Callable[[float], float]:
    """Return beta as a function of the time in epochs: the objective's own where none is given."""
    if beta is None and isinstance(objective, BetaELBO):
        return objective.beta_at
    given: Beta = getattr(objective, "beta", 1.0) if beta is None else beta
    return lambda t: float(given(int(t)) if callable(given) else given)


def _config(model: Any) -> dict[str, Any] | None:
    return getattr(getattr(model, "__self__", None), "config", None)


@contextlib.contextmanager
def _training(modules: Sequence[nn.Module]) -> Iterator[None]:
    with evaluating(*modules):  # which sets every mode back at the end
        for module in modules:
            module.train()
        yield


def _analytic(objective: ELBO) -> bool:
    """Does an objective take KLs in closed form?"""
    return getattr(objective, "analytic_kl", isinstance(objective, TraceMeanField_ELBO))


class _Pair:
    """The pair under training: its objective per datum, and its parameters."""

    def __init__(
        self, model: Callable, guide: Callable, objective: ELBO, modules: Sequence[nn.Module]
    ) -> None:
        self.model, self.guide, self.objective = model, guide, objective
        self.modules = modules
        self.bare: list[str] = []  # parameters that no module owns: the caller's store has them
        self.loose: list[str] = []  # those, and what modules in the functions' closures own
        self.theirs: dict[str, Tensor] = {}
        self.valid = False
        self.compiled: CompiledStep | None = None
        self.asks = getattr(objective, "num_data", 0) is None  # how many data there are
        self._sizes: dict[int, int] = {}

    def check(self, data: Epochs, held_out: Source | None) -> None:
        """Refuse data off the support of the observed site."""
        for batches in (data.in_order(), held_out.batches(EVALUATION_ROWS) if held_out else ()):
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
        with seeded(0), poutine.trace(param_only=True) as capture:
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
        size = self.plate_size(batch)

        def loss(beta: Tensor, batch: Batch) -> Tensor:
            with self._at(beta) as (model, guide):
                value: Tensor = self.objective.differentiable_loss(model, guide, *batch)
            return value / size

        try:
            self.compiled = CompiledStep(loss, self.objective, parameters, batch)
        except NotCompiled as reason:
            if mode == "always":
                raise ValueError(f"the step cannot be compiled: {reason}") from reason
            LOG.warning("The step is not compiled, and takes Pyro's time: %s", reason)

    def step(self, batch: Batch, epoch: float, beta: float, parameters: Sequence[Tensor]) -> float:
        """Leave the gradient of objective / plate size in `.grad`, and return its value."""
        if self.compiled is not None and self.compiled.fits(batch):
            return float(self.compiled(beta, batch))
        size = self.plate_size(batch)
        if hasattr(self.objective, "clock"):
            self.objective.clock.epoch = epoch
        # the first batch went through with validation on
        with pyro.validation_enabled(False), self._at(beta) as (model, guide):
            loss = self.objective.loss_and_grads(model, guide, *batch) / size
        for p in parameters:
            if p.grad is not None:
                p.grad.div_(size)
        return float(loss)

    def loss(self, rows: Source) -> float:
        """Return the objective at beta = 1, a mean per datum, with the same noise every time.

        Schedules are at their end: under a capacity that grows, say, later epochs would seem worse.
        """
        total = 0.0
        with (
            torch.no_grad(), seeded(0), evaluating(*self.modules), self.told(len(rows), math.inf),
            self._at(1.0) as pair,
        ):  # fmt: skip
            for batch in rows.batches(EVALUATION_ROWS):
                loss = self.objective.loss(*pair, *batch) / self.plate_size(batch)
                total += float(loss) * len(batch[0])
        return total / len(rows)

    def terms(self, batches: Iterator[Batch]) -> tuple[float | None, float | None]:
        """Return the mean reconstruction and KL, by one draw of z a datum."""
        if not self.valid:  # a global latent has no term a datum
            return None, None
        reconstruction, kl, rows = 0.0, 0.0, 0
        for seed, batch in enumerate(batches):
            with torch.no_grad():
                terms = log_terms(self.model, self.guide, *batch, seed=seed, modules=self.modules)
            reconstruction += float(terms.log_likelihood.sum())
            kl += float((terms.log_guide - terms.log_prior).sum())
            rows += len(batch[0])
        return reconstruction / rows, kl / rows

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


def _run(
    pair: _Pair,
    parameters: list[Tensor],
    data: Epochs,
    held_out: Source | None,
    betas: Sequence[float],
    factor: Callable[[float], float],
    patience: int | None,
    callbacks: Sequence[Callback],
    **options: Any,
) -> History:
    history = History()
    steps = math.ceil(len(data.rows) / data.batch_size)
    best_loss, best_state, waited = math.inf, None, 0
    started = time.perf_counter()
    bar = tqdm(total=len(betas) * steps, unit="step", disable=None, leave=False)

    def batches(epoch: int) -> Iterator[tuple[Callable[[], float], float]]:
        for i, batch in enumerate(data.epoch(epoch)):
            now = epoch + i / steps
            step = functools.partial(pair.step, batch, now, factor(now), parameters)
            yield step, len(batch[0])
            bar.update()

    def rows_for_terms() -> Iterator[Batch]:
        if held_out is not None:
            yield from held_out.batches(EVALUATION_ROWS)
            return
        left = TERMS_ROWS
        for batch in data.in_order():
            yield tuple(t[:left] for t in batch)
            left -= len(batch[0])
            if left <= 0:
                return

    def after_epoch(epoch: int, loss: float, lr: float) -> bool:
        nonlocal best_loss, best_state, waited, started
        if not all(bool(p.isfinite().all()) for p in parameters):
            raise FloatingPointError(
                f"parameters are no longer finite after epoch {epoch + 1}: try a lower lr, or "
                "clip_norm"
            )
        try:
            validation_loss = None if held_out is None else pair.loss(held_out)
            reconstruction, kl = pair.terms(rows_for_terms())
        except ValueError as error:  # the data were checked, so it is the parameters
            raise FloatingPointError(
                f"the pair cannot be evaluated after epoch {epoch + 1}: "
                f"{str(error).splitlines()[0]}; try a lower lr, or clip_norm"
            ) from error
        now = time.perf_counter()
        record = {
            "epoch": epoch + 1, "loss": loss, "validation_loss": validation_loss,
            "reconstruction": reconstruction, "kl": kl, "beta": betas[epoch], "lr": lr,
            "seconds": now - started,
        }  # fmt: skip
        started = now
        history.epochs.append(record)
        shown = ("loss", "validation_loss", "reconstruction", "kl")
        bar.set_postfix({k: f"{record[k]:.4g}" for k in shown if record[k] is not None})
        for callback in callbacks:
            callback(epoch + 1, record)
        history.best_epoch = epoch + 1
        if validation_loss is None or abs(betas[epoch] - betas[-1]) > NEARLY * betas[-1]:
            return False
        if validation_loss < best_loss:
            best_loss, best_state, waited = validation_loss, (epoch + 1, pair.state()), 0
        else:
            waited += 1
        return patience is not None and waited >= patience

    with bar, warnings.catch_warnings():  # a loss that is not finite is for `descend` to report
        warnings.filterwarnings("ignore", "Encountered (NaN|inf|\\+inf|-inf)")
        descend(
            batches, parameters, epochs=len(betas), steps_per_epoch=steps,
            after_epoch=after_epoch, **options,
        )  # fmt: skip
    for p in parameters:
        p.grad = None  # or the next SVI step would add to it
    if best_state is not None:
        history.best_epoch, state = best_state
        pair.restore(state)
    return history
