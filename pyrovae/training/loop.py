"""Training under way: its steps, history and best weights, and the checkpoints of all that."""

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from pyrovae.distributions import mixed
from pyrovae.optimise import Descent, Plateau, Steps
from pyrovae.training import checkpoints, ranks
from pyrovae.training.batches import EVALUATION_ROWS, Batch, Epochs, Source
from pyrovae.training.checkpoints import CheckpointError
from pyrovae.training.history import History
from pyrovae.training.stopping import Interrupted
from pyrovae.training.streams import RowsRefused
from pyrovae.training.trainee import Trainee

Callback = Callable[[int, Mapping[str, float | None]], None]

NEARLY = 0.01  # of the last epoch's beta: sigmoids come near it, and are never there
TERMS_ROWS = 2000  # training rows that the terms are measured on where there is no validation


class Loop:
    """A training, at any of its steps.

    Args:
        trainee: the pair.
        parameters: its leaf tensors.
        data: to train on.
        held_out: to validate on, None for nothing.
        betas: at the start of each epoch.
        factor: beta at a time in epochs.
        patience: epochs without a better validation loss, at full beta.
        callbacks: called after every epoch.
        seed: of the noise.
        run: the directory of the checkpoints, None for none.
        every: seconds from one checkpoint to the next.
        request: what was asked for, JSON-able: no other is gone on with.
        stop: has the process been asked to stop?
        **options: of `Descent`.
    """

    def __init__(
        self,
        trainee: Trainee,
        parameters: list[Tensor],
        data: Epochs,
        held_out: Source | None,
        betas: Sequence[float],
        factor: Callable[[float], float],
        *,
        patience: int | None,
        callbacks: Sequence[Callback],
        seed: int,
        run: Path | None,
        every: float,
        request: Mapping[str, Any],
        stop: Callable[[], bool],
        **options: Any,
    ) -> None:
        self.trainee, self.parameters = trainee, parameters
        self.data, self.held_out = data, held_out
        self.betas, self.factor, self.patience = betas, factor, patience
        self.callbacks, self.seed = callbacks, seed
        self.directory, self.every, self.request, self.stop = run, every, dict(request), stop
        self.steps = math.ceil(len(data.rows) / data.batch_size)
        self.descent = Descent(parameters, epochs=len(betas), steps_per_epoch=self.steps, **options)
        self.history = History()
        self.best: dict[str, Any] | None = None
        self.waited = 0
        self.before = 0.0  # seconds of this epoch, in processes that were before this one
        self.started = self.saved = time.perf_counter()
        self.now: tuple[Batch, float, int] | None = None

    def run(self) -> History:
        """Take the steps that are left, and leave the best weights in the pair."""
        ranks.same(self.trainee.live().values())
        self.started = self.saved = time.perf_counter()
        with tqdm(
            total=len(self.betas) * self.steps, initial=self.descent.done, unit="step",
            disable=None if ranks.rank() == 0 else True, leave=False,
        ) as self.bar:  # fmt: skip
            try:
                self.descent.run(self._batches, self._after_epoch, self._after_step, self._explain)
            except FloatingPointError as error:
                finite = all(bool(p.isfinite().all()) for p in self.parameters)
                where = self._save() if finite else None
                told = "" if where is None else f"; the weights before it are kept in {where}"
                raise FloatingPointError(f"{error}{told}") from error
        self._save()
        for p in self.parameters:
            p.grad = None  # or the next SVI step would add to it
        self.history.best_epoch = len(self.history)
        if self.best is not None:
            self.history.best_epoch = self.best["epoch"]
            self.trainee.restore(self.best["weights"])
        return self.history

    def go_on(self) -> bool:
        """Go on from the newest checkpoint of the run's directory, if it has any.

        Raises:
            CheckpointError: none that is whole, or of another pair.
            ValueError: of another request.
        """
        directory = self.directory
        found = ranks.of_first(lambda: directory and checkpoints.load_newest(directory))
        if found is None:
            return False
        path, state = found
        for name in dict.fromkeys([*self.request, *state["request"]]):
            was, asked = (r.get(name) for r in (state["request"], self.request))
            if was != asked:
                raise ValueError(
                    f"expected to go on with what {path.parent.parent} was begun with; {name} was "
                    f"{was!r}, now asked for {asked!r}: leave it as it was, or name another run"
                )
        checkpoints.fill(self.trainee.live(), state["weights"])
        try:
            self.descent.load_state_dict(state["descent"])
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"the optimizer of {path} is not this one: {error}: train anew"
            ) from None
        self.history.epochs = state["history"]
        self.best, self.waited, self.before = state["best"], state["waited"], state["seconds"]
        return True

    def _state(self) -> dict[str, Any]:
        return {
            "request": self.request, "weights": self.trainee.live(),
            "descent": self.descent.state_dict(), "history": self.history.epochs,
            "best": self.best, "waited": self.waited, "seconds": self._seconds(),
        }  # fmt: skip

    def _save(self) -> Path | None:
        """Write a checkpoint, where there is a directory for it."""
        directory, self.saved = self.directory, time.perf_counter()
        if directory is None:
            return None
        return checkpoints.save(directory, self.descent.done, self._state())

    def _seconds(self) -> float:
        return self.before + time.perf_counter() - self.started

    def _batches(self, epoch: int, first: int) -> Steps:
        for i, batch in enumerate(self.data.epoch(epoch, skip=first), first):
            if epoch == 0 and self.data.rows.streamed:
                self.trainee.check_as_it_comes(self.data, epoch, i, batch)
            now = epoch + i / self.steps
            beta, noise = self.factor(now), mixed(self.seed, epoch, i)
            self.now = batch, beta, noise
            step = functools.partial(self.trainee.step, batch, now, beta, self.parameters, noise)
            yield step, len(batch[0])
            self.bar.update()

    def _explain(self) -> str:
        return "" if self.now is None else self.trainee.explain(*self.now)

    def _after_step(self) -> None:
        stop = ranks.any_of(self.stop())
        due = self.directory is not None and time.perf_counter() - self.saved >= self.every
        if not (stop or due):
            return
        where = self._save()
        if stop:
            at = f"stopped in epoch {self.descent.epoch + 1}, after step {self.descent.step}"
            kept = (
                ""
                if where is None
                else f"; {where} keeps it all, and --resume (resume=True) goes on"
            )
            raise Interrupted(at + kept)

    def _after_epoch(self, epoch: int, loss: float, lr: float) -> bool:
        if not all(bool(p.isfinite().all()) for p in self.parameters):
            raise FloatingPointError(
                f"parameters are no longer finite after epoch {epoch + 1}: try a lower lr, or "
                "clip_norm"
            )
        try:
            held_out = self.held_out
            validation_loss = None if held_out is None else self.trainee.loss(held_out)
            reconstruction, kl = self.trainee.terms(self._rows_for_terms())
        except RowsRefused:
            raise
        except ValueError as error:  # the data were checked, so it is the parameters
            raise FloatingPointError(
                f"the pair cannot be evaluated after epoch {epoch + 1}: "
                f"{str(error).splitlines()[0]}; try a lower lr, or clip_norm"
            ) from error
        record = {
            "epoch": epoch + 1, "loss": loss, "validation_loss": validation_loss,
            "reconstruction": reconstruction, "kl": kl, "beta": self.betas[epoch], "lr": lr,
            "seconds": self._seconds(),
        }  # fmt: skip
        self.before, self.started = 0.0, time.perf_counter()
        self.history.epochs.append(record)
        shown = ("loss", "validation_loss", "reconstruction", "kl")
        self.bar.set_postfix({k: f"{record[k]:.4g}" for k in shown if record[k] is not None})
        for callback in self.callbacks:
            callback(epoch + 1, record)
        if isinstance(schedule := self.descent.schedule, Plateau):
            schedule.after_epoch(loss if validation_loss is None else validation_loss)
        return self._is_best_or_enough(epoch, validation_loss)

    def _is_best_or_enough(self, epoch: int, loss: float | None) -> bool:
        """Keep the weights if the loss is the best at full beta; is patience at its end?"""
        last = self.betas[-1]
        if loss is None or abs(self.betas[epoch] - last) > NEARLY * last:
            return False
        if self.best is None or loss < self.best["loss"]:
            self.best, self.waited = {"epoch": epoch + 1, "loss": loss}, 0
            self.best["weights"] = self.trainee.state()
        else:
            self.waited += 1
        return self.patience is not None and self.waited >= self.patience

    def _rows_for_terms(self) -> Iterator[Batch]:
        if self.held_out is not None:
            yield from self.held_out.batches(EVALUATION_ROWS)
            return
        left = TERMS_ROWS
        for batch in self.data.in_order():
            yield tuple(t[:left] for t in batch)
            left -= len(batch[0])
            if left <= 0:
                return
