"""What every objective that is not Pyro's own is."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import pyro.infer
import torch
from pyro.infer.util import torch_item
from pyro.util import warn_if_nan
from torch import Tensor

from pyrovae.importance.differentiable import Scale


@dataclass(frozen=True)
class Estimate:
    """What is maximised, of each datum, in nats.

    Attributes:
        value: the estimate of the objective, (N,).
        surrogate: (N,), whose gradient is the estimate of the objective's gradient.
        scale: what each datum counts, by its plate and `poutine.scale`; a number or (N,).
    """

    value: Tensor
    surrogate: Tensor
    scale: Scale = 1.0


class Objective(pyro.infer.ELBO):
    """A Pyro ELBO written datum by datum: the loss is -sum_n scale_n value_n.

    It serves SVI (`SVI(model, guide, optim, objective)`), `ELBOModule` (`objective(model, guide)`)
    and `fit`. To write a new one, give `estimate`; a subclass that `couples_batch` says with this
    that one datum's value depends on which others share its batch, so that the objective depends
    on the batch's size. It needs `least_rows` data in a batch.
    """

    couples_batch = False
    least_rows = 1

    @abstractmethod
    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return what is to be maximised, by datum, with its gradient.

        Args:
            model: Pyro model of (x, *c).
            guide: Pyro guide of (x, *c).
            x: data (N, ...).
            *c: context, N rows each.

        Raises:
            ValueError: no valid pair; the message names the site and the rule.
        """

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Tensor) -> Tensor:
        """Return -sum_n scale_n value_n, whose gradient is that of the surrogates."""
        found = self.estimate(model, guide, *args)
        value = found.surrogate + (found.value - found.surrogate).detach()
        loss = -(found.scale * value).sum()
        warn_if_nan(loss, "loss")
        return loss

    def loss(self, model: Callable, guide: Callable, *args: Tensor) -> float:
        """Return the loss as a number."""
        with torch.no_grad():
            return torch_item(self.differentiable_loss(model, guide, *args))

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Tensor) -> float:
        """Return the loss as a number, and leave its gradient in the parameters' `.grad`."""
        loss = self.differentiable_loss(model, guide, *args)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return torch_item(loss)

    def _get_trace(self, *args: object) -> None:  # abstract in Pyro's; nothing here calls it
        raise NotImplementedError(f"{type(self).__name__} reads no pair of traces")


def check_count(**numbers: int) -> None:
    """Refuse numbers of draws that are no positive whole numbers."""
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"expected {name} to be a positive whole number; got {value!r}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number that is not in [low, high], or not finite."""
    if not low <= value <= high or value in (float("inf"), float("-inf")):
        raise ValueError(f"expected {name} to be finite and in [{low}, {high}]; got {value!r}")
