"""The rows of one batch that several processes share: sums and joins of them, with gradients.

Each process's loss is of its own rows, and the training minimises the sum of them. The gradient of
what is summed or joined here is that of this sum: each process gets back what the losses of all of
them have to say of its rows.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, distributed

_APART = ContextVar("_APART", default=False)


def together() -> bool:
    """Are there several processes?"""
    return distributed.is_available() and distributed.is_initialized()


def several() -> bool:
    """Do several processes share a batch?"""
    return together() and not _APART.get()


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside the block each process has batches of its own."""
    token = _APART.set(True)
    try:
        yield
    finally:
        _APART.reset(token)


def batch_sum(t: Tensor) -> Tensor:
    """Return the sum over the processes of tensors of one shape."""
    return _Sum.apply(t) if several() else t


def joined(t: Tensor) -> Tensor:
    """Return the rows of all processes, (n, ...) -> (n_0 + n_1 + ..., ...), in their order."""
    if not several():
        return t
    counts = _counts(t)
    padded = torch.cat([t, t.new_zeros(max(counts) - len(t), *t.shape[1:])])
    parts = _Gather.apply(padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


class _Sum(torch.autograd.Function):
    """The sum over the processes; what each loss has to say of it goes back to all."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        total = t.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    """The tensors of all processes, stacked; what each loss has to say of one goes back to it."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        parts = [torch.empty_like(t) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, t.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total[distributed.get_rank()]


def own(t: Tensor) -> slice:
    """Return where among the joined rows those of this process are."""
    if not several():
        return slice(0, len(t))
    counts = _counts(t)
    first = sum(counts[: distributed.get_rank()])
    return slice(first, first + len(t))


def _counts(t: Tensor) -> list[int]:
    found = [torch.zeros(1, dtype=torch.long) for _ in range(distributed.get_world_size())]
    device = t.device if distributed.get_backend() == "nccl" else torch.device("cpu")
    found = [f.to(device) for f in found]
    distributed.all_gather(found, torch.tensor([len(t)], device=device))
    return [int(f) for f in found]
