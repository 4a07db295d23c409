"""What the estimators of log p(x) return."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

TRUSTED_KHAT, TRUSTED_SIZE = 0.5, 100  # below and above which an error of weights is a normal's


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(x), one entry a datum, in nats.

    Attributes:
        log_evidence: the estimate, (N,).
        standard_error: its standard error, (N,), to be trusted where `trusted`.
        lower: a lower bound in expectation, (N,): E[p-hat] = p(x), so E[log p-hat] <= log p(x).
        effective_sample_size: (sum w)^2 / sum w^2, (N,).
        num_particles: draws, or chains, behind it, (N,).
        khat: Pareto k-hat of the weights, (N,); None where there are too few to fit it.
        upper: an upper bound in expectation, (N,), where there is one.
    """

    log_evidence: Tensor
    standard_error: Tensor
    lower: Tensor
    effective_sample_size: Tensor
    num_particles: Tensor
    khat: Tensor | None = None
    upper: Tensor | None = None

    @property
    def trusted(self) -> Tensor:
        """Is the standard error to be trusted: k-hat < 0.5, more than 100 effective draws? (N,).

        It is the same draws that say so: where the true k is near 1/2, those whose large weights
        have not come yet are trusted too often, and their intervals cover too rarely.
        """
        if self.khat is None:
            return torch.zeros_like(self.log_evidence, dtype=torch.bool)
        return (self.khat < TRUSTED_KHAT) & (self.effective_sample_size > TRUSTED_SIZE)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return an interval for log p(x), two-sided where it is honest to give one.

        Where `trusted`: log_evidence +- z standard errors. Elsewhere the weights may have no
        variance, and what holds whatever they are is Markov's inequality,
        P(log p-hat > log p(x) + b) <= e^-b: so log p(x) >= log p-hat - log(1 / (1 - level)) with
        probability `level`, and there is no upper end.

        Args:
            level: probability that it covers log p(x), in (0, 1).

        Returns:
            Lower and upper ends, each (N,); the upper is inf where there is none.

        Raises:
            ValueError: level is out of its range.

        Source: Grosse et al. (2015), section 2.2.
        """
        if not 0 < level < 1:
            raise ValueError(f"expected level to lie between 0 and 1; got {level}")
        z = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
        bound = self.log_evidence + math.log(1 - level)
        half = z * self.standard_error
        return (
            torch.where(self.trusted, self.log_evidence - half, bound),
            torch.where(self.trusted, self.log_evidence + half, math.inf),
        )


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
