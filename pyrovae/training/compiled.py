"""The step without Pyro in the loop: an objective's loss and gradient as one compiled graph.

`pyrovae.nets.compiling` says what can be traced, and what is compiled of it.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, cast
from unittest import mock

import pyro
import pyro.infer.util
import pyro.util
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyrovae.nets.compiling import WORTH, Compiled, NotCompiled
from pyrovae.objectives.schedules import Constant

AGREEMENT = 1e-4  # relative, of loss and gradients, in float32
FLOPS_A_NUMBER = 6  # of a row and a parameter: forward, and backward for weights and inputs

Loss = Callable[[Tensor, tuple[Tensor, ...]], Tensor]  # of beta and a batch


def is_worth_it(parameters: Sequence[Tensor], rows: int) -> bool:
    """Is training on so many rows, over all epochs, long enough to compile the step for?

    By the operations that there are to do, not by the clock, so that the same call does the same.
    """
    return FLOPS_A_NUMBER * sum(p.numel() for p in parameters) * rows > WORTH


class CompiledStep:
    """Loss and gradient of an objective, at batches of one shape.

    Args:
        loss: beta, a tensor (), and a batch to the objective's differentiable loss.
        objective: whose loss that is.
        parameters: leaf tensors; their values are read at each call.
        batch: an example (x, *c).

    Raises:
        NotCompiled: what cannot be traced or compiled, or does not agree with the eager step.
    """

    def __init__(
        self, loss: Loss, objective: ELBO, parameters: Sequence[Tensor], batch: tuple[Tensor, ...]
    ) -> None:
        if not isinstance(getattr(objective, "schedule", Constant()), Constant) and not hasattr(
            objective, "beta"
        ):
            raise NotCompiled(f"{type(objective).__name__} reads its schedule in Python")
        self.parameters = list(parameters)

        def step(beta: Tensor, *rows: Tensor) -> tuple[Tensor | None, ...]:
            value = loss(beta, rows)
            gradients = torch.autograd.grad(value, self.parameters, allow_unused=True)
            return value.detach(), *gradients

        with _without_items(), pyro.validation_enabled(False):
            self.compiled = Compiled(step, [batch[0].new_ones(()), *batch])
        self._check(loss, batch)

    def fits(self, batch: tuple[Tensor, ...]) -> bool:
        """Is the batch of the shape that it was compiled for?"""
        return self.compiled.fits([batch[0].new_ones(()), *batch])

    def __call__(self, beta: float, batch: tuple[Tensor, ...]) -> Tensor:
        """Leave the gradient in `.grad`, and return the loss."""
        loss, *gradients = self.compiled(batch[0].new_tensor(beta), *batch)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return cast(Tensor, loss)

    def _check(self, loss: Loss, batch: tuple[Tensor, ...]) -> None:
        """Compare it with the eager step, with the same noise."""
        with torch.random.fork_rng():
            with _without_items(), pyro.validation_enabled(False):
                expected = loss(batch[0].new_ones(()), batch)
                gradients = torch.autograd.grad(expected, self.parameters, allow_unused=True)
        with torch.random.fork_rng():
            got = self(1.0, batch)
        _agree("loss", got, expected.detach())
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            found, parameter.grad = parameter.grad, None
            if gradient is not None and found is not None:
                _agree("gradient", found, gradient)
            elif (gradient is None) != (found is None):
                raise NotCompiled("the compiled step has the gradients of other parameters")


def _agree(what: str, got: Tensor, expected: Tensor) -> None:
    error = float((got - expected).norm())
    size = float(expected.norm())
    if not error <= AGREEMENT * size + 1e-6:
        raise NotCompiled(f"its {what} differs from the eager step's by {error:.2g} of {size:.2g}")


@contextlib.contextmanager
def _without_items() -> Iterator[None]:
    """Let Pyro's objectives keep their losses as tensors, and not look whether they are NaN."""
    replaced: dict[Any, Callable[..., Any]] = {
        pyro.infer.util.torch_item: lambda x: x.detach() if isinstance(x, Tensor) else x,
        pyro.util.warn_if_nan: lambda value, *args, **kwargs: value,
    }
    with contextlib.ExitStack() as stack:
        for module in list(sys.modules.values()):
            name = getattr(module, "__name__", "")
            if isinstance(module, ModuleType) and name.split(".")[0] in ("pyro", "pyrovae"):
                for original, new in replaced.items():
                    attribute = original.__name__
                    if module.__dict__.get(attribute) is original:
                        stack.enter_context(mock.patch.object(module, attribute, new))
        yield
