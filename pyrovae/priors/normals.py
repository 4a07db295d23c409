"""Priors of independent dimensions: normal, and of heavier tails."""

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import diagonal_normal
from pyrovae.nets import NetFactory, connect, mlp
from pyrovae.priors.base import Prior, join_context


class StandardNormal(Prior):
    """p(z) = N(0, I).

    Kingma & Welling (2014). It ignores context.

    Args:
        latent_dim: length of z.

    Example:
        >>> StandardNormal(latent_dim=2)().log_prob(torch.zeros(2))  # -log 2 pi
        tensor(-1.8379)
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("loc", torch.zeros(latent_dim))
        self.register_buffer("scale", torch.ones(latent_dim))

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return N(0, I)."""
        return diagonal_normal(self.loc, self.scale)


class LocationScale(Prior):
    """Independent dimensions of location m_i and scale s_i = exp(log_scale_i), both learnt.

    They start at 0 and 1. It ignores context.

    Args:
        latent_dim: length of z.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))


class LearnedNormal(LocationScale):
    """p(z) = N(m, diag s^2), with m and s learnt.

    Hoffman & Johnson (2016): such a prior moves to the aggregate posterior. With a decoder whose
    first layer is linear it is the standard normal in other coordinates; with a decoder that is
    fixed, shared or regularised it is not. Arguments: see `LocationScale`.
    """

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return N(m, diag s^2)."""
        return diagonal_normal(self.loc, self.log_scale.exp())


class Laplace(LocationScale):
    """p(z) = prod_i Laplace(z_i; m_i, s_i), with m and s learnt.

    Its sharp peak favours sparse codes: Barello et al. (2018). Arguments: see `LocationScale`.
    """

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return the product of Laplace densities."""
        return dist.Laplace(self.loc, self.log_scale.exp()).to_event(1)


class StudentT(LocationScale):
    """p(z) = prod_i t(z_i; nu, m_i, s_i), with nu > 0, m and s learnt.

    Heavy tails, which the evidence of outlying data needs: Kim et al. (2024). The degrees of
    freedom nu = exp(log_df) start at 10. Arguments: see `LocationScale`.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.log_df = nn.Parameter(torch.tensor(10.0).log())

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return the product of Student t densities."""
        return dist.StudentT(self.log_df.exp(), self.loc, self.log_scale.exp()).to_event(1)


class ConditionalNormal(Prior):
    """p(z|c) = N(m(c), diag s(c)^2); the network gives (m, log s^2).

    Sohn et al. (2015), eq. 4. All the context tensors together are the network's input.

    Args:
        latent_dim: length of z.
        context_dim: numbers of context a datum, over all context tensors.
        net: factory of the network, or the network, (context_dim,) -> (2, latent_dim).

    Raises:
        ValueError: no context, or (when called) context of another size.

    Example:
        >>> prior = ConditionalNormal(latent_dim=2, context_dim=3)
        >>> prior(torch.zeros(5, 3)).batch_shape
        torch.Size([5])
    """

    def __init__(
        self,
        latent_dim: int,
        context_dim: int = 1,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
    ) -> None:
        super().__init__(latent_dim)
        if not isinstance(context_dim, int) or context_dim < 1:
            raise ValueError(
                f"expected context_dim to be a positive whole number; got {context_dim!r}: "
                "LearnedNormal takes no context"
            )
        self.context_dim = context_dim
        self.net = connect(net, (context_dim,), (2, latent_dim))

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return N(m(c), diag s(c)^2) of batch shape (len(c),).

        Raises:
            ValueError: no context, or not `context_dim` numbers a datum.
        """
        given = join_context(type(self).__name__, c, self.context_dim)
        like = next(self.parameters(), given)
        loc, log_variance = self.net(given.to(like.dtype)).unbind(-2)
        return diagonal_normal(loc, (0.5 * log_variance).exp())
