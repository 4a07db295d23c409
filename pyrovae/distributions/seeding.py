"""Draws from generators of one's own."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from generators of one's own inside the block: the global ones are left as they were.

    Args:
        seed: seeds the block; None draws from the global generators, as torch does.
    """
    if seed is None:
        yield
        return
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def reseed(seed: int) -> None:
    """Seed torch's global generators: those of the devices only where there are any in use.

    `torch.manual_seed` looks for them all, and takes 0.1 ms.

    Args:
        seed: a whole number of 64 bits.
    """
    if torch.cuda.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def mixed(seed: int, *numbers: int) -> int:
    """Return a seed for one part of the work, made of the whole's seed and the part's numbers.

    Args:
        seed: of the whole.
        *numbers: of the part, such as its first row; not negative.

    Example:
        >>> mixed(0, 1) != mixed(1, 0)
        True
    """
    words = np.random.SeedSequence([seed % 2**64, *numbers]).generate_state(1, np.uint64)
    return int(words[0]) % 2**63


def choose(logits: Tensor, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
    """Draw categories by the Gumbel-max rule, argmax_k (l_k + g_k): (*sample_shape, *batch_shape).

    The noise has the shape of the draws, so `choose(l, (K,))` and `choose(l.expand(K, ...))` agree;
    torch's Categorical gives different draws.

    Args:
        logits: unnormalised log weights (*batch_shape, categories).
        sample_shape: how many draws.
    """
    with torch.no_grad():
        uniform = torch.rand(*sample_shape, *logits.shape, dtype=logits.dtype, device=logits.device)
        tiny = torch.finfo(logits.dtype).tiny
        return (logits - (-uniform.clamp(min=tiny).log()).log()).argmax(-1)
