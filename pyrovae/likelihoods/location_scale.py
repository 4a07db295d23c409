"""Real data: a location from the network, and a scale that is fixed, learnt or predicted."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.likelihoods.base import Likelihood
from pyrovae.nets import NetFactory, Shape, mlp


class Variance(ABC):
    """How a likelihood comes by its scale sigma, a Normal's standard deviation: not by a string.

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


class LocationScale(Likelihood):
    """prod_i f(x_i; mu_i(z), sigma_i); the network gives mu, and log sigma if that is predicted.

    A subclass gives `elementwise(loc, scale)`, and `location_of(mean, scale)` where a location is
    not the mean. Learnt scales have a floor: where a pixel is constant, log p(x) is unbounded
    without one.

    Args:
        latent_dim: length of z.
        data_shape: shape of one datum.
        net: factory of the network, or the network.
        context_dim: numbers of context a datum; 0 for none.
        scale: `Fixed(sigma)`, `Shared()`, `PerDimension()` or `Predicted()`.

    Raises:
        ValueError: a scale of another class.
    """

    option = "scale"  # the argument's public name
    scale: Variance

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        scale: Variance = Shared(),  # noqa: B008
    ) -> None:
        if not isinstance(scale, Variance):
            raise ValueError(
                f"expected {self.option} to be Fixed(sigma), Shared(), PerDimension() or "
                f"Predicted(); got {scale!r}"
            )
        self.scale = scale  # `param_shape` asks for it
        super().__init__(latent_dim, data_shape, net, context_dim)
        self.s = scale.parameter(self.data_shape)

    @abstractmethod
    def elementwise(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """Return f(.; loc, scale), every dimension a batch dimension."""

    def location_of(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Return the location under which x has this mean."""
        return mean

    @property
    def param_shape(self) -> Shape:
        """data_shape, or (2, *data_shape) where sigma is predicted."""
        return (2, *self.event_shape) if self.scale.predicted else self.event_shape

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return prod_i f(x_i; mu_i, sigma_i)."""
        n = len(self.event_shape)
        loc, s = params.unbind(-1 - n) if self.scale.predicted else (params, self.s)
        return self.elementwise(loc, self.scale.scale(loc, s).expand_as(loc)).to_event(n)

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return the location of the mean, with s = 0 where that is predicted."""
        mean = x.mean(0)
        s = torch.zeros_like(mean) if self.scale.predicted else self.s
        loc = self.location_of(mean, self.scale.scale(mean, s))
        return torch.stack([loc, torch.zeros_like(loc)]) if self.scale.predicted else loc

    def extra_repr(self) -> str:
        """Return what `repr` shows of the likelihood itself."""
        return f"{self.option}={self.scale}"


class Normal(LocationScale):
    """p(x|z) = prod_i N(x_i; mu_i(z), sigma_i^2); the network gives mu, and log sigma if predicted.

    Kingma & Welling (2014); for the choices of sigma, Rybkin et al. (2021). Learnt variances have
    a floor: where a pixel is constant, log p(x) is unbounded without one.

    Args:
        latent_dim: length of z.
        data_shape: shape of one datum.
        net: factory of the network, or the network.
        context_dim: numbers of context a datum; 0 for none.
        variance: `Fixed(sigma)`, `Shared()`, `PerDimension()` or `Predicted()`.

    Raises:
        ValueError: a variance of another class.

    Example:
        >>> Normal(latent_dim=2, data_shape=(3,), variance=Fixed(0.1))(torch.zeros(2)).variance
        tensor([0.0100, 0.0100, 0.0100])
    """

    option = "variance"

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        variance: Variance = Shared(),  # noqa: B008
    ) -> None:
        super().__init__(latent_dim, data_shape, net, context_dim, variance)

    @property
    def variance(self) -> Variance:
        """How sigma is come by."""
        return self.scale

    def elementwise(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """Return N(loc, scale^2)."""
        return dist.Normal(loc, scale)


class Laplace(LocationScale):
    """p(x|z) = prod_i exp(-|x_i - mu_i(z)| / sigma_i) / (2 sigma_i).

    One of the location-scale families of Kingma & Welling (2014), section 2.4: absolute error in
    place of squared error, so mu is a median. Arguments: see `LocationScale`.

    Example:
        >>> Laplace(latent_dim=2, data_shape=(3,), scale=Fixed(0.1))(torch.zeros(2)).variance
        tensor([0.0200, 0.0200, 0.0200])
    """

    def elementwise(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """Return Laplace(loc, scale)."""
        return dist.Laplace(loc, scale)


class StudentT(LocationScale):
    """p(x|z) = prod_i t(x_i; nu, mu_i(z), sigma_i), with the degrees of freedom nu learnt.

    Outliers cost it log|x|, not x^2: Takahashi et al. (2018). One nu = exp(log_df) serves all
    dimensions. The mean exists where nu > 1, the variance where nu > 2.

    Args:
        latent_dim: length of z.
        data_shape: shape of one datum.
        net: factory of the network, or the network.
        context_dim: numbers of context a datum; 0 for none.
        scale: `Fixed(sigma)`, `Shared()`, `PerDimension()` or `Predicted()`.
        df: where nu starts.

    Raises:
        ValueError: a scale of another class, or df <= 0.
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        scale: Variance = Shared(),  # noqa: B008
        df: float = 10.0,
    ) -> None:
        if not 0 < df < math.inf:
            raise ValueError(f"expected df to be a positive number; got {df!r}")
        super().__init__(latent_dim, data_shape, net, context_dim, scale)
        self.log_df = nn.Parameter(torch.tensor(math.log(df)))

    def elementwise(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """Return t(nu, loc, scale)."""
        return dist.StudentT(self.log_df.exp(), loc, scale)


class LogNormal(LocationScale):
    """p(x|z) = prod_i N(log x_i; mu_i(z), sigma_i^2) / x_i, x > 0.

    The exponential of a normal, as in Kingma & Welling (2014), section 2.4; E[x_i|z] =
    exp(mu_i + sigma_i^2 / 2). Arguments: see `LocationScale`.
    """

    def elementwise(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """Return the law of exp(y), y ~ N(loc, scale^2)."""
        return dist.LogNormal(loc, scale)

    def location_of(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Return log(mean) - scale^2 / 2."""
        return mean.log() - scale.square() / 2
