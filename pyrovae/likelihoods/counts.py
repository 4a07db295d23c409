"""Counts without a known maximum."""

from abc import abstractmethod

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pyrovae import distributions
from pyrovae.likelihoods.base import Likelihood
from pyrovae.nets import NetFactory, Shape, mlp

GATE = -2.0  # where the logit of the share of extra zeros starts


class Counts(Likelihood):
    """prod_i f(x_i; t exp(l_i(z))), x in {0, 1, ...}: the mean is exp(l) times the exposure t.

    The exposure is how long or how deep one looked: a cell's library size, an area, a time. The
    posterior takes every context tensor, so with `offset` it wants `context_dim` one larger.

    Args:
        latent_dim: length of z.
        data_shape: shape of one datum.
        net: factory of the network, or the network.
        context_dim: numbers of context a datum that enter the network; 0 for none.
        offset: is the last context tensor, (N,) or (N, 1), log t? The network is not given it.

    Raises:
        ValueError: (when called) offset without such a tensor.
    """

    zero_inflated = False

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        offset: bool = False,
    ) -> None:
        super().__init__(latent_dim, data_shape, net, context_dim)
        self.offset = offset

    @abstractmethod
    def counts(self, log_mean: Tensor) -> TorchDistribution:
        """Return f, every dimension a batch dimension."""

    @property
    def param_shape(self) -> Shape:
        """data_shape, or (2, *data_shape) with a gate: log mean, logits of the extra zeros."""
        return (2, *self.event_shape) if self.zero_inflated else self.event_shape

    def params(self, x: Tensor, *c: Tensor) -> Tensor:
        """Return the parameters (..., *param_shape) for z, log t added to the log mean.

        Raises:
            ValueError: z or c of another shape or dtype; no log t where it is wanted.
        """
        if not self.offset:
            return super().params(x, *c)
        name = type(self).__name__
        if not c or c[-1].numel() != len(c[-1]):
            raise ValueError(
                f"{name} with offset=True expected the log of the exposure, (N,) or (N, 1), as the "
                f"last context tensor; got shapes {[tuple(t.shape) for t in c]}"
            )
        params = super().params(x, *c[:-1])
        batch = x.shape[:-1]
        log_t = c[-1].reshape(-1).to(params).expand(batch)
        log_t = log_t.reshape(*batch, *(1 for _ in self.event_shape))
        if not self.zero_inflated:
            return params + log_t
        log_mean, gate = params.unbind(-1 - len(self.event_shape))
        return torch.stack([log_mean + log_t, gate], -1 - len(self.event_shape))

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return prod_i f(x_i; exp(params_i)), with extra zeros if there is a gate."""
        n = len(self.event_shape)
        if not self.zero_inflated:
            return self.counts(params).to_event(n)
        log_mean, gate = params.unbind(-1 - n)
        return distributions.ZeroInflated(self.counts(log_mean), gate).to_event(n)

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return the log of the mean, at least 0.001, at exposure 1; the gate's logit is -2."""
        log_mean = x.mean(0).clamp(min=1e-3).log()
        if not self.zero_inflated:
            return log_mean
        gate = torch.full_like(log_mean, GATE)
        return torch.stack([log_mean - logsigmoid(-gate), gate])


class Poisson(Counts):
    """p(x|z) = prod_i m_i^x_i exp(-m_i) / x_i!, m = exp(l(z)), x in {0, 1, ...}.

    For counts of genes, Grønbech et al. (2020). The network gives l. Arguments: see `Counts`.

    Example:
        >>> likelihood = Poisson(latent_dim=2, data_shape=(3,), offset=True)
        >>> z, size = torch.zeros(5, 2), torch.ones(5)
        >>> torch.allclose(likelihood(z, (3 * size).log()).mean, 3 * likelihood(z, size.log()).mean)
        True
    """

    def counts(self, log_mean: Tensor) -> TorchDistribution:
        """Return Poisson of that log mean."""
        return distributions.Poisson(log_mean)


class NegativeBinomial(Counts):
    """p(x|z) = prod_i NB(x_i; m_i, r_i), m = exp(l(z)): mean m, variance m + m^2 / r.

    Overdispersed counts, with an inverse dispersion r = exp(log_r) learnt for each dimension, 1 at
    the start: Lopez et al. (2018). The network gives l. Arguments: see `Counts`.
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        offset: bool = False,
    ) -> None:
        super().__init__(latent_dim, data_shape, net, context_dim, offset)
        self.log_r = nn.Parameter(torch.zeros(self.data_shape))

    def counts(self, log_mean: Tensor) -> TorchDistribution:
        """Return the negative binomial of that log mean."""
        return distributions.NegativeBinomial(log_mean, self.log_r.exp())


class ZeroInflatedPoisson(Poisson):
    """p(x|z) = prod_i pi_i(z) [x_i = 0] + (1 - pi_i(z)) Poisson(x_i; m_i(z)).

    Lambert (1992). The network gives log m and logits of pi, the share of extra zeros. Arguments:
    see `Counts`.
    """

    zero_inflated = True


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """p(x|z) = prod_i pi_i(z) [x_i = 0] + (1 - pi_i(z)) NB(x_i; m_i(z), r_i).

    Lopez et al. (2018): counts of genes in single cells, many of them missed. The network gives
    log m and logits of pi, the share of extra zeros. Arguments: see `Counts`.
    """

    zero_inflated = True
