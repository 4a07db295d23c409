"""Binary data, grey values under a density of their own, and counts of known maximum."""

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae import distributions
from pyrovae.distributions.special import bisect
from pyrovae.likelihoods.base import Likelihood, logit
from pyrovae.nets import NetFactory, Shape, mlp


class Bernoulli(Likelihood):
    """p(x|z) = prod_i p_i^x_i (1 - p_i)^(1 - x_i), x in {0, 1}; the network gives logits of p.

    Kingma & Welling (2014), appendix C.1. Grey pixels are off its support, and refused. Arguments:
    see `Likelihood`.

    Example:
        >>> likelihood = Bernoulli(latent_dim=2, data_shape=(3,))
        >>> likelihood(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return Bernoulli(logits=params)."""
        return dist.Bernoulli(logits=params).to_event(len(self.event_shape))

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return logit(mean)."""
        return logit(x.mean(0))


class ContinuousBernoulli(Likelihood):
    """p(x|z) = prod_i C(p_i) p_i^x_i (1 - p_i)^(1 - x_i), a density on x in [0, 1].

    C(p) = 2 atanh(1 - 2p) / (1 - 2p), or 2 at p = 1/2. Loaiza-Ganem & Cunningham (2019). The
    network gives logits of p. Arguments: see `Likelihood`.
    """

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return ContinuousBernoulli(logits=params)."""
        return distributions.ContinuousBernoulli(logits=params).to_event(len(self.event_shape))

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return the logits l in [-15, 15] with 1 / (1 - exp(-l)) - 1 / l = mean, by bisection."""
        ends = torch.full_like(x[0], 15.0)
        return bisect(lambda t: dist.ContinuousBernoulli(logits=t).mean, x.mean(0), -ends, ends)


class Binomial(Likelihood):
    """p(x|z) = prod_i (n over x_i) p_i^x_i (1 - p_i)^(n - x_i), x in {0, ..., n}.

    McCullagh & Nelder (1989), chapter 4. The exact support of counts with a known maximum:
    scikit-learn's 8x8 digits count the ink of 4x4 blocks, n = 16. The network gives logits of p.

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

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return logit(mean / n)."""
        return logit(x.mean(0) / self.total_count)
