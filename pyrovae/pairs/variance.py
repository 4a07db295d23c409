"""The optimal variance of a normal likelihood."""

from typing import Any

import torch
from torch import Tensor

from pyrovae.distributions import Observed, seeded
from pyrovae.likelihoods import Fixed, Masked, Normal, PerDimension, Predicted, Shared
from pyrovae.nets import evaluating
from pyrovae.pairs.vae import VAE

ROWS = 1024  # of one pass


def fit_variance(vae: VAE, x: Tensor, *c: Tensor, num_particles: int = 10, seed: int = 0) -> Tensor:
    """Set the likelihood's variance to its optimum, sigma^2 = E_data E_q(z|x) (x - mu(z))^2.

    Rybkin et al. (2021), eq. 5: given mu and q the ELBO's maximum over sigma^2 is the mean squared
    error: over all dimensions for `Shared()`, over each for `PerDimension()`; never below the floor
    min_scale. Missing entries are left out.

    Args:
        vae: with a `Normal` likelihood, masked or not, of variance `Shared()` or `PerDimension()`.
        x: data (N, *data_shape).
        *c: context, N rows each.
        num_particles: draws of z a datum.
        seed: of the draws.

    Returns:
        sigma, of shape () or data_shape.

    Raises:
        ValueError: another likelihood or variance, or no data.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2, likelihood="normal")
        >>> fit_variance(vae, torch.randn(50, 4)).shape
        torch.Size([])
    """
    likelihood: Any = vae.likelihood
    normal = likelihood.likelihood if isinstance(likelihood, Masked) else likelihood
    variance = getattr(normal, "variance", None)
    # Predicted is what Shared and PerDimension are made of, and is no shared variance itself
    if not isinstance(normal, Normal) or not isinstance(variance, Shared | PerDimension):
        raise ValueError(
            "expected a Normal likelihood with variance Shared() or PerDimension(); got "
            f"{type(normal).__name__}"
            + (f" with {variance}" if isinstance(variance, Fixed | Predicted) else "")
        )
    if len(x) == 0:
        raise ValueError("expected at least one row of data; got none")
    like, s = next(vae.parameters()), normal.s
    assert s is not None  # Shared and PerDimension learn it
    over = tuple(range(x.dim() - s.dim()))  # rows, and all else where sigma is shared
    squares, count = (like.new_zeros(s.shape, dtype=torch.float64) for _ in range(2))
    with torch.no_grad(), seeded(seed), evaluating(vae):
        for start in range(0, len(x), ROWS):
            rows = x[start : start + ROWS].to(like)
            context = tuple(t[start : start + ROWS] for t in c)
            z = vae.encode(rows, *context).sample((num_particles,))
            p_x = vae.decode(z, *context)
            if isinstance(p_x, Observed):
                rows = torch.where(p_x.seen(rows.expand_as(p_x.mean)), rows, torch.nan)
            error = (rows - p_x.mean).square().double().flatten(0, 1)
            squares += error.nansum(over)
            count += (~error.isnan()).sum(over)
        sigma = (squares / count.clamp(min=1)).sqrt()
        floor = variance.min_scale * (1 + 1e-6) + 1e-12
        s.copy_((sigma.clamp(min=floor) - variance.min_scale).log())
    return variance.scale(like, s.detach())
