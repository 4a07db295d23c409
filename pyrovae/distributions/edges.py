"""Beta densities that are bounded on [0, 1]."""

import math

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Gamma

from pyrovae.distributions.elementwise import Elementwise
from pyrovae.distributions.special import log_beta


class GuardedBeta(Elementwise):
    """Beta(x; a, b) on [edge, 1 - edge], its mass beyond them spread evenly: its integral is 1.

    Beta's own density is 0 or infinite at 0 and 1, where data often lie. Within `edge` of 0 it is
    I_edge(a, b) / edge here, and within `edge` of 1 I_edge(b, a) / edge, with the regularised
    incomplete beta function (DLMF 8.17.8, all terms positive)

        I_e(a, b) = e^a (1 - e)^b / (a B(a, b)) sum_n e^n prod_(j<n) (a + b + j) / (a + 1 + j)

    Args:
        concentration1: a.
        concentration0: b.
        edge: 0 < edge <= 0.1; the series wants (a + b) edge <= 1.1.
        validate_args: see torch.
    """

    arg_constraints = {
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }
    support = constraints.unit_interval
    concentration1: Tensor
    concentration0: Tensor

    def __init__(
        self,
        concentration1: Tensor,
        concentration0: Tensor,
        edge: float,
        validate_args: bool | None = None,
    ) -> None:
        self.edge = edge
        super().__init__(concentration1, concentration0, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, shape the broadcast batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        low = value < 0.5  # x near 1 under (a, b) is 1 - x near 0 under (b, a)
        a = torch.where(low, self.concentration1, self.concentration0)
        b = torch.where(low, self.concentration0, self.concentration1)
        x = torch.where(low, value, 1 - value)
        norm = log_beta(a, b)
        inside = x.clamp(min=self.edge)
        density = (a - 1) * inside.log() + (b - 1) * torch.log1p(-inside) - norm
        return torch.where(x < self.edge, self._log_mass(a, b, norm) - math.log(self.edge), density)

    def _log_mass(self, a: Tensor, b: Tensor, norm: Tensor) -> Tensor:
        """Return log I_edge(a, b), given log B(a, b)."""
        total = torch.ones_like(a)
        for j in reversed(range(self._terms(torch.finfo(a.dtype).eps))):
            total = 1 + total * (self.edge * (a + b + j) / (a + 1 + j))
        return a * math.log(self.edge) + b * math.log1p(-self.edge) - norm + torch.log(total / a)

    def _terms(self, error: float) -> int:
        """Return how many terms of the series leave less than that, at a = 0 and the largest b."""
        n, term = 0, 1.0
        while term > error:
            term *= (1.1 + n * self.edge) / (1 + n)
            n += 1
        return n

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw, shape (*sample_shape, *batch_shape).

        The logit of a Beta variable is log G_a - log G_b, and G_a = G_(a + 1) exp(-E / a) with E
        exponential: torch's own draws Gammas that underflow, and 0.5 in their place, where a < 0.1.
        """
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            log_a, log_b = (
                Gamma(c + 1, 1.0).sample(sample_shape).log() - c.new_empty(shape).exponential_() / c
                for c in (self.concentration1, self.concentration0)
            )
            x = torch.sigmoid(log_a - log_b)
            spread = self.edge * torch.rand_like(x)
            return torch.where(x < self.edge, spread, torch.where(x > 1 - self.edge, 1 - spread, x))

    @property
    def mean(self) -> Tensor:
        """The mean of what lies between the edges, and of the even pieces."""
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        """E[x^2] - E[x]^2."""
        return (self._moment(2) - self._moment(1).square()).clamp(min=0)  # rounding aside

    def _moment(self, k: int) -> Tensor:
        """Return E[x^k]: x^k Beta(x; a, b) = E_Beta[x^k] Beta(x; a + k, b), and the pieces."""
        a, b, e = self.concentration1, self.concentration0, self.edge

        def mass(a: Tensor, b: Tensor) -> Tensor:
            return self._log_mass(a, b, log_beta(a, b)).exp()

        inside = torch.exp(log_beta(a + k, b) - log_beta(a, b))
        inside = inside * (1 - mass(a + k, b) - mass(b, a + k))
        low, high = e**k / (k + 1), (1 - (1 - e) ** (k + 1)) / ((k + 1) * e)
        return inside + low * mass(a, b) + high * mass(b, a)
