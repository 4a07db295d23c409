"""Priors of discrete latents, and of their relaxation."""

import torch
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
from pyrovae.priors.base import Prior


class _Logits(Prior):
    """Independent categorical variables, equally likely or with logits that are learnt."""

    logits: Tensor

    def __init__(self, latent_dim: int, groups: int, categories: int, learnt: bool) -> None:
        super().__init__(latent_dim)
        logits = torch.zeros(groups, categories)
        if learnt:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)


class OneHotCategorical(_Logits):
    """p(z) = prod_g Cat(z_g; pi_g), each z_g one-hot.

    The discrete latents of Jang et al. (2017): `groups` one-hot vectors, one after the other. All
    categories are equally likely, unless pi is learnt. It ignores context.

    Args:
        latent_dim: length of z, groups * categories.
        groups: number of one-hot vectors.
        learnt: learn pi?

    Raises:
        ValueError: groups does not divide latent_dim into parts of at least 2.

    Example:
        >>> prior = OneHotCategorical(latent_dim=6, groups=2)
        >>> prior.space, prior().enumerate_support().shape
        ('one-hot vectors, 2 groups of 3', torch.Size([9, 6]))
    """

    def __init__(self, latent_dim: int, groups: int = 1, learnt: bool = False) -> None:
        super().__init__(latent_dim, *check_groups(latent_dim, groups), learnt)
        self.space = str(OneHotVectors(*self.logits.shape))

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return the product of categoricals."""
        return distributions.OneHotGroups(self.logits)


class GumbelSoftmax(_Logits):
    """p(z) = prod_g Concrete(z_g; pi_g, T), each z_g in a simplex.

    Maddison et al. (2017), Jang et al. (2017): `OneHotCategorical`, relaxed so that draws carry
    gradients. The temperature is a buffer: `prior.temperature.fill_(...)` anneals it. It ignores
    context.

    Args:
        latent_dim: length of z, groups * categories.
        groups: number of simplices.
        temperature: T > 0; draws are nearly one-hot where it is small.
        learnt: learn pi?

    Raises:
        ValueError: groups does not divide latent_dim into parts of at least 2, or T <= 0.
    """

    temperature: Tensor

    def __init__(
        self, latent_dim: int, groups: int = 1, temperature: float = 0.5, learnt: bool = False
    ) -> None:
        super().__init__(latent_dim, *check_groups(latent_dim, groups), learnt)
        self.space = str(Simplices(*self.logits.shape))
        self.register_buffer("temperature", check_temperature(temperature))

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return the product of relaxed categoricals."""
        return distributions.RelaxedOneHotGroups(self.temperature, self.logits)


class Categorical(_Logits):
    """p(z) = prod_i Cat(z_i; pi_i), z_i in {0, ..., L - 1}.

    Discrete codes, as in van den Oord et al. (2017). All levels are equally likely, unless pi is
    learnt. z is floats. It ignores context.

    Args:
        latent_dim: length of z.
        num_levels: number L of levels.
        learnt: learn pi?

    Raises:
        ValueError: fewer than 2 levels.

    Example:
        >>> Categorical(latent_dim=2, num_levels=3)().enumerate_support().shape
        torch.Size([9, 2])
    """

    def __init__(self, latent_dim: int, num_levels: int = 10, learnt: bool = False) -> None:
        check_levels(num_levels)
        super().__init__(latent_dim, latent_dim, num_levels, learnt)
        self.space = levels_space(num_levels)

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return the product of categoricals."""
        return distributions.CategoricalVector(self.logits)
