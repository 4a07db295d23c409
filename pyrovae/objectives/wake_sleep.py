"""The inclusive KL(p(z|x) || q(z|x)): wake-sleep, and training on the model's own draws."""

from collections.abc import Callable

from torch import Tensor

from pyrovae.importance import particles, simulated
from pyrovae.objectives.base import Estimate, Objective, check_count, check_range
from pyrovae.objectives.importance_weighted import log_mean_exp


class ReweightedWakeSleep(Objective):
    """L_K, by gradients sum_k v_k grad log p(x, z_k) and sum_k v_k grad log q(z_k|x), v = w/sum w.

    Bornschein & Bengio (2015), z_k held fixed, v_k by datum: the model's gradient is IWAE's, the
    guide's that of -KL(p(z|x) || q(z|x)) by self-normalised weights (wake phase), or of
    E_p(x, z) log q(z|x) on the model's own draws (sleep phase), or a mixture. No draw needs a
    gradient, so discrete latents do. The value is IWAE's bound. Pyro's function of the name sums
    the log weights of a batch before it normalises; at a batch of one the two agree.

    Args:
        num_particles: K, draws of z a datum.
        insomnia: share of the wake phase in the guide's gradient, in [0, 1].
    """

    def __init__(self, num_particles: int = 5, insomnia: float = 1.0) -> None:
        check_count(num_particles=num_particles)
        check_range("insomnia", insomnia, 0, 1)
        super().__init__(num_particles=num_particles)
        self.insomnia = insomnia

    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return IWAE's bound of each datum. Arguments and errors: see `Objective`."""
        found = particles(model, guide, x, *c, num_particles=self.num_particles, draws="detached")
        log_w = found.log_weight
        v = log_w.detach().softmax(0)
        surrogate = (v * (found.log_joint + self.insomnia * found.log_guide)).sum(0)
        if self.insomnia < 1:
            asleep = simulated(model, guide, x, *c)
            surrogate = surrogate + (1 - self.insomnia) * asleep.log_guide[0]
        return Estimate(log_mean_exp(log_w), surrogate, found.scale)


class InclusiveKL(Objective):
    """E_p(x', z) log q(z|x'): the guide alone, fitted to the model's own draws.

    Papamakarios & Murray (2016); the sleep phase of Hinton et al. (1995). Up to the entropy of
    p(z|x') it is -KL(p(z|x') || q(z|x')) averaged over what the model generates: a guide that
    covers the posterior where the ELBO's picks one mode, and that never needs log p(x|z), so that
    the model may be a simulator. The model is not trained, and of the data only the number of rows
    and the context matter: for a model that is fitted, or known.
    """

    def __init__(self) -> None:
        super().__init__(num_particles=1)

    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return log q(z|x') of one draw (z, x') a row. Arguments and errors: see `Objective`."""
        found = simulated(model, guide, x, *c)
        return Estimate(found.log_guide[0], found.log_guide[0], found.scale)
