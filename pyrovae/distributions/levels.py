"""Distributions of levels, the whole numbers 0, ..., L - 1."""

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyrovae.distributions.elementwise import Elementwise


class CategoricalLevels(dist.Categorical):
    """Categorical over numbers 0, ..., L - 1, which are floats: pixels have a mean and a variance.

    torch's own draws integers, and its mean is NaN. Arguments: see `torch.distributions`.
    """

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw, in the dtype of the parameters, shape (*sample_shape, *batch_shape)."""
        return super().sample(sample_shape).to(self._param.dtype)

    @property
    def mean(self) -> Tensor:
        """sum_k k p_k."""
        return self.probs @ self._levels()

    @property
    def variance(self) -> Tensor:
        """sum_k (k - mean)^2 p_k."""
        return (self.probs * (self._levels() - self.mean.unsqueeze(-1)).square()).sum(-1)

    def _levels(self) -> Tensor:
        return torch.arange(self._num_events, dtype=self._param.dtype, device=self._param.device)


class DiscretizedLogistic(Elementwise):
    """sigma((c + h - m) / s) - sigma((c - h - m) / s), c = x / (L - 1), h = 1 / (2 (L - 1)).

    A logistic variable rounded to levels, with all that lies beyond 0 and L - 1 counted there, so
    that c - h is -inf at x = 0 and c + h is inf at x = L - 1. With b > a the two arguments it is
    sigma(b) sigma(-a) (1 - exp(a - b)), which never underflows.

    Args:
        loc: m, on the scale of c, where levels span [0, 1].
        scale: s, on the same scale.
        num_levels: L >= 2.
        validate_args: see torch.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    loc: Tensor
    scale: Tensor

    def __init__(
        self, loc: Tensor, scale: Tensor, num_levels: int, validate_args: bool | None = None
    ) -> None:
        self.num_levels = num_levels
        super().__init__(loc, scale, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The whole numbers 0, ..., L - 1."""
        return constraints.integer_interval(0, self.num_levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability, shape the broadcast batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        top = self.num_levels - 1
        below = logsigmoid(((value + 0.5) / top - self.loc) / self.scale)  # log P(X <= x)
        above = logsigmoid((self.loc - (value - 0.5) / top) / self.scale)  # log P(X >= x)
        both = below + above + torch.log(-torch.expm1(-1 / (top * self.scale)))
        return torch.where(value == 0, below, torch.where(value == top, above, both))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw, shape (*sample_shape, *batch_shape)."""
        with torch.no_grad():
            top = self.num_levels - 1
            u = torch.rand(
                self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device
            )
            return ((self.loc + self.scale * u.logit()) * top).round().clamp(0, top)

    @property
    def mean(self) -> Tensor:
        """sum_t P(X >= t), t = 1, ..., L - 1."""
        top = self.num_levels - 1
        total = torch.zeros_like(self.loc)
        for t in range(1, self.num_levels):  # one level at a time: no tensor (..., L) is held
            total = total + torch.sigmoid((self.loc - (t - 0.5) / top) / self.scale)
        return total

    @property
    def variance(self) -> Tensor:
        """sum_k (k - mean)^2 P(k)."""
        mean, total = self.mean, torch.zeros_like(self.loc)
        for k in range(self.num_levels):
            level = torch.full_like(self.loc, k)
            total = total + (level - mean).square() * self.log_prob(level).exp()
        return total
