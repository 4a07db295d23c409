"""What every prior is."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn


class Prior(nn.Module, ABC):
    """p(z), or p(z | c) given context.

    To write a new one, subclass this and give `distribution(*c)`, which returns a Pyro distribution
    of event shape (latent_dim,) and batch shape () or, where it depends on the context, (len(c),).
    Constants go in buffers. A prior whose `__init__` takes `posterior` is handed it by `build`.
    `space` names where z lives, "real" for all of R^d; a VAE's posterior must live there too. A
    prior that is `indexed` takes as its first context the datum's index, which the likelihood and
    the posterior are not given.

    Args:
        latent_dim: length of z.
    """

    space = "real"
    indexed = False

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if not isinstance(latent_dim, int) or latent_dim < 1:
            raise ValueError(f"expected latent_dim to be a positive whole number; got {latent_dim}")
        self.latent_dim = latent_dim

    @abstractmethod
    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return p(z | c)."""

    def forward(self, *c: Tensor) -> TorchDistribution:
        """Return p(z | c) of event shape (latent_dim,).

        Raises:
            ValueError: what `distribution` returned has another event shape.
        """
        z = self.distribution(*c)
        if tuple(z.event_shape) != (self.latent_dim,):
            raise ValueError(
                f"{type(self).__name__}.distribution: expected event_shape ({self.latent_dim},); "
                f"got batch_shape {tuple(z.batch_shape)} and event_shape {tuple(z.event_shape)}: "
                "declare the latent dimension with .to_event(1)"
            )
        return z

    def extra_repr(self) -> str:
        """Return what `repr` shows of the prior itself."""
        return f"latent_dim={self.latent_dim}"


class OfPosterior(Prior):
    """A prior made of the posterior q(z|x) of its VAE, which it holds by reference.

    The posterior's parameters belong to the VAE, not to this module's state dict.

    Args:
        latent_dim: length of z.
        posterior: the part q(z|x) that the VAE uses; it takes no context.

    Raises:
        ValueError: the latent dimensions differ, or the posterior takes context.
    """

    def __init__(self, latent_dim: int, posterior: nn.Module) -> None:
        super().__init__(latent_dim)
        if posterior.event_shape != (latent_dim,):
            raise ValueError(
                f"expected a posterior of latent_dim {latent_dim}; got one of "
                f"{posterior.event_shape[0]}"  # type: ignore[index]
            )
        if getattr(posterior, "context_dim", 0):
            raise ValueError(
                f"{type(self).__name__} expected a posterior that takes no context; got "
                f"{type(posterior).__name__} with context_dim={posterior.context_dim}"
            )
        self._posterior = (posterior,)  # in a tuple, so that it is no submodule

    def posterior_of(self, x: Tensor) -> TorchDistribution:
        """Return q(z | x)."""
        return self._posterior[0](x)

    def _apply(self, fn: Callable, recurse: bool = True) -> "OfPosterior":
        # `.to(device, dtype)` moves all that the prior computes with.
        self._posterior[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)


def check_components(number: int) -> None:
    """Refuse a number of components that is no positive whole number."""
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"expected num_components to be a positive whole number; got {number}")


def join_context(part: str, c: tuple[Tensor, ...], context_dim: int) -> Tensor:
    """Return context tensors side by side, (..., context_dim); one dimension is a column.

    Raises:
        ValueError: they do not hold `context_dim` numbers a datum.
    """
    columns = [t.unsqueeze(-1) if t.dim() == 1 else t for t in c]
    if sum(t.shape[-1] for t in columns) != context_dim:
        raise ValueError(
            f"{part} expected context tensors with {context_dim} numbers a datum in all; got "
            f"shapes {[tuple(t.shape) for t in c]}: give them after x, as in vae.model(x, c)"
        )
    return torch.cat(columns, -1)
