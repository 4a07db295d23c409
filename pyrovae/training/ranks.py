"""The processes of one training, by torch.distributed: each has its share of every batch.

A batch is the same, row for row, however many processes share it. Each takes the gradient of its
own rows; the sum over the processes, each weighed by its part of the rows, is that of the batch.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from pyrovae.objectives.joined import together

Item = TypeVar("Item")


def rank() -> int:
    """Return this process's number, 0 where it is alone."""
    return distributed.get_rank() if together() else 0


def size() -> int:
    """Return how many processes there are."""
    return distributed.get_world_size() if together() else 1


def started() -> int:
    """Return how many processes torchrun started, 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE"} <= set(os.environ) else 1


@contextlib.contextmanager
def joined_up(device: str | None) -> Iterator[str | None]:
    """Join the processes that torchrun started, for the block; yield this one's device.

    By NCCL where they train on CUDA, each on the device of its local number; by gloo otherwise.

    Args:
        device: that was asked for.
    """
    if started() == 1 or together():
        yield device
        return
    on_cuda = device is not None and torch.device(device).type == "cuda"
    if on_cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def share(n: int) -> slice:
    """Return this process's rows of a batch of n: contiguous, in the order of the processes."""
    r, w = rank(), size()
    return slice(n * r // w, n * (r + 1) // w)


def shared(items: Sequence[Item]) -> list[Item]:
    """Return every w-th item, from the r-th on: this process's, where each goes to one."""
    return list(items[rank() :: size()])


def add(tensors: Sequence[Tensor]) -> None:
    """Put in each tensor's place its sum over the processes: one message for all of them."""
    if not together():
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    distributed.all_reduce(flat)
    for t, new in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(new.view_as(t))


def same(tensors: Iterable[Tensor]) -> None:
    """Put in each tensor's place that of the first process."""
    if together():
        with torch.no_grad():
            for t in tensors:
                distributed.broadcast(t, 0)


def any_of(flag: bool) -> bool:
    """Is it so in any of the processes?"""
    if not together():
        return flag
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    found = torch.tensor([float(flag)], device=device)
    distributed.all_reduce(found)
    return bool(found)


def of_first(make: Callable[[], Any]) -> Any:
    """Return what the first process makes, in all of them; its error, where it has one."""
    if not together():
        return make()
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = make()
        except Exception as error:  # or the others would wait for ever
            answer[1] = error
    distributed.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def gathered(own: Any) -> list[Any]:
    """Return what each process has, in their order."""
    if not together():
        return [own]
    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, own)
    return found
