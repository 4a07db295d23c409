"""The unit interval, 0 and 1 included."""

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae import distributions
from pyrovae.distributions.special import bisect
from pyrovae.likelihoods.base import Likelihood
from pyrovae.nets import NetFactory, Shape, mlp

MEANS = 1e-6  # m stays this far from 0 and 1, where the concentrations and their gammas would end


class Beta(Likelihood):
    """p(x|z) = prod_i Beta(x_i; m_i(z) nu_i(z), (1 - m_i(z)) nu_i(z)), x in [0, 1].

    By mean m and concentration nu: Ferrari & Cribari-Neto (2004); among the densities for pixels,
    Loaiza-Ganem & Cunningham (2019). The network gives the logit of m and log nu. Within `edge` of
    0 and 1, where Beta's density is 0 or infinite, its mass is spread evenly, so that the density
    is bounded and integrates to 1 (`distributions.GuardedBeta`); nu is kept between `edge` and
    1 / `edge`, nu = edge + 1 / (exp(-log nu) + edge).

    Args:
        latent_dim: length of z.
        data_shape: shape of one datum.
        net: factory of the network, or the network, (latent_dim,) -> (2, *data_shape).
        context_dim: numbers of context a datum; 0 for none.
        edge: width of the guards, at most 0.1.

    Raises:
        ValueError: edge out of its range.
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        edge: float = 1e-3,
    ) -> None:
        if not 0 < edge <= 0.1:
            raise ValueError(f"expected 0 < edge <= 0.1; got {edge!r}")
        super().__init__(latent_dim, data_shape, net, context_dim)
        self.edge = edge

    @property
    def param_shape(self) -> Shape:
        """(2, *data_shape)."""
        return (2, *self.event_shape)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return the guarded Beta for params (..., 2, *data_shape): logit of m, and log nu."""
        n = len(self.event_shape)
        logit, log_nu = params.unbind(-1 - n)
        nu = self.edge + torch.sigmoid(log_nu + math.log(self.edge)) / self.edge
        a, b = (nu * (MEANS + (1 - 2 * MEANS) * t.sigmoid()) for t in (logit, -logit))
        return distributions.GuardedBeta(a, b, self.edge).to_event(n)

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return nu by the data's variance, in [1, 1 / (2 edge)], and m that gives their mean.

        The logit of m is clipped to [-7, 7].
        """
        mean, variance = x.mean(0), x.var(0, correction=0)
        nu = (mean * (1 - mean) / variance - 1).nan_to_num(nan=1.0).clamp(1, 0.5 / self.edge)
        log_nu = torch.logit(self.edge * (nu - self.edge)) - math.log(self.edge)
        ends = torch.full_like(mean, 7.0)
        logit = bisect(
            lambda t: self.distribution(torch.stack([t, log_nu])).mean, mean, -ends, ends
        )
        return torch.stack([logit, log_nu])
