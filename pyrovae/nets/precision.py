"""Networks whose products of matrices are taken in bfloat16, and nothing else."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PRODUCTS = {
    functional.linear,
    functional.conv1d, functional.conv2d, functional.conv3d,
    functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
}  # fmt: skip


class bf16_matmuls(TorchFunctionMode):
    """Take the linear and convolutional layers inside the block in bfloat16, gradients too.

    Their float32 inputs are rounded to 8 bits, sums are taken in float32, and what comes out is
    rounded and given back in float32. Parameters, densities and all else stay in float32, and what
    is float64 stays so. Where a function is traced inside the block, it keeps that.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> torch.nn.init.constant_(layer.weight, 1.001).item()
        1.0010000467300415
        >>> with bf16_matmuls():
        ...     y = layer(torch.ones(1))
        >>> y.item(), y.dtype
        (1.0, torch.float32)
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or args[0].dtype != torch.float32:
            return func(*args, **kwargs)
        rounded = {name: _rounded(value) for name, value in kwargs.items()}
        return func(*map(_rounded, args), **rounded).to(torch.float32)


def _rounded(value: Any) -> Any:
    single = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.to(torch.bfloat16) if single else value
