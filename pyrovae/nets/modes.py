"""The modules of a pair, and modules in another mode or dtype for a while."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Set modules to evaluation mode inside the block, and each submodule back to its own after."""
    modes = {m: m.training for module in modules for m in module.modules()}
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


@contextlib.contextmanager
def in_double(*modules: nn.Module) -> Iterator[None]:
    """Compute in float64 inside the block: floating parameters and buffers, back to theirs after.

    The parameters stay the same objects, and float32 values come back bit by bit.
    """
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]
    dtypes = [(t, t.dtype) for t in tensors]
    try:
        for t in tensors:
            t.data = t.data.double()
        yield
    finally:
        for t, dtype in dtypes:
            t.data = t.data.to(dtype)


def find_modules(*functions: Any, modules: Sequence[nn.Module] = ()) -> list[nn.Module]:
    """Return the modules of a pair: `f.__self__`, callables that are modules, and `modules`.

    Args:
        *functions: the model and the guide.
        modules: further ones, that the functions hold in their closures.
    """
    found: list[nn.Module] = []
    for function in functions:
        while isinstance(function, functools.partial):
            function = function.func
        owner = getattr(function, "__self__", function)
        if isinstance(owner, nn.Module):
            found.append(owner)
    return list(dict.fromkeys([*found, *modules]))
