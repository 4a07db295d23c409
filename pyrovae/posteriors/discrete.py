"""Posteriors of discrete latents, and of their relaxation."""

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae import distributions
from pyrovae.distributions.discrete import (
    OneHotVectors,
    Simplices,
    check_groups,
    check_levels,
    check_temperature,
    levels_space,
)
from pyrovae.nets import NetFactory, Shape, mlp
from pyrovae.posteriors.base import Posterior


class Grouped(Posterior):
    """`groups` categorical variables of equally many categories; the network gives their logits.

    Args:
        data_shape: shape of one datum.
        latent_dim: length of z, groups * categories.
        net: factory of the network, or the network, data_shape -> (groups, categories).
        context_dim: numbers of context a datum; 0 for none.
        input_scale: x is multiplied by this before it enters the network.
        missing: may entries of x be missing?
        groups: number of variables.

    Raises:
        ValueError: groups does not divide latent_dim into parts of at least 2.
    """

    values: type[OneHotVectors] | type[Simplices] = OneHotVectors

    def __init__(
        self,
        data_shape: Shape,
        latent_dim: int,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        input_scale: float = 1.0,
        missing: bool = False,
        groups: int = 1,
    ) -> None:
        self.groups, self.categories = check_groups(latent_dim, groups)
        super().__init__(data_shape, latent_dim, net, context_dim, input_scale, missing)
        self.space = str(self.values(self.groups, self.categories))

    @property
    def param_shape(self) -> Shape:
        """(groups, categories): logits."""
        return (self.groups, self.categories)


class OneHotCategorical(Grouped):
    """q(z|x) = prod_g Cat(z_g; pi_g(x)), each z_g one-hot.

    Draws carry no gradient: Trace_ELBO gives score-function gradients, which vary much (Mnih &
    Gregor (2014) on how to tame them); with
    `pyro.infer.config_enumerate(vae.guide)` TraceEnum_ELBO sums over all categories^groups values.
    Arguments and errors: see `Grouped`.

    Example:
        >>> import torch
        >>> q = OneHotCategorical(data_shape=(28, 28), latent_dim=6, groups=2)
        >>> q(torch.zeros(5, 28, 28)).sample().sum(-1)
        tensor([2., 2., 2., 2., 2.])
    """

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return the product of categoricals for logits (..., groups, categories)."""
        return distributions.OneHotGroups(params)


class StraightThrough(Grouped):
    """q(z|x) = prod_g Cat(z_g; pi_g(x)), each z_g one-hot, with gradients straight through.

    Bengio et al. (2013), Jang et al. (2017). The density is that of `OneHotCategorical`; the
    gradient takes dz/dpi to be 1, so it is biased, but varies little. Only that of the KL is right.
    Arguments and errors: see `Grouped`.
    """

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return the product of categoricals for logits (..., groups, categories)."""
        return distributions.StraightThroughGroups(params)


class GumbelSoftmax(Grouped):
    """q(z|x) = prod_g Concrete(z_g; pi_g(x), T), each z_g in a simplex.

    Maddison et al. (2017), Jang et al. (2017). Draws are softmax((log pi + Gumbel noise) / T), with
    unbiased gradients. The KL has no closed form: it is sampled. The temperature is a buffer.

    Args:
        data_shape: shape of one datum.
        latent_dim: length of z, groups * categories.
        net: factory of the network, or the network, data_shape -> (groups, categories).
        context_dim: numbers of context a datum; 0 for none.
        input_scale: x is multiplied by this before it enters the network.
        missing: may entries of x be missing?
        groups: number of simplices.
        temperature: T > 0; draws are nearly one-hot where it is small.

    Raises:
        ValueError: groups does not divide latent_dim into parts of at least 2, or T <= 0.
    """

    values = Simplices
    temperature: Tensor

    def __init__(
        self,
        data_shape: Shape,
        latent_dim: int,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        input_scale: float = 1.0,
        missing: bool = False,
        groups: int = 1,
        temperature: float = 2 / 3,
    ) -> None:
        super().__init__(data_shape, latent_dim, net, context_dim, input_scale, missing, groups)
        self.register_buffer("temperature", check_temperature(temperature))

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return the product of relaxed categoricals for logits (..., groups, categories)."""
        return distributions.RelaxedOneHotGroups(self.temperature, params)


class Categorical(Posterior):
    """q(z|x) = prod_i Cat(z_i; pi_i(x)), z_i in {0, ..., L - 1}.

    Mnih & Gregor (2014). z is floats; draws carry no gradient, as those of `OneHotCategorical`.

    Args:
        data_shape: shape of one datum.
        latent_dim: length of z.
        net: factory of the network, or the network, data_shape -> (latent_dim, num_levels).
        context_dim: numbers of context a datum; 0 for none.
        input_scale: x is multiplied by this before it enters the network.
        missing: may entries of x be missing?
        num_levels: number L of levels.

    Raises:
        ValueError: fewer than 2 levels.
    """

    def __init__(
        self,
        data_shape: Shape,
        latent_dim: int,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        input_scale: float = 1.0,
        missing: bool = False,
        num_levels: int = 10,
    ) -> None:
        check_levels(num_levels)
        self.num_levels = num_levels
        super().__init__(data_shape, latent_dim, net, context_dim, input_scale, missing)
        self.space = levels_space(num_levels)

    @property
    def param_shape(self) -> Shape:
        """(latent_dim, num_levels): logits."""
        return (self.latent_dim, self.num_levels)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return the product of categoricals for logits (..., latent_dim, num_levels)."""
        return distributions.CategoricalVector(params)
