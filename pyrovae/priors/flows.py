"""Priors by normalising flows."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions.flows import Counts, NormalFlow, ZukoFlow
from pyrovae.priors.base import Prior, join_context


class Flow(Counts):
    """A normalising flow whose density of a given z is one pass: not by a string.

    To write a new one, subclass this as a frozen dataclass of positive whole numbers; `build` finds
    it by its class name.
    """

    @abstractmethod
    def network(self, latent_dim: int, context_dim: int) -> nn.Module:
        """Return what is learnt: a module (context or None) -> bijection."""


@dataclass(frozen=True)
class NeuralSpline(Flow):
    """Each z_i through a rational-quadratic spline given by z_<i: Durkan et al. (2019).

    Splines of `bins` pieces on [-5, 5]; outside the map is the identity, so there the density is
    that of N(0, 1).
    """

    transforms: int = 3
    width: int = 64
    bins: int = 8

    def network(self, latent_dim: int, context_dim: int) -> nn.Module:
        """Return an autoregressive spline flow."""
        return ZukoFlow(
            "NSF", latent_dim, context_dim, True, self.transforms, self.width, bins=self.bins
        )


@dataclass(frozen=True)
class MaskedAutoregressive(Flow):
    """Each z_i shifted and scaled by what depends on z_<i: Papamakarios et al. (2017).

    With latent_dim 1 it is a normal.
    """

    transforms: int = 3
    width: int = 64

    def network(self, latent_dim: int, context_dim: int) -> nn.Module:
        """Return a masked autoregressive flow."""
        return ZukoFlow("MAF", latent_dim, context_dim, True, self.transforms, self.width)


@dataclass(frozen=True)
class RealNVP(Flow):
    """Half of z shifted and scaled by what depends on the other half, in turn: Dinh et al. (2017).

    Draws are as fast as densities. With latent_dim 1 it is a normal.
    """

    transforms: int = 6
    width: int = 64

    def network(self, latent_dim: int, context_dim: int) -> nn.Module:
        """Return a flow of affine couplings."""
        return ZukoFlow("RealNVP", latent_dim, context_dim, True, self.transforms, self.width)


class FlowPrior(Prior):
    """p(z) = N(f(z); 0, I) |det df/dz|, f an invertible map that is learnt.

    Durkan et al. (2019), Papamakarios et al. (2017) or Dinh et al. (2017), by the flow. Any z is
    scored in one pass; to draw, an autoregressive f is inverted dimension by dimension. With
    context f depends on it, p(z|c). It needs zuko: pip install 'pyrovae[flows]'.

    Args:
        latent_dim: length of z.
        flow: `NeuralSpline()`, `MaskedAutoregressive()` or `RealNVP()`.
        context_dim: numbers of context a datum, over all context tensors; 0 to ignore context.

    Raises:
        ValueError: a flow of another class, a negative context_dim, no zuko, or (when called)
            context of another size.

    Example:
        >>> prior = FlowPrior(latent_dim=2, flow=RealNVP(transforms=2))
        >>> prior().sample((5,)).shape
        torch.Size([5, 2])
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        latent_dim: int,
        flow: Flow = NeuralSpline(),  # noqa: B008
        context_dim: int = 0,
    ) -> None:
        super().__init__(latent_dim)
        if not isinstance(flow, Flow):
            raise ValueError(
                "expected flow to be NeuralSpline(), MaskedAutoregressive() or RealNVP(); got "
                f"{flow!r}"
            )
        if not isinstance(context_dim, int) or context_dim < 0:
            raise ValueError(f"expected context_dim to be a whole number >= 0; got {context_dim!r}")
        self.flow, self.context_dim = flow, context_dim
        self.network = flow.network(latent_dim, context_dim)
        self.register_buffer("loc", torch.zeros(latent_dim))
        self.register_buffer("scale", torch.ones(latent_dim))

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return the flow, of batch shape () or, given context, (len(c),).

        Raises:
            ValueError: not `context_dim` numbers of context a datum.
        """
        if not self.context_dim:
            return NormalFlow(self.loc, self.scale, self.network())
        context = join_context(type(self).__name__, c, self.context_dim).to(self.loc.dtype)
        loc = self.loc.expand(*context.shape[:-1], -1)
        return NormalFlow(loc, self.scale, self.network(context))
