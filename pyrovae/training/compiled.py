"""The step without Pyro in the loop: an objective's loss and gradient as one compiled graph.

The pair and the objective are traced once, with the gradient, into a graph of tensor operations
(`make_fx`), which Inductor compiles. What in the pair is decided by Python stays as it was at that
batch; what would have to look at a tensor's value cannot be traced, and is refused.
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

from pyrovae.objectives.schedules import Constant

AGREEMENT = 1e-4  # relative, of loss and gradients, in float32
FLOPS_A_NUMBER = 6  # of a row and a parameter: forward, and backward for weights and inputs
WORTH = 2e12  # operations of a whole training that are worth compiling for: some 30 s of a core

Loss = Callable[[Tensor, tuple[Tensor, ...]], Tensor]  # of beta and a batch


class NotCompiled(Exception):
    """Why a step is left to Pyro."""


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
        self.shapes = [(t.shape, t.dtype) for t in batch]
        graph, self.constants = _traced(loss, self.parameters, batch)
        self.function = _compiled(graph, [batch[0].new_ones(()), *batch, *self.constants])
        self._check(loss, batch)

    def fits(self, batch: tuple[Tensor, ...]) -> bool:
        """Is the batch of the shape that it was compiled for?"""
        return [(t.shape, t.dtype) for t in batch] == self.shapes

    def __call__(self, beta: float, batch: tuple[Tensor, ...]) -> Tensor:
        """Leave the gradient in `.grad`, and return the loss."""
        with torch.no_grad():
            factor = batch[0].new_tensor(beta)
            loss, *gradients = self.function(factor, *batch, *self.constants)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        found: Tensor = loss
        return found

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


def _reason(error: Exception) -> str:
    """Return the first line of an error, in our words where torch's are of its own insides."""
    told = (str(error).strip().splitlines() or [repr(error)])[0]
    if "get value out of a tracing tensor" in told:
        return "Python looks at the value of a tensor, as the score function's gradient does"
    return told


def _traced(
    loss: Loss, parameters: Sequence[Tensor], batch: tuple[Tensor, ...]
) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """Return the graph of (beta, *batch, *constants) to (loss, *gradients), and the constants."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def step(beta: Tensor, *rows: Tensor) -> tuple[Tensor | None, ...]:
        value = loss(beta, rows)
        return value.detach(), *torch.autograd.grad(value, parameters, allow_unused=True)

    try:
        with torch.random.fork_rng(), _without_items(), pyro.validation_enabled(False):
            graph = make_fx(step, _decompositions())(batch[0].new_ones(()), *batch)
    except Exception as error:  # whatever Python met in a program that is the user's own
        raise NotCompiled(f"it cannot be traced: {_reason(error)}") from error
    return graph, _lift(graph)


def _lift(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a graph holds, parameters above all, and return them."""
    nodes = graph.graph
    last = [n for n in nodes.nodes if n.op == "placeholder"][-1]
    lifted: dict[str, torch.fx.Node] = {}
    tensors = []
    for node in list(nodes.nodes):
        if node.op == "get_attr":
            name = str(node.target)
            if name not in lifted:
                with nodes.inserting_after(last):
                    last = lifted[name] = nodes.placeholder(name)
                tensors.append(getattr(graph, name).detach())
            node.replace_all_uses_with(lifted[name])
            nodes.erase_node(node)
    inputs = set(lifted.values())
    for node in nodes.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable and node.args and node.args[0] in inputs:
            raise NotCompiled(f"it writes to a tensor of its own ({node.target})")
    graph.recompile()
    return tensors


def _compiled(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Return the graph compiled by Inductor; it draws from the generators as the eager step."""
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    try:
        # its own random numbers are others than torch's
        with config.patch(fallback_random=True), torch.no_grad():
            function = cast(Callable[..., Any], compile_fx(graph, inputs))
            with torch.random.fork_rng():
                function(*inputs)
    except Exception as error:  # no compiler, or an operation that Inductor lacks
        raise NotCompiled(f"Inductor failed: {_reason(error)}") from error
    return function


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Return what operations are made of, where the usual way is slow.

    log1p takes ten times as long as log in CPU builds of torch, and it is half the time of a
    Bernoulli's density. log(1 + exp(-|l|)) loses what is below the rounding of 1: an absolute
    error of at most 2^-24, 6e-8 nats a pixel in float32, and 2^-53 in float64.
    """
    aten = torch.ops.aten

    def softplus_of_minus(magnitude: Tensor) -> Tensor:
        return (1 + (-magnitude).exp()).log()

    def with_logits(
        logits: Tensor,
        target: Tensor,
        weight: Any = None,
        pos_weight: Any = None,
        reduction: int = 1,
    ) -> Tensor:
        if weight is not None or pos_weight is not None or reduction != 0:
            return NotImplemented
        return logits.clamp(min=0) - logits * target + softplus_of_minus(logits.abs())

    return {aten.binary_cross_entropy_with_logits.default: with_logits}


@contextlib.contextmanager
def _without_items() -> Iterator[None]:
    """Let Pyro's objectives keep their losses as tensors, and not look whether they are NaN."""
    replaced: dict[Any, Callable[..., Any]] = {
        pyro.infer.util.torch_item: lambda value: value,
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
