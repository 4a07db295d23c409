"""Likelihoods p(x|z): modules whose call on z returns a distribution over one datum x."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae import distributions
from pyrovae.distributions import Conditional, diagonal_normal
from pyrovae.nets import NetFactory, Shape, mlp

__all__ = ["Bernoulli", "Binomial", "ContinuousBernoulli", "Normal"]


class Likelihood(Conditional):
    """p(x|z): z (..., latent_dim) gives batch shape (...) and event shape `data_shape`.

    `Conditional` says how to write a new one; one whose mean can be started at the data's also
    gives `params_of_mean`.

    Args:
        latent_dim: length of z.
        data_shape: shape of one datum.
        net: factory of the network, or the network, (latent_dim,) -> param_shape.
        context_dim: numbers of context a datum; 0 for none.
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
    ) -> None:
        super().__init__((latent_dim,), data_shape, net, context_dim)
        self.latent_dim, self.data_shape = latent_dim, self.event_shape

    def params_of_mean(self, mean: Tensor) -> Tensor:
        """Return parameters (*param_shape) under which E[x] is about `mean` (*data_shape)."""
        raise ValueError(f"{type(self).__name__} has no rule from a mean to its parameters")

    def start_at_mean(self, x: Tensor) -> None:
        """Set the network's output bias so that decoding starts at the data's mean.

        For a Bernoulli the bias is the logit of each pixel's training mean, clipped to
        [0.001, 0.999], as in Burda et al. (2016).

        Args:
            x: training data (N, *data_shape).

        Raises:
            ValueError: the network has no `output.bias` (those of `nets` have), x has another
                shape or no rows, or the likelihood has no such rule.
        """
        bias = getattr(getattr(self.net, "output", None), "bias", None)
        if not isinstance(bias, Tensor) or bias.numel() != math.prod(self.param_shape):
            raise ValueError(
                "start_at_mean expected a network whose last linear map is its attribute `output`; "
                f"got {type(self.net).__name__}"
            )
        if len(x) == 0 or tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(
                f"expected data of shape (N, {', '.join(map(str, self.data_shape))}) with N > 0; "
                f"got {tuple(x.shape)}"
            )
        with torch.no_grad():
            bias.copy_(self.params_of_mean(x.to(bias).mean(0)).reshape(-1))


def _logit(p: Tensor) -> Tensor:
    return p.clamp(1e-3, 1 - 1e-3).logit()


class Bernoulli(Likelihood):
    """p(x|z) = prod_i p_i^x_i (1 - p_i)^(1 - x_i), x in {0, 1}; the network gives logits of p.

    Grey pixels are off its support, and refused. Arguments: see `Likelihood`.

    Example:
        >>> likelihood = Bernoulli(latent_dim=2, data_shape=(3,))
        >>> likelihood(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return Bernoulli(logits=params)."""
        return dist.Bernoulli(logits=params).to_event(len(self.event_shape))

    def params_of_mean(self, mean: Tensor) -> Tensor:
        """Return logit(mean)."""
        return _logit(mean)


class ContinuousBernoulli(Likelihood):
    """p(x|z) = prod_i C(p_i) p_i^x_i (1 - p_i)^(1 - x_i), a density on x in [0, 1].

    C(p) = 2 atanh(1 - 2p) / (1 - 2p), or 2 at p = 1/2. Loaiza-Ganem & Cunningham (2019). The
    network gives logits of p. Arguments: see `Likelihood`.
    """

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return ContinuousBernoulli(logits=params)."""
        return distributions.ContinuousBernoulli(logits=params).to_event(len(self.event_shape))

    def params_of_mean(self, mean: Tensor) -> Tensor:
        """Return the logits l in [-15, 15] with 1 / (1 - exp(-l)) - 1 / l = mean, by bisection."""
        low, high = torch.full_like(mean, -15.0), torch.full_like(mean, 15.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = dist.ContinuousBernoulli(logits=middle).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


class Binomial(Likelihood):
    """p(x|z) = prod_i (n over x_i) p_i^x_i (1 - p_i)^(n - x_i), x in {0, ..., n}.

    The exact support of counts with a known maximum: scikit-learn's 8x8 digits count the ink of
    4x4 blocks, n = 16. The network gives logits of p.

    Args:
        latent_dim: length of z.
        data_shape: shape of one datum.
        net: factory of the network, or the network.
        context_dim: numbers of context a datum; 0 for none.
        total_count: n.

    Raises:
        ValueError: total_count is no positive whole number.
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        total_count: int = 16,
    ) -> None:
        super().__init__(latent_dim, data_shape, net, context_dim)
        if not isinstance(total_count, int) or total_count < 1:
            raise ValueError(
                f"expected total_count to be a positive whole number; got {total_count!r}"
            )
        self.total_count = total_count

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return Binomial(n, logits=params)."""
        return dist.Binomial(self.total_count, logits=params).to_event(len(self.event_shape))

    def params_of_mean(self, mean: Tensor) -> Tensor:
        """Return logit(mean / n)."""
        return _logit(mean / self.total_count)


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

    def params_of_mean(self, mean: Tensor) -> Tensor:
        """Return the mean, with s = 0 where that is predicted."""
        return torch.stack([mean, torch.zeros_like(mean)]) if self.variance.predicted else mean

    def extra_repr(self) -> str:
        """Return what `repr` shows of the likelihood itself."""
        return f"variance={self.variance}"
