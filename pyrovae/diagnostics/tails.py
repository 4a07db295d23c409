"""Are the importance weights to be trusted? From their largest ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrovae.evidence import pareto
from pyrovae.importance import log_weights


@dataclass(frozen=True)
class Khat:
    """The tails of the importance weights, one entry a datum.

    Attributes:
        khat: shape of the tail, (N,); -inf where there is none, inf where none could be fitted.
        threshold: below which it is good enough for this number S of draws:
            min(1 - 1 / log10 S, 0.7).
    """

    khat: Tensor
    threshold: float

    @property
    def ok(self) -> Tensor:
        """Are a datum's weights to be trusted, khat < threshold? (N,), bool."""
        return self.khat < self.threshold


def khat(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_particles: int = 1000,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
) -> Khat:
    """Return the Pareto k-hat of each datum's importance weights w = p(x, z) / q(z|x), z ~ q(z|x).

    Where k-hat < min(1 - 1 / log10 S, 0.7), an estimate from S such weights, the evidence among
    them, is to be trusted, and the guide covers the posterior well enough; above it is not.
    Vehtari et al. (2024); of guides, Yao et al. (2018). For per-datum
    latents never use ArviZ's `loo` instead: its weights are those of leaving the datum out.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        num_particles: number S of draws a datum, at least 30.
        seed: of the draws.
        modules: those that the functions hold in their closures; set to evaluation mode here.

    Returns:
        Khat; `evidence.pareto.khat` says what its values mean.

    Raises:
        ValueError: no valid pair, bad data, weights that are no numbers, or too few draws.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> khat(vae.model, vae.guide, torch.ones(3, 4)).ok.shape
        torch.Size([3])
    """
    with torch.no_grad():
        log_w = log_weights(
            model, guide, x, *c, num_particles=num_particles, seed=seed, modules=modules
        )
    return Khat(pareto.khat(log_w), pareto.threshold(num_particles))
