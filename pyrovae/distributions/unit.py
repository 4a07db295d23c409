"""Distributions on the unit interval."""

import pyro.distributions as dist
import torch
from torch import Tensor


class ContinuousBernoulli(dist.ContinuousBernoulli):
    """C(l) exp(x l) on [0, 1], l the logits, C(l) = l / (exp(l) - 1): normalised at every l.

    Loaiza-Ganem & Cunningham (2019). torch's own density clamps the probability: its integral in
    float32 is 0.8 at l = -20. With log C(l) = -l/2 - log(sinh(l/2) / (l/2)) nothing is lost.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return x l - l/2 - log(sinh(l/2) / (l/2)), shape the broadcast batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        half = self.logits.abs() / 2
        small = half < 0.05
        near = half.square() * (1 / 6 - half.square() / 180 + half.square().square() / 2835)
        far_half = torch.where(small, 1.0, half)
        far = far_half + torch.log(-torch.expm1(-2 * far_half) / (2 * far_half))
        return (value - 0.5) * self.logits - torch.where(small, near, far)

    def expand(
        self, batch_shape: torch.Size, _instance: "ContinuousBernoulli | None" = None
    ) -> "ContinuousBernoulli":
        """Return the distribution with its logits expanded to the batch shape."""
        return type(self)(logits=self.logits.expand(batch_shape), validate_args=self._validate_args)
