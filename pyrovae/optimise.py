"""One loop of gradient descent: a loss, parameters, a stop rule."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["NormalisedAdam", "adam", "adamw", "cosine", "descend", "warm_up"]

Optimizer = Callable[..., torch.optim.Optimizer]
Schedule = Callable[[float], float]


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


def descend(
    batches: Callable[[int], Iterable[tuple[Callable[[], float], float]]],
    parameters: Sequence[Tensor],
    *,
    epochs: int,
    steps_per_epoch: int,
    lr: float = 1e-3,
    optimizer: Optimizer = adam,
    schedule: Schedule | None = None,
    clip_norm: float | None = None,
    after_epoch: Callable[[int, float, float], bool] = lambda epoch, loss, lr: False,
) -> None:
    """Minimise a loss over `parameters`, epoch by epoch.

    Args:
        batches: of the epoch, gives (closure, weight) for each step: the closure computes the loss,
            leaves its gradient in `.grad`, and returns it; the epoch's loss is the weighted mean.
        parameters: leaf tensors.
        epochs: how many at the most.
        steps_per_epoch: steps of one epoch, for the schedule.
        lr: learning rate.
        optimizer: `optimizer(parameters, lr=lr)` gives a torch optimizer.
        schedule: factor of the learning rate as a function of the part of training done, in [0, 1).
        clip_norm: upper bound of the gradient's 2-norm over all parameters.
        after_epoch: called with (epoch, mean loss, learning rate); True ends the descent.

    Raises:
        FloatingPointError: the loss is not finite; the parameters stay as they were before it.
    """
    steps = max(1, epochs * steps_per_epoch)
    optim = optimizer(parameters, lr=lr)
    rates = [group["lr"] for group in optim.param_groups]
    step = 0
    for epoch in range(epochs):
        total = weights = 0.0
        rate = lr
        for closure, weight in batches(epoch):
            if schedule is not None:
                factor = schedule(min(step / steps, 1.0))
                rate = lr * factor
                for group, start in zip(optim.param_groups, rates, strict=True):
                    group["lr"] = start * factor
            optim.zero_grad()
            loss = closure()
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}: try a lower lr, "
                    "clip_norm, or a floor under the learnt scales"
                )
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
            optim.step()
            total, weights, step = total + loss * weight, weights + weight, step + 1
        if after_epoch(epoch, total / max(weights, 1e-300), rate):
            return
