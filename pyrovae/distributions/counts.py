"""Counts, by the logarithm of their mean: right from mean exp(-20) to counts of 1e6 in float32."""

from typing import Self

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyrovae.distributions.elementwise import Elementwise
from pyrovae.distributions.special import gamma_rest, log_ratio


class Poisson(Elementwise):
    """m^x exp(-m) / x!, x in {0, 1, ...}, given log m.

    Loader's form (2000): with t = log(m / x),

        log p = -x (exp(t) - 1 - t) - [log x! - x log x + x]

    torch's own adds terms of 1e7 at x = 1e6, so its log-density errs by a nat in float32.

    Args:
        log_mean: log m.
        validate_args: see torch.
    """

    arg_constraints = {"log_mean": constraints.real}
    support = constraints.nonnegative_integer
    log_mean: Tensor

    def __init__(self, log_mean: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(log_mean, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return x log m - m - log x!, shape the broadcast batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        x = value.clamp(min=1)
        t = self.log_mean - x.log()
        return torch.where(
            value > 0, x * (t - torch.expm1(t)) - gamma_rest(x), -self.log_mean.exp()
        )

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw, shape (*sample_shape, *batch_shape)."""
        with torch.no_grad():
            return torch.poisson(self.mean.expand(self._extended_shape(sample_shape)))

    @property
    def mean(self) -> Tensor:
        """The mean m."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """The variance, m."""
        return self.mean


class NegativeBinomial(Elementwise):
    """Gamma(x + r) / (x! Gamma(r)) (r / (r + m))^r (m / (r + m))^x, given log m and r.

    A Poisson whose rate is Gamma(r, r / m): variance m + m^2 / r, and Poisson as r grows. As for
    `Poisson`, the deviance D and what Stirling's terms leave are summed, not terms of 1e7:

        log p = -D + R(x + r) - R(r) - R(x) + log(r / (x + r)),   R(y) = log y! - y log y + y,
        D = x log [x (m + r) / (m (x + r))] - r log [(x + r) / (m + r)]

    Args:
        log_mean: log m.
        dispersion: r, the inverse dispersion.
        validate_args: see torch.
    """

    arg_constraints = {"log_mean": constraints.real, "dispersion": constraints.positive}
    support = constraints.nonnegative_integer
    log_mean: Tensor
    dispersion: Tensor

    def __init__(
        self, log_mean: Tensor, dispersion: Tensor, validate_args: bool | None = None
    ) -> None:
        super().__init__(log_mean, dispersion, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability, shape the broadcast batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        r, m = self.dispersion, self.mean
        x = value.clamp(min=1)  # where value is 0 its logarithm counts 0 times
        over = x * torch.exp(-self.log_mean.clamp(min=-80))  # float32 ends at exp(88)
        first = log_ratio(r / (x + r) * (over - 1), over * ((m + r) / (x + r)))
        second = log_ratio((value - m) / (m + r), (value + r) / (m + r))
        rest = gamma_rest(value + r) - gamma_rest(r) - gamma_rest(value)
        return r * second - value * first + rest + torch.log(r / (value + r))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw a rate, then a count: shape (*sample_shape, *batch_shape)."""
        with torch.no_grad():
            rate = dist.Gamma(self.dispersion, 1.0).sample(sample_shape)
            return torch.poisson(rate * (self.mean / self.dispersion))

    @property
    def mean(self) -> Tensor:
        """The mean m."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """The variance, m + m^2 / r."""
        return self.mean + self.mean.square() / self.dispersion


class ZeroInflated(Elementwise):
    """pi [x = 0] + (1 - pi) p(x), given p and the logits of pi.

    Pyro's own changes formula once its mean is asked for or it is sampled: with a gate of logit 20
    in float32 it then gives log(0).

    Args:
        base_dist: p, a distribution of one count.
        gate_logits: logits of pi; broadcasts with p's batch shape.
        validate_args: see torch.
    """

    arg_constraints = {"gate_logits": constraints.real}
    support = constraints.nonnegative_integer
    gate_logits: Tensor

    def __init__(
        self, base_dist: TorchDistribution, gate_logits: Tensor, validate_args: bool | None = None
    ) -> None:
        shape = torch.broadcast_shapes(base_dist.batch_shape, gate_logits.shape)
        super().__init__(gate_logits.expand(shape), validate_args=validate_args)
        self.base_dist = base_dist.expand(shape)

    def expand(self, batch_shape: torch.Size, _instance: Self | None = None) -> Self:
        """Return the distribution with its parameters expanded to the batch shape."""
        new = super().expand(batch_shape)
        new.base_dist = self.base_dist.expand(batch_shape)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log(pi [x = 0] + (1 - pi) p(x)), shape the broadcast batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        kept = logsigmoid(-self.gate_logits) + self.base_dist.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(logsigmoid(self.gate_logits), kept), kept)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw, shape (*sample_shape, *batch_shape)."""
        with torch.no_grad():
            x = self.base_dist.sample(sample_shape)
            return x * torch.bernoulli(torch.sigmoid(-self.gate_logits).expand(x.shape))

    @property
    def mean(self) -> Tensor:
        """(1 - pi) E[x]."""
        return torch.sigmoid(-self.gate_logits) * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """(1 - pi) (Var[x] + pi E[x]^2)."""
        gate = self.gate_logits.sigmoid()
        base = self.base_dist
        return torch.sigmoid(-self.gate_logits) * (base.variance + gate * base.mean.square())
