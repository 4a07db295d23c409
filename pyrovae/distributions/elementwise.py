"""What the library's own distributions of one number share."""

import copy
from typing import Self

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions.utils import broadcast_all


class Elementwise(TorchDistribution):
    """A distribution of one number; `arg_constraints` names its parameters, which broadcast.

    To write a new one, subclass this with `arg_constraints`, `support`, `log_prob` and `sample`.
    Anything else that it keeps as an attribute survives `expand`.

    Args:
        *parameters: tensors, in the order of `arg_constraints`.
        validate_args: see torch.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, *parameters: Tensor, validate_args: bool | None = None) -> None:
        tensors = broadcast_all(*parameters)
        for name, tensor in zip(self.arg_constraints, tensors, strict=True):
            setattr(self, name, tensor)
        super().__init__(tensors[0].shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Self | None = None) -> Self:
        """Return the distribution with its parameters expanded to the batch shape."""
        new = copy.copy(self)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        new._batch_shape = torch.Size(batch_shape)
        return new
