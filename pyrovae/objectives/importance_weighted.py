"""Bounds of several importance weights: IWAE and its kin."""

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from pyrovae.importance import particles
from pyrovae.objectives.base import Estimate, Objective, check_count, check_range


class MultiSample(Objective):
    """A bound made of the K log weights of a datum.

    Draws without a gradient (discrete latents) get the score function's,
    sum_k (L - L_-k) grad log q(z_k|x), where L_-k has log w_k replaced by the mean of the others
    (VIMCO: Mnih & Rezende (2016)); with K = 1 there are no others, and L_-k = 0. To write a new
    one, give `bound`.

    Args:
        num_particles: K, draws of z a datum.
    """

    def __init__(self, num_particles: int) -> None:
        check_count(num_particles=num_particles)
        super().__init__(num_particles=num_particles)

    @abstractmethod
    def bound(self, log_w: Tensor) -> Tensor:
        """Return the bound (..., N) of log weights (..., K, N)."""

    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return the bound of each datum. Arguments and errors: see `Objective`."""
        found = particles(model, guide, x, *c, num_particles=self.num_particles)
        value = self.bound(found.log_weight)
        surrogate = value
        if found.log_score is not None:
            baseline = self._without_each(found.log_weight.detach())
            surrogate = value + ((value.detach() - baseline) * found.log_score).sum(0)
        return Estimate(value, surrogate, found.scale)

    def _without_each(self, log_w: Tensor) -> Tensor:
        """Return the bound with log w_k the mean of the others, for each k, (K, N)."""
        k = len(log_w)
        if k == 1:
            return torch.zeros_like(log_w)
        others = (log_w.sum(0) - log_w) / (k - 1)
        chosen = torch.eye(k, dtype=torch.bool, device=log_w.device).unsqueeze(-1)
        return self.bound(torch.where(chosen, others.unsqueeze(1), log_w))


def log_mean_exp(log_w: Tensor) -> Tensor:
    """Return log (1/K) sum_k w_k of (..., K, N)."""
    return log_w.logsumexp(-2) - math.log(log_w.shape[-2])


class IWAE(MultiSample):
    """L_K = E log (1/K) sum_k w_k, w_k = p(x, z_k) / q(z_k|x), z_k ~ q(z|x).

    Burda et al. (2016), eq. 8: a lower bound of log p(x) that rises with K, and is the ELBO at
    K = 1. Its gradient for the guide fades in its own noise as K grows (Rainforth et al. (2018));
    `DReG` mends that.

    Args:
        num_particles: K, draws of z a datum.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> loss = IWAE(5).loss(vae.model, vae.guide, torch.ones(3, 4))
    """

    def __init__(self, num_particles: int = 5) -> None:
        super().__init__(num_particles)

    def bound(self, log_w: Tensor) -> Tensor:
        """Return log (1/K) sum_k w_k."""
        return log_mean_exp(log_w)


class Renyi(MultiSample):
    """L_alpha = E (1/(1 - alpha)) log (1/K) sum_k w_k^(1 - alpha).

    Li & Turner (2016): the ELBO as alpha -> 1, IWAE at alpha = 0; alpha < 0 leans to the
    largest weight and is a bound no longer, alpha > 1 to the smallest. Near 1 it differs from the
    ELBO by (1 - alpha)/2 Var(log w). Unlike Pyro's RenyiELBO the scale of a plate stands outside
    the logarithm, so that minibatches keep their expected value.

    Args:
        num_particles: K, draws of z a datum.
        alpha: any finite number.
    """

    def __init__(self, num_particles: int = 5, alpha: float = 0.5) -> None:
        super().__init__(num_particles)
        if not math.isfinite(alpha):
            raise ValueError(f"expected alpha to be finite; got {alpha!r}")
        self.alpha = alpha

    def bound(self, log_w: Tensor) -> Tensor:
        """Return (1/(1 - alpha)) log (1/K) sum_k w_k^(1 - alpha)."""
        if self.alpha == 1:
            return log_w.mean(-2)
        return log_mean_exp((1 - self.alpha) * log_w) / (1 - self.alpha)


class CIWAE(MultiSample):
    """L = share ELBO + (1 - share) L_K: the ELBO and IWAE of the same draws, combined.

    Rainforth et al. (2018), who call it CIWAE, "combination".

    Args:
        num_particles: K, draws of z a datum.
        share: of the ELBO, in [0, 1]; the paper's beta.
    """

    def __init__(self, num_particles: int = 5, share: float = 0.5) -> None:
        super().__init__(num_particles)
        check_range("share", share, 0, 1)
        self.share = share

    def bound(self, log_w: Tensor) -> Tensor:
        """Return share mean_k log w_k + (1 - share) log (1/K) sum_k w_k."""
        return self.share * log_w.mean(-2) + (1 - self.share) * log_mean_exp(log_w)


class MIWAE(MultiSample):
    """L_(M,K) = E (1/M) sum_m log (1/K) sum_k w_mk: the mean of M IWAE bounds of K draws.

    Rainforth et al. (2018), who call it MIWAE, "multiply": more draws of the gradient in place of a
    tighter bound. The ELBO at K = 1, IWAE at M = 1.

    Args:
        num_bounds: M.
        num_particles: K, draws of z a datum of one bound; M K in all.
    """

    def __init__(self, num_bounds: int = 2, num_particles: int = 5) -> None:
        check_count(num_bounds=num_bounds, num_particles=num_particles)
        super().__init__(num_bounds * num_particles)
        self.num_bounds = num_bounds

    def bound(self, log_w: Tensor) -> Tensor:
        """Return (1/M) sum_m log (1/K) sum_k w_mk."""
        groups = log_w.unflatten(-2, (self.num_bounds, -1))  # (..., M, K, N)
        return log_mean_exp(groups).mean(-2)


class PIWAE(MIWAE):
    """L_(MK) of M K draws for the model, L_(M,K) = (1/M) sum_m L_K of the same for the guide.

    Rainforth et al. (2018), who call it PIWAE, "partially": a tight bound for the model, whose
    gradient gains by it, and a looser one for the guide, whose gradient loses by it. What is the
    guide's is what flows through z and log q(z|x), not a list of parameters, so that a prior made
    of the encoder is the model's. The value is L_(MK). p(x, z) is evaluated twice.

    Args:
        num_bounds: M.
        num_particles: K, draws of z a datum of one of the guide's bounds; M K in all.
    """

    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return L_(MK), its gradient in parts. Arguments and errors: see `Objective`."""
        found = particles(model, guide, x, *c, num_particles=self.num_particles, at_rest=True)
        log_w = found.log_weight
        if found.log_score is not None:
            raise ValueError(
                "PIWAE expected draws with a gradient (rsample) at every site; got one without: "
                "take IWAE or MIWAE"
            )
        of_model = log_w.detach().softmax(0)
        groups = log_w.detach().unflatten(0, (self.num_bounds, -1))
        of_guide = groups.softmax(1).flatten(0, 1) / self.num_bounds
        at_rest = found.log_joint_at_rest  # at the same z, detached: the model's gradient alone
        assert at_rest is not None
        through_z = found.log_weight - at_rest
        surrogate = (of_model * at_rest + of_guide * through_z).sum(0)
        return Estimate(log_mean_exp(log_w), surrogate, found.scale)
