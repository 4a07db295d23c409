"""What the estimators of log p(x) return."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(x), one entry a datum, in nats.

    Attributes:
        log_evidence: the estimate, (N,).
        standard_error: its standard error, (N,).
        lower: the estimate itself, whose expectation is a lower bound, (N,).
        effective_sample_size: (sum w)^2 / sum w^2, (N,).
    """

    log_evidence: Tensor
    standard_error: Tensor
    lower: Tensor
    effective_sample_size: Tensor


@dataclass(frozen=True)
class ExactEvidence:
    """log p(x) by a sum or an integral with no sampling, one entry a datum, in nats.

    Attributes:
        log_evidence: log p(x), (N,).
        error: how far off it may be, (N,).
        method: linear-gaussian, quadrature or enumeration.
        mean: of the exact posterior p(z|x), all latent sites in a row, (N, d).
        covariance: of the exact posterior, (N, d, d).
        log_joint: log p(x, z) at latents by site (K, N, *event_shape), (K, N).
    """

    log_evidence: Tensor
    error: Tensor
    method: str
    mean: Tensor
    covariance: Tensor
    log_joint: Callable[[Mapping[str, Tensor]], Tensor]

    @property
    def standard_error(self) -> Tensor:
        """0: nothing is sampled."""
        return self.error.new_zeros(self.error.shape)

    @property
    def lower(self) -> Tensor:
        """log_evidence - error."""
        return self.log_evidence - self.error

    @property
    def upper(self) -> Tensor:
        """log_evidence + error."""
        return self.log_evidence + self.error

    def log_posterior(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return log p(z|x) = log p(x, z) - log p(x).

        Args:
            latents: for each latent site its values (K, N, *event_shape).

        Returns:
            Tensor (K, N), in nats.
        """
        return self.log_joint(latents) - self.log_evidence
