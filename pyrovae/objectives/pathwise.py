"""Gradients of the guide that flow through z alone: DReG, and sticking the landing."""

from collections.abc import Callable

from torch import Tensor

from pyrovae.importance import particles
from pyrovae.objectives.base import Estimate, Objective, check_count
from pyrovae.objectives.importance_weighted import log_mean_exp


class DReG(Objective):
    """L_K = E log (1/K) sum_k w_k, the guide's gradient sum_k v_k^2 (d log w_k / d z_k) dz_k.

    Tucker et al. (2019), eq. 8, v_k = w_k / sum_j w_j: IWAE's bound and expected gradient, without
    the score of q, whose noise drowns the guide's gradient as K grows. The model's is IWAE's,
    sum_k v_k grad log p(x, z_k). The second factor v_k is set at z_k: whatever else depends on the
    guide's parameters, a VampPrior made of the encoder say, counts as the model.

    Args:
        num_particles: K, draws of z a datum, each with a gradient (rsample).
    """

    def __init__(self, num_particles: int = 5) -> None:
        check_count(num_particles=num_particles)
        super().__init__(num_particles=num_particles)

    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return the bound of each datum. Arguments and errors: see `Objective`."""
        found = particles(model, guide, x, *c, num_particles=self.num_particles, draws="path")
        log_w = found.log_weight
        v = log_w.detach().softmax(0)
        found.weigh_gradient(v)
        return Estimate(log_mean_exp(log_w), (v * log_w).sum(0), found.scale)


class StickingTheLanding(Objective):
    """ELBO = E[log p(x, z) - log q(z|x)], its gradient for the guide through z alone.

    Roeder et al. (2017): the score of q has mean 0 and is left out, so that the gradient is the
    same in mean and has no variance at all where q(z|x) = p(z|x). No KL in closed form is used.

    Args:
        num_particles: draws of z a datum, each with a gradient (rsample); their mean is taken.
    """

    def __init__(self, num_particles: int = 1) -> None:
        check_count(num_particles=num_particles)
        super().__init__(num_particles=num_particles)

    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return the ELBO of each datum. Arguments and errors: see `Objective`."""
        found = particles(model, guide, x, *c, num_particles=self.num_particles, draws="path")
        elbo = found.log_weight.mean(0)
        return Estimate(elbo, elbo, found.scale)
