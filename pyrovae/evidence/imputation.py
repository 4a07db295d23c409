"""Missing data filled in, by importance weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import Observed
from pyrovae.importance import batched, find_modules, weighted_data


@dataclass(frozen=True)
class Imputation:
    """Data with their missing entries filled in.

    Attributes:
        mean: x with E[x_mis | x_obs] where it is missing, (N, *data_shape).
        samples: x with draws of p(x_mis | x_obs) there, (S, N, *data_shape).
        missing: where x is missing, booleans like x.
        log_evidence: the estimate of log p(x_obs), (N,), in nats.
        effective_sample_size: (sum w)^2 / sum w^2 of the weights, (N,).
    """

    mean: Tensor
    samples: Tensor
    missing: Tensor
    log_evidence: Tensor
    effective_sample_size: Tensor


def impute(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_particles: int = 1000,
    num_samples: int = 10,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
) -> Imputation:
    """Fill in missing entries: E[x_mis | x_obs] = sum_k w_k E[x_mis | x_obs, z_k] / sum_k w_k.

    Mattei & Frellsen (2019), section 3: z_k ~ q(z|x_obs), w_k = p(x_obs, z_k) / q(z_k|x_obs). The
    draws are by sampling-importance-resampling, z_k with probability w_k / sum w, then x_mis given
    z_k. An entry is missing where x is NaN, or where the mask is 0: the mask is the last context
    tensor, of x's shape. So a pair of (x, mask) that a user wrote, whose model scores observed
    entries alone, is served as well as one with `likelihoods.Masked`; in the former entries of x
    must be independent given z.

    The mean minimises the expected squared error. Of unordered categories take the samples.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, *data_shape).
        *c: context, N rows each; a mask, if there is one, last.
        num_particles: number K of draws of z a datum.
        num_samples: number S of draws of the missing entries.
        seed: of all draws.
        modules: those that the functions hold in their closures.

    Returns:
        Imputation.

    Raises:
        ValueError: no valid pair, bad data, nothing that marks missing entries, or counts that are
            not positive.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2, likelihood="masked:bernoulli")
        >>> x = torch.tensor([[1.0, torch.nan, 0.0, 1.0]])
        >>> impute(vae.model, vae.guide, x, num_particles=50).mean.isnan().any()
        tensor(False)
    """
    for name, value in (("num_particles", num_particles), ("num_samples", num_samples)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"expected {name} to be a positive whole number; got {value!r}")
    x, c = batched(x, c, find_modules(model, guide, modules=modules))
    missing = x.isnan()
    by_hand = c and c[-1].shape == x.shape  # the mask of a pair that knows no `Observed`
    each = (1,) * (x.dim() - 1)  # after (N,), to weigh whole data
    mean = x.new_zeros(x.shape)
    samples = x.new_zeros(num_samples, *x.shape)
    log_sum, log_sum_squares = (x.new_full((len(x),), -math.inf) for _ in range(2))
    best = x.new_full((num_samples, len(x)), -math.inf)
    generator = torch.Generator(x.device).manual_seed(seed)
    for rows, log_w, datum in weighted_data(
        model, guide, x, *c, num_particles=num_particles, seed=seed, modules=modules
    ):
        k, n = log_w.shape
        log_w = log_w.to(x)
        filled = x[rows].repeat(k, *each)
        if isinstance(datum, Observed):
            missing[rows] = ~datum.seen(filled)[:n]
        elif by_hand:
            missing[rows] |= c[-1][rows] == 0
        expected, drawn = (_completed(datum, filled, draw).to(x) for draw in (False, True))
        # the mean, streamed: what came before shrinks as the sum of weights grows
        total = log_sum[rows].logaddexp(log_w.logsumexp(0))
        shares = (log_w - total).exp().reshape(k, n, *each)
        before = (log_sum[rows] - total).exp().reshape(n, *each)
        mean[rows] = before * mean[rows] + (shares * expected.reshape(k, n, *x.shape[1:])).sum(0)
        log_sum[rows] = total
        log_sum_squares[rows] = log_sum_squares[rows].logaddexp((2 * log_w).logsumexp(0))
        # argmax of log w + Gumbel noise is a draw with probability w / sum w, and can be streamed
        uniform = torch.rand(num_samples, k, n, generator=generator, dtype=x.dtype)
        score, index = (log_w - (-uniform.clamp(min=1e-30).log()).log()).max(1)
        chosen = drawn.reshape(k, n, *x.shape[1:])[index, torch.arange(n)]
        better = (score > best[:, rows]).reshape(num_samples, n, *each)
        samples[:, rows] = torch.where(better, chosen, samples[:, rows])
        best[:, rows] = best[:, rows].maximum(score)
    if not bool(missing.any()):
        raise ValueError(
            f"expected NaN in x, or a mask of shape {tuple(x.shape)} as the last context tensor; "
            "got neither: nothing is missing"
        )
    seen = x.nan_to_num(nan=0.0)
    return Imputation(
        mean=torch.where(missing, mean, seen),
        samples=torch.where(missing, samples, seen),
        missing=missing,
        log_evidence=log_sum - math.log(num_particles),
        effective_sample_size=(2 * log_sum - log_sum_squares).exp(),
    )


def _completed(datum: TorchDistribution, x: Tensor, draw: bool) -> Tensor:
    if isinstance(datum, Observed):
        return datum.completed(x, draw)
    return datum.sample() if draw else datum.mean
