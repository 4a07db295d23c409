"""Real data: a location from the network, and a scale that is fixed, learnt or predicted."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import diagonal_normal
from pyrovae.likelihoods.base import Likelihood
from pyrovae.nets import NetFactory, Shape, mlp


class Variance(ABC):
    """How a Normal likelihood comes by its standard deviation sigma: an object, not a string.

    To write a new one, subclass this as a frozen dataclass; `build` finds it by its class name.
    """

    predicted = False  # does the network give a second map, s?

    def parameter(self, data_shape: Shape) -> nn.Parameter | None:
        """Return the s that the likelihood is to learn, if any."""
        return None

    @abstractmethod
    def scale(self, loc: Tensor, s: Tensor | None) -> Tensor:
        """Return sigma, which broadcasts to loc (..., *data_shape), from s learnt or predicted."""


@dataclass(frozen=True)
class Fixed(Variance):
    """sigma = `value`, for every dimension and datum.

    With sigma fixed, log p(x|z) is squared error over -2 sigma^2, up to a constant.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise ValueError(f"expected Fixed(sigma) with sigma > 0; got {self.value!r}")

    def scale(self, loc: Tensor, s: Tensor | None) -> Tensor:
        """Return sigma."""
        return loc.new_tensor(self.value)


@dataclass(frozen=True)
class Predicted(Variance):
    """sigma_i(z) = min_scale + exp(s_i(z)), s the network's second map."""

    min_scale: float = 0.5 / 255
    predicted = True

    def __post_init__(self) -> None:
        if not 0 <= self.min_scale < math.inf:
            raise ValueError(f"expected min_scale >= 0; got {self.min_scale!r}")

    def scale(self, loc: Tensor, s: Tensor | None) -> Tensor:
        """Return min_scale + exp(s)."""
        assert s is not None
        return self.min_scale + s.exp()


@dataclass(frozen=True)
class Shared(Predicted):
    """One learnt sigma = min_scale + exp(s), for every dimension and datum; s starts at 0."""

    predicted = False

    def parameter(self, data_shape: Shape) -> nn.Parameter:
        """Return s, shape ()."""
        return nn.Parameter(torch.zeros(()))


@dataclass(frozen=True)
class PerDimension(Shared):
    """A learnt sigma_i = min_scale + exp(s_i) for each dimension i; s starts at 0."""

    def parameter(self, data_shape: Shape) -> nn.Parameter:
        """Return s, shape data_shape."""
        return nn.Parameter(torch.zeros(data_shape))


class Normal(Likelihood):
    """p(x|z) = prod_i N(x_i; mu_i(z), sigma_i^2); the network gives mu, and log sigma if predicted.

    Learnt variances have a floor: where a pixel is constant, log p(x) is unbounded without one.

    Args:
        latent_dim: length of z.
        data_shape: shape of one datum.
        net: factory of the network, or the network.
        context_dim: numbers of context a datum; 0 for none.
        variance: `Fixed(sigma)`, `Shared()`, `PerDimension()` or `Predicted()`.

    Example:
        >>> Normal(latent_dim=2, data_shape=(3,), variance=Fixed(0.1))(torch.zeros(2)).variance
        tensor([0.0100, 0.0100, 0.0100])
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        variance: Variance = Shared(),  # noqa: B008
    ) -> None:
        if not isinstance(variance, Variance):
            raise ValueError(
                "expected variance to be Fixed(sigma), Shared(), PerDimension() or Predicted(); "
                f"got {variance!r}"
            )
        self.variance = variance  # `param_shape` asks for it
        super().__init__(latent_dim, data_shape, net, context_dim)
        self.s = variance.parameter(self.data_shape)

    @property
    def param_shape(self) -> Shape:
        """data_shape, or (2, *data_shape) where sigma is predicted."""
        return (2, *self.event_shape) if self.variance.predicted else self.event_shape

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return N(mu, diag(sigma^2))."""
        n = len(self.event_shape)
        loc, s = params.unbind(-1 - n) if self.variance.predicted else (params, self.s)
        scale = self.variance.scale(loc, s).expand_as(loc)
        return diagonal_normal(loc, scale, event_dim=n)

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return the mean, with s = 0 where that is predicted."""
        mean = x.mean(0)
        return torch.stack([mean, torch.zeros_like(mean)]) if self.variance.predicted else mean

    def extra_repr(self) -> str:
        """Return what `repr` shows of the likelihood itself."""
        return f"variance={self.variance}"
