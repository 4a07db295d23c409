"""One loop of gradient descent: a loss, parameters, a stop rule; it can be gone on with."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["NormalisedAdam", "Plateau", "adam", "adamw", "cosine", "descend", "warm_up"]

LOG = logging.getLogger(__name__)

Optimizer = Callable[..., torch.optim.Optimizer]
Schedule = Callable[[float], float]
Steps = Iterable[tuple[Callable[[], float], float]]  # (closure, weight) of each step


def adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Return Adam (Kingma & Ba 2015), one fused step over all parameters."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def adamw(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov & Hutter 2019), weight decay 0.01, one fused step."""
    return torch.optim.AdamW(parameters, lr=lr, fused=True)


class NormalisedAdam(torch.optim.Adam):
    """Adam on gradients that are divided, tensor by tensor, by their norm.

    The set-up of Tomczak & Welling (2018): g / (|g| + 1e-7) in place of g, so that no tensor's
    gradient outweighs its own past by its size alone.

    Args:
        parameters: leaf tensors.
        lr: learning rate.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Normalise the gradients, and take Adam's step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.div_(p.grad.norm() + 1e-7)
        return super().step(closure)


def warm_up(progress: float, share: float = 0.05) -> float:
    """Return min(1, t / share): the learning rate rises over the first part of training.

    Example:
        >>> warm_up(0.0125), warm_up(0.5)
        (0.25, 1.0)
    """
    return min(1.0, progress / share)


def cosine(progress: float) -> float:
    """Return (1 + cos(pi t)) / 2, the factor of the learning rate when t of training is done.

    Loshchilov & Hutter (2017), without restarts.

    Example:
        >>> cosine(0.0), cosine(0.5)
        (1.0, 0.5)
    """
    return (1 + math.cos(math.pi * progress)) / 2


class Plateau:
    """Multiply the learning rate by `factor` after `patience` epochs without a better loss.

    The loss is that of the validation data, or, without any, of training.

    Args:
        patience: epochs, >= 1.
        factor: in (0, 1).
        least: below which the product of the factors does not go.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> schedule = Plateau(patience=2)
        >>> for loss in (1.0, 2.0, 2.0):
        ...     schedule.after_epoch(loss)
        >>> schedule(0.5)
        0.5
    """

    def __init__(self, patience: int = 10, factor: float = 0.5, least: float = 1e-3) -> None:
        if not isinstance(patience, int) or patience < 1:
            raise ValueError(f"expected patience to be a positive whole number; got {patience!r}")
        if not 0 < factor < 1:
            raise ValueError(f"expected factor to be in (0, 1); got {factor!r}")
        if not 0 <= least <= 1:
            raise ValueError(f"expected least to be in [0, 1]; got {least!r}")
        self.patience, self.factor, self.least = patience, factor, least
        self.rate, self.best, self.waited = 1.0, math.inf, 0

    def __call__(self, progress: float) -> float:
        """Return the factor of the learning rate, whatever part of training is done."""
        return self.rate

    def after_epoch(self, loss: float) -> None:
        """Take an epoch's loss into account."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.rate, self.waited = max(self.least, self.rate * self.factor), 0

    def state_dict(self) -> dict[str, float]:
        """Return what `load_state_dict` needs to go on."""
        return {"rate": self.rate, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from where `state_dict` was taken."""
        self.rate, self.best, self.waited = state["rate"], state["best"], int(state["waited"])


class Nonfinite:
    """What is done about a step whose loss or gradient is not finite; it is never applied.

    Args:
        policy: "raise"; "skip:N", leave such steps out, at most N of them; or "back-off:N", leave
            them out and halve the learning rate each time, at most N times.

    Raises:
        ValueError: another policy.
    """

    def __init__(self, policy: str = "raise") -> None:
        name, _, count = policy.partition(":")
        known = name == "raise" and not count or name in ("skip", "back-off") and count.isdigit()
        if not known or count == "0":
            raise ValueError(
                f"expected nonfinite to be raise, skip:N or back-off:N, N a positive whole number; "
                f"got {policy!r}"
            )
        self.policy, self.name, self.most = policy, name, int(count or 0)

    def factor(self, refused: int) -> float:
        """Return that of the learning rate after so many steps left out."""
        return 0.5**refused if self.name == "back-off" else 1.0


class Descent:
    """A descent under way: which step is next, and all that the steps after it depend on.

    Args:
        parameters: leaf tensors.
        epochs: how many at the most.
        steps_per_epoch: steps of one epoch, for the schedule.
        lr: learning rate.
        optimizer: `optimizer(parameters, lr=lr)` gives a torch optimizer.
        schedule: factor of the learning rate as a function of the part of training done, in [0, 1).
        clip_norm: upper bound of the gradient's 2-norm over all parameters.
        nonfinite: see `Nonfinite`.

    Attributes:
        epoch: of the next step, from 0.
        step: number of the next step in its epoch, from 0.
        refused: steps that were left out.
        ended: was it ended before its last epoch?
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        epochs: int,
        steps_per_epoch: int,
        lr: float = 1e-3,
        optimizer: Optimizer = adam,
        schedule: Schedule | None = None,
        clip_norm: float | None = None,
        nonfinite: str = "raise",
    ) -> None:
        self.parameters, self.epochs = parameters, epochs
        self.steps_per_epoch, self.steps = steps_per_epoch, max(1, epochs * steps_per_epoch)
        self.lr, self.schedule, self.clip_norm = lr, schedule, clip_norm
        self.nonfinite = Nonfinite(nonfinite)
        self.optimizer = optimizer(parameters, lr=lr)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.epoch = self.step = self.refused = 0
        self.total = self.weight = 0.0
        self.rate, self.ended = lr, False

    @property
    def done(self) -> int:
        """Steps done in all."""
        return self.epoch * self.steps_per_epoch + self.step

    def run(
        self,
        batches: Callable[[int, int], Steps],
        after_epoch: Callable[[int, float, float], bool] = lambda epoch, loss, lr: False,
        after_step: Callable[[], object] = lambda: None,
        explain: Callable[[], str] = lambda: "",
    ) -> None:
        """Take the steps that are left.

        Args:
            batches: of an epoch and a step of it, gives (closure, weight) for each step from that
                on: the closure computes the loss, leaves its gradient in `.grad`, and returns it;
                the epoch's loss is the weighted mean.
            after_epoch: called with (epoch, mean loss, learning rate); True ends the descent.
            after_step: called when a step is done; an error of its own ends the descent there, to
                be gone on with at the next step.
            explain: says, after a step that is not finite, where that came from.

        Raises:
            FloatingPointError: a loss or gradient is not finite, and the policy is to raise or its
                number is used up; the parameters stay as they were before that step.
        """
        while self.epoch < self.epochs and not self.ended:
            for closure, weight in batches(self.epoch, self.step):
                self._take(closure, weight, explain)
                self.step += 1
                after_step()
            loss = self.total / self.weight if self.weight else math.nan
            self.ended = after_epoch(self.epoch, loss, self.rate)
            self.epoch, self.step, self.total, self.weight = self.epoch + 1, 0, 0.0, 0.0

    def _take(
        self, closure: Callable[[], float], weight: float, explain: Callable[[], str]
    ) -> None:
        self._set_rate()
        self.optimizer.zero_grad()
        loss = closure()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._refuse(loss, explain())
            return
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        self.optimizer.step()
        self.total, self.weight = self.total + loss * weight, self.weight + weight

    def _set_rate(self) -> None:
        factor = self.nonfinite.factor(self.refused)
        if self.schedule is not None:
            factor *= self.schedule(min(self.done / self.steps, 1.0))
        self.rate = self.lr * factor
        for group, start in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = start * factor

    def _refuse(self, loss: float, explanation: str) -> None:
        what = "gradient is not finite" if math.isfinite(loss) else f"loss is {loss}"
        told = f"the {what} in epoch {self.epoch + 1}, step {self.step + 1}{explanation}"
        self.refused += 1
        if self.refused > self.nonfinite.most:
            after = f" (after {self.nonfinite.policy})" if self.nonfinite.most else ""
            raise FloatingPointError(
                f"{told}{after}: try a lower lr, clip_norm, or a floor under the learnt scales"
            )
        LOG.warning("Left out: %s", told)

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs to go on, the parameters themselves apart."""
        return {
            "epoch": self.epoch, "step": self.step, "total": self.total, "weight": self.weight,
            "refused": self.refused, "ended": self.ended, "rate": self.rate,
            "schedule": (
                self.schedule.state_dict() if isinstance(self.schedule, Plateau) else None
            ),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        for name in ("epoch", "step", "total", "weight", "refused", "ended", "rate"):
            setattr(self, name, state[name])
        if isinstance(self.schedule, Plateau):
            self.schedule.load_state_dict(state["schedule"])
        self.optimizer.load_state_dict(state["optimizer"])


def descend(
    batches: Callable[[int], Steps],
    parameters: Sequence[Tensor],
    *,
    after_epoch: Callable[[int, float, float], bool] = lambda epoch, loss, lr: False,
    **options: Any,
) -> None:
    """Minimise a loss over `parameters`, epoch by epoch.

    Args:
        batches: of an epoch, see `Descent.run`.
        parameters: leaf tensors.
        after_epoch: see `Descent.run`.
        **options: of `Descent`.

    Raises:
        FloatingPointError: the loss is not finite; the parameters stay as they were before it.
    """
    Descent(parameters, **options).run(lambda epoch, step: batches(epoch), after_epoch)
