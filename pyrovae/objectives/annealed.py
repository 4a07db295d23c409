"""The ELBO with a factor of its KL, or a capacity for it, that changes as training goes on."""

from collections.abc import Callable

import pyro.infer
import torch
from torch import Tensor

from pyrovae.objectives.base import Estimate, Objective, check_count, check_range
from pyrovae.objectives.divided import batch_mean, counted, divided_kl, one_draw
from pyrovae.objectives.scaling import with_beta
from pyrovae.objectives.schedules import Constant, Schedule

INFINITY = float("inf")


class Clock:
    """The time of a schedule: epochs, which `fit` sets; without it, steps of the objective's own.

    Args:
        steps_per_epoch: by which steps are divided, so that schedules may be written in epochs.
    """

    def __init__(self, steps_per_epoch: int = 1) -> None:
        check_count(steps_per_epoch=steps_per_epoch)
        self.steps_per_epoch, self.steps = steps_per_epoch, 0
        self.epoch: float | None = None

    def read(self) -> float:
        """Return the time of this step; one with gradients moves a clock of its own on."""
        if self.epoch is not None:
            return self.epoch
        time = self.steps / self.steps_per_epoch
        self.steps += torch.is_grad_enabled()
        return time


class BetaELBO(pyro.infer.ELBO):
    """L = E_q[log p(x|z)] - beta schedule(t) KL(q(z|x) || p(z)).

    Higgins et al. (2017) for beta > 1; warm-ups by a schedule. t is in epochs where `fit` trains
    (a schedule moves at every step), in steps of Pyro's SVI otherwise. The factor multiplies the
    latents' log-densities in model and guide alike, so that any pair is served, global latents too;
    `fit` measures validation data, and keeps the best weights, at a factor of 1.

    Args:
        beta: >= 0.
        schedule: constant, linear[:length], cyclic[:length,rise] or sigmoid[:length,steepness], see
            `objectives.schedules`; lengths in epochs.
        kl: "analytic", in closed form where one is registered, or "sampled".
        num_particles: draws of z a datum.
        steps_per_epoch: of SVI alone, so that lengths may be given in epochs.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> from pyrovae.objectives.schedules import Linear
        >>> BetaELBO(beta=4.0, schedule=Linear(10)).beta_at(5.0)
        2.0
    """

    def __init__(
        self,
        beta: float = 4.0,
        schedule: Schedule = Constant(),  # noqa: B008
        kl: str = "analytic",
        num_particles: int = 1,
        steps_per_epoch: int = 1,
    ) -> None:
        check_range("beta", beta, 0, INFINITY)
        check_count(num_particles=num_particles)
        engines = {"analytic": pyro.infer.TraceMeanField_ELBO, "sampled": pyro.infer.Trace_ELBO}
        if kl not in engines:
            raise ValueError(f"expected kl to be 'analytic' or 'sampled'; got {kl!r}")
        super().__init__(num_particles=num_particles)
        self.elbo = engines[kl](num_particles=num_particles)
        self.analytic_kl = kl == "analytic"
        self.peak, self.schedule, self.clock = beta, schedule, Clock(steps_per_epoch)
        self.beta: float | None = None  # the factor now; None for the schedule's, as `fit` sets it

    def beta_at(self, t: float) -> float:
        """Return the factor at time t."""
        return self.peak * self.schedule(t)

    def _scaled(self, model: Callable, guide: Callable) -> tuple[Callable, Callable]:
        beta = self.beta_at(self.clock.read()) if self.beta is None else self.beta
        return with_beta(model, beta), with_beta(guide, beta)

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Tensor) -> Tensor:
        """Return minus the objective, a sum over the batch."""
        return self.elbo.differentiable_loss(*self._scaled(model, guide), *args)

    def loss(self, model: Callable, guide: Callable, *args: Tensor) -> float:
        """Return the loss as a number."""
        with torch.no_grad():
            return self.elbo.loss(*self._scaled(model, guide), *args)

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Tensor) -> float:
        """Return the loss as a number, and leave its gradient in the parameters' `.grad`."""
        return self.elbo.loss_and_grads(*self._scaled(model, guide), *args)

    def _get_trace(self, *args: object) -> object:
        return self.elbo._get_trace(*args)


class Capacity(Objective):
    """L = E_q[log p(x|z)] - gamma |KL - C(t)|, KL the batch's mean, C(t) = capacity schedule(t).

    Burgess et al. (2018): the KL is held to a capacity that grows as training goes on. By Jensen's
    inequality the mean of |KL - C| over batches is no less than |KL - C| of all data, and no more
    than the mean of |KL_n - C|: the smaller the batch, the larger the penalty.

    The KL sums over all sites; it is closed where one is registered, as in `FreeBits`, whose words
    on masks, scales and bottom-up guides hold here too.

    Args:
        gamma: >= 0.
        capacity: C in the end, in nats a datum, >= 0.
        schedule: as in `BetaELBO`.
        steps_per_epoch: as there.

    Raises:
        ValueError: an argument out of its range; on use, draws of the guide without a gradient, or
            latents of the guide alone.
    """

    couples_batch = True
    analytic_kl = True

    def __init__(
        self,
        gamma: float = 100.0,
        capacity: float = 25.0,
        schedule: Schedule = Constant(),  # noqa: B008
        steps_per_epoch: int = 1,
    ) -> None:
        check_range("gamma", gamma, 0, INFINITY)
        check_range("capacity", capacity, 0, INFINITY)
        super().__init__()
        self.gamma, self.capacity = gamma, capacity
        self.schedule, self.clock = schedule, Clock(steps_per_epoch)

    def estimate(self, model: Callable, guide: Callable, x: Tensor, *c: Tensor) -> Estimate:
        """Return the objective by datum. Arguments and errors: see `Objective`."""
        found = one_draw("Capacity", model, guide, x, *c)
        kl = torch.stack([divided_kl(latent, "site")[:, 0] for latent in found.latents], 1)
        counts = torch.stack([counted(latent) for latent in found.latents], 1).any(1)
        mean = batch_mean(kl.sum(1, keepdim=True), counts.unsqueeze(1), found.scale)
        capacity = self.capacity * self.schedule(self.clock.read())
        value = found.log_likelihood[0] - counts * self.gamma * (mean - capacity).abs()
        return Estimate(value, value, found.scale)
