"""`fit`: train a pair."""

import contextlib
import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import nn

from pyrovae.distributions import seeded
from pyrovae.importance import find_modules
from pyrovae.nets import evaluating
from pyrovae.objectives import BetaELBO
from pyrovae.optimise import Nonfinite, Optimizer, Schedule, adam
from pyrovae.training import ranks, rundir
from pyrovae.training.batches import Batch, Epochs, Transform, source
from pyrovae.training.history import History
from pyrovae.training.loop import Callback, Loop
from pyrovae.training.stopping import asked_to_stop
from pyrovae.training.trainee import Trainee

Beta = float | Callable[[int], float]


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
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    nonfinite: str = "raise",
    precision: str = "float32",
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
        run: directory to write weights, history and, for a pair from `build`, its configuration to;
            and checkpoints, of which the last two are kept. With it the first Ctrl-C, or SIGTERM,
            ends training at the end of the step, with a checkpoint.
        resume: go on from the newest checkpoint in `run`, if there is one that is whole, with the
            same arguments: on the same machine the weights are those of a training that was not
            interrupted, bit for bit.
        checkpoint_seconds: from one checkpoint to the next; 0 for one after every step.
        nonfinite: of a step whose loss or gradient is not finite, which is never applied: "raise";
            "skip:N", leave it out, N times at most; "back-off:N", halve the learning rate too.
        precision: "float32", or "bf16" for the networks' matrix products of the steps in bfloat16,
            see `nets.precision.bf16_matmuls`; all else, and all that is measured, in float32.
        optimizer: `optimizer(parameters, lr=lr)` gives a torch optimizer; by default fused Adam.
        schedule: factor of lr as a function of the part of training done, as `optimise.cosine`; or
            by the loss after each epoch, as `optimise.Plateau`, of which a copy is used.
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
            Pyro cannot run or that has nothing to train; or `resume` with other arguments.
        CheckpointError: of `resume`, where no checkpoint is whole, or they are of another pair.
        FloatingPointError: the loss or a gradient stopped being finite; the weights are those
            before that step, and the message names it, and the site.
        OSError: nothing can be written to `run`; the checkpoints that are there are intact.
        KeyboardInterrupt: training was stopped; with `run`, it can be gone on with.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> history = fit(vae.model, vae.guide, torch.ones(32, 4), epochs=2)
        >>> len(history["loss"])
        2
    """
    check_arguments(epochs, batch_size, lr, compile, patience, clip_norm, validation, precision)
    Nonfinite(nonfinite)
    if not 0 <= checkpoint_seconds < math.inf:
        raise ValueError(f"expected checkpoint_seconds to be >= 0; got {checkpoint_seconds!r}")
    if resume and run is None:
        raise ValueError("expected a run directory to go on with; got resume=True without run=...")
    objective = TraceMeanField_ELBO() if objective is None else objective
    factor = _factor(objective, beta)
    betas = [factor(float(e)) for e in range(epochs)]
    if any(not 0 <= b < math.inf for b in betas):
        raise ValueError(f"expected beta to be finite and >= 0 in every epoch; got {betas}")
    found = find_modules(model, guide, modules=modules)
    if device is not None:
        for module in found:
            module.to(device)
    pair = Trainee(model, guide, objective, found, precision)
    with (
        contextlib.ExitStack() as stack,
        rundir.claimed(run if ranks.rank() == 0 else None, resume) as path, seeded(seed),
        _training(found), pair.own_store(), asked_to_stop(run is not None) as stop,
    ):  # fmt: skip
        data = Epochs(source(train, found), transform, seed, batch_size)
        stack.enter_context(pair.told(len(data.rows), 0.0))
        held_out = None if validation is None else source(validation, found)
        pair.check(data, held_out)
        batch = next(data.epoch(0))
        parameters = pair.parameters(batch)
        request = {
            "epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed,
            "patience": patience, "clip_norm": clip_norm, "nonfinite": nonfinite,
            "precision": precision,
            "optimizer": _named(optimizer), "schedule": _named(schedule),
            "objective": _named(objective), "rows": len(data.rows), "data": _digest(batch),
            "beta": betas,
        }  # fmt: skip
        loop = Loop(
            pair, parameters, data, held_out, betas, factor, patience=patience,
            callbacks=[*([] if path is None else [rundir.appending(path)]), *callbacks]
            if ranks.rank() == 0 else (),
            seed=seed, run=path,
            every=checkpoint_seconds, request=request, stop=stop, lr=lr,
            optimizer=optimizer, schedule=copy.deepcopy(schedule), clip_norm=clip_norm,
            nonfinite=nonfinite,
        )  # fmt: skip
        if resume:
            loop.go_on()
        if path is not None:
            rundir.begin(path, _config(model), loop.history)
        pair.compile(compile, parameters, batch, epochs * len(data.rows))
        history = loop.run()
        if path is not None:
            rundir.save(path, pair.state(), history)
    return history


def check_arguments(
    epochs: int,
    batch_size: int,
    lr: float,
    compile: str = "auto",
    patience: int | None = None,
    clip_norm: float | None = None,
    validation: Any = None,
    precision: str = "float32",
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
    if precision not in ("float32", "bf16"):
        raise ValueError(f"expected precision to be 'float32' or 'bf16'; got {precision!r}")
    if patience is not None and validation is None:
        raise ValueError("expected validation data with patience; got none: pass validation=...")


def _factor(objective: ELBO, beta: Beta | None) -> Callable[[float], float]:
    """Return beta as a function of the time in epochs: the objective's own where none is given."""
    if beta is None and isinstance(objective, BetaELBO):
        return objective.beta_at
    given: Beta = getattr(objective, "beta", 1.0) if beta is None else beta
    return lambda t: float(given(int(t)) if callable(given) else given)


def _named(thing: Any) -> Any:
    """Return what tells an objective, optimizer or schedule from another, as JSON-able data."""
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, list | tuple):
        return [_named(part) for part in thing]
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    if isinstance(thing, type) or not type(thing).__module__.startswith("pyro"):
        return name
    parts = {key: _named(value) for key, value in vars(thing).items() if key[0] != "_"}
    return {"name": name, **parts}


def _digest(batch: Batch) -> str:
    digest = hashlib.sha256()
    for t in batch:
        digest.update(repr((tuple(t.shape), t.dtype)).encode())
        digest.update(t.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _config(model: Any) -> dict[str, Any] | None:
    return getattr(getattr(model, "__self__", None), "config", None)


@contextlib.contextmanager
def _training(modules: Sequence[nn.Module]) -> Iterator[None]:
    with evaluating(*modules), warnings.catch_warnings():  # sets every mode back at the end
        # a loss that is not finite is for the descent to report
        warnings.filterwarnings("ignore", "Encountered (NaN|inf|\\+inf|-inf)")
        for module in modules:
            module.train()
        yield


def _analytic(objective: ELBO) -> bool:
    """Does an objective take KLs in closed form?"""
    return getattr(objective, "analytic_kl", isinstance(objective, TraceMeanField_ELBO))
