"""Levels 0, ..., L - 1 (of grey or colour): free probabilities, or a rounded logistic variable."""

import math

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae import distributions
from pyrovae.distributions.special import bisect
from pyrovae.likelihoods.base import Likelihood
from pyrovae.nets import NetFactory, Shape, mlp


class Levels(Likelihood):
    """p(x|z) over x in {0, ..., L - 1} a dimension.

    Args:
        latent_dim: length of z.
        data_shape: shape of one datum.
        net: factory of the network, or the network.
        context_dim: numbers of context a datum; 0 for none.
        num_levels: L.

    Raises:
        ValueError: num_levels is no whole number from 2 on.
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        num_levels: int = 256,
    ) -> None:
        if not isinstance(num_levels, int) or num_levels < 2:
            raise ValueError(
                f"expected num_levels to be a whole number from 2 on; got {num_levels!r}"
            )
        self.num_levels = num_levels  # `param_shape` may ask for it
        super().__init__(latent_dim, data_shape, net, context_dim)


class Categorical(Levels):
    """p(x|z) = prod_i softmax(l_i(z))_(x_i), x in {0, ..., L - 1}; the network gives the logits l.

    van den Oord et al. (2016), section 3.3. Nothing says that neighbouring levels are alike: the
    data must. Arguments: see `Levels`.

    Example:
        >>> likelihood = Categorical(latent_dim=2, data_shape=(3,), num_levels=17)
        >>> likelihood.param_shape
        (3, 17)
    """

    @property
    def param_shape(self) -> Shape:
        """(*data_shape, num_levels)."""
        return (*self.event_shape, self.num_levels)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return Categorical(logits=params)."""
        return distributions.CategoricalLevels(logits=params).to_event(len(self.event_shape))

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return log[(1 - 0.001) f_k + 0.001 / L], f_k the frequency of level k.

        Its mean is the data's up to 0.001 (L - 1) / 2 levels.
        """
        x = x.round()  # entries that are missing may have been filled with a mean
        f = torch.stack([(x == k).sum(0) for k in range(self.num_levels)], -1) / len(x)
        return torch.log((1 - 1e-3) * f.to(x.dtype) + 1e-3 / self.num_levels)


class DiscretizedLogistic(Levels):
    """p(x|z) = prod_i sigma((c_i + h - m_i(z)) / s_i(z)) - sigma((c_i - h - m_i(z)) / s_i(z)).

    A logistic variable rounded to L levels: c = x / (L - 1) in [0, 1], h = 1 / (2 (L - 1)); the
    levels 0 and L - 1 take all that lies beyond them. Kingma et al. (2016), Salimans et al. (2017),
    eq. 2. The network gives m and log(s - min_scale).

    Args:
        latent_dim: length of z.
        data_shape: shape of one datum.
        net: factory of the network, or the network, (latent_dim,) -> (2, *data_shape).
        context_dim: numbers of context a datum; 0 for none.
        num_levels: L.
        min_scale: what s exceeds, on the scale of c; the default is an eighth of one of 256 levels.

    Raises:
        ValueError: num_levels is no whole number from 2 on, or min_scale <= 0.
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        num_levels: int = 256,
        min_scale: float = 0.125 / 255,
    ) -> None:
        if not 0 < min_scale < math.inf:
            raise ValueError(f"expected min_scale to be a positive number; got {min_scale!r}")
        self.min_scale = min_scale
        super().__init__(latent_dim, data_shape, net, context_dim, num_levels)

    @property
    def param_shape(self) -> Shape:
        """(2, *data_shape)."""
        return (2, *self.event_shape)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return the discretised logistic for params (..., 2, *data_shape): m and log s."""
        n = len(self.event_shape)
        return self.elementwise(*params.unbind(-1 - n)).to_event(n)

    def elementwise(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
        """Return the discretised logistic, every dimension a batch dimension."""
        scale = self.min_scale + log_scale.exp()
        return distributions.DiscretizedLogistic(loc, scale, self.num_levels)

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return m that gives the mean of the data, and s that gives their deviation."""
        return torch.stack(self.start(x, 1)).squeeze(1)

    def start(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return m and log s, each (k, *data_shape), of an even mixture whose mean is the data's.

        The means are spread over as wide an interval as has the data's deviation. The data's mean
        is clipped to [0.001, 0.999] of L - 1.
        """
        top = self.num_levels - 1
        deviation = x.std(0, correction=0) / top
        scale = (deviation * math.sqrt(3) / math.pi / k).clamp(min=1 / top)
        spread = (2 * torch.arange(k, dtype=x.dtype, device=x.device) + 1) / k - 1
        offset = spread.reshape(k, *(1 for _ in self.event_shape)) * deviation * math.sqrt(3)
        log_scale = scale.log().expand_as(offset)
        loc = bisect(
            lambda loc: self.elementwise(loc + offset, log_scale).mean.mean(0),
            x.mean(0).clamp(1e-3 * top, (1 - 1e-3) * top),
            -20 * k * scale,
            1 + 20 * k * scale,
        )
        return loc + offset, log_scale


class DiscretizedLogisticMixture(DiscretizedLogistic):
    """p(x|z) = prod_i sum_k w_ik(z) DiscretizedLogistic(x_i; m_ik(z), s_ik(z)).

    Salimans et al. (2017), eq. 2, without its coupling of colour channels: each number of x has a
    mixture of its own. The network gives logits of w, then m, then log(s - min_scale).

    Args:
        latent_dim: length of z.
        data_shape: shape of one datum.
        net: factory of the network, or the network, (latent_dim,) -> (3, K, *data_shape).
        context_dim: numbers of context a datum; 0 for none.
        num_levels: L.
        min_scale: what s exceeds, where levels span [0, 1].
        num_components: K.

    Raises:
        ValueError: num_levels is no whole number from 2 on, num_components is no positive one, or
            min_scale <= 0.
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        num_levels: int = 256,
        min_scale: float = 0.125 / 255,
        num_components: int = 5,
    ) -> None:
        if not isinstance(num_components, int) or num_components < 1:
            raise ValueError(
                f"expected num_components to be a positive whole number; got {num_components!r}"
            )
        self.num_components = num_components
        super().__init__(latent_dim, data_shape, net, context_dim, num_levels, min_scale)

    @property
    def param_shape(self) -> Shape:
        """(3, num_components, *data_shape)."""
        return (3, self.num_components, *self.event_shape)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return the mixture for params (..., 3, num_components, *data_shape)."""
        n = len(self.event_shape)
        logits, loc, log_scale = params.movedim(-1 - n, -1).unbind(-2 - n)
        mixture = dist.MixtureSameFamily(
            dist.Categorical(logits=logits), self.elementwise(loc, log_scale)
        )
        return mixture.to_event(n)

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return even weights, with means and scales that give the data's mean."""
        loc, log_scale = self.start(x, self.num_components)
        return torch.stack([torch.zeros_like(loc), loc, log_scale])
