"""Between a start that can be drawn and p(x, z): densities in between, and HMC on them."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import biject_to

from pyrovae.importance import (
    guide_density,
    inspect,
    log_joint,
    simulate,
    site_log_probs,
)

JITTER = 0.2  # of the step size, a chain each: no orbit is closed by mistake
SCALE_DRAWS = 64


class Bridge:
    """f_b(z) = q_0(z)^(1 - b) p(x, z)^b of N data, at chains of z (K, N, d) on the whole line.

    A latent with another support is mapped to the line, and the map's Jacobian is part of both.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        c: context, N rows each.
        start: q_0, "prior" or "guide".
        modules: those that the functions hold in their closures.

    Attributes:
        dim: length d of z.
        scale: standard deviations of the start, which scale the moves, (N, d).

    Raises:
        ValueError: a latent that is discrete, or lies where the line cannot be mapped to.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        x: Tensor,
        c: Sequence[Tensor],
        start: str,
        modules: Sequence[nn.Module],
    ) -> None:
        self.model, self.guide, self.x, self.c = model, guide, x, c
        self.start, self.modules = start, modules
        self.maps = {}
        for site in inspect(model, guide, x, *c, modules=modules).latents:
            try:
                if site.support.is_discrete:
                    raise NotImplementedError
                self.maps[site.name] = biject_to(site.support)
            except NotImplementedError:
                raise ValueError(
                    f"site {site.name!r}: expected a continuous latent that can be mapped to the "
                    f"line, for Hamiltonian Monte Carlo; its support is {site.support}: use "
                    "evidence.iwae, or evidence.enumeration of a discrete one"
                ) from None
        self.log_guide = guide_density(guide, x, *c, modules=modules) if start == "guide" else None
        with torch.no_grad():
            drawn = self._draws(SCALE_DRAWS, seed=0)
            self.shapes = {name: tuple(u.shape[2:]) for name, u in drawn.items()}
            z = self._flat(drawn)
        self.dim = z.shape[-1]
        self.scale = z.std(0).clamp(min=torch.finfo(z.dtype).tiny ** 0.5)

    def draw(self, k: int) -> Tensor:
        """Draw z from the start, by the global generator: (k, N, d)."""
        with torch.no_grad():
            return self._flat(self._draws(k))

    def difference(self, z: Tensor) -> Tensor:
        """Return log p(x, z) - log q_0(z), (K, N)."""
        with torch.no_grad():
            log_start, log_end = self._log_densities(z)
        return log_end - log_start

    def value_and_gradient(self, z: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Return log f_b(z), (K, N), and its gradient, (K, N, d), at beta (N,)."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            log_start, log_end = self._log_densities(z)
            value = log_start + beta * (log_end - log_start) + self._log_jacobian(z)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    def move(self, z: Tensor, beta: Tensor, step: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """Make a step of Hamiltonian Monte Carlo at f_b (Neal 2011), by the global generator.

        Args:
            z: where the chains are, (K, N, d).
            beta: inverse temperature (N,).
            step: leapfrog step (N,), in units of `scale`.
            num: leapfrog steps.

        Returns:
            Where they go, and the share of the K proposals that are accepted, (N,).
        """
        jitter = 1 + JITTER * (2 * torch.rand(z.shape[:2], dtype=z.dtype, device=z.device) - 1)
        size = (step * jitter).unsqueeze(-1) * self.scale
        momentum = torch.randn_like(z)
        value, gradient = self.value_and_gradient(z, beta)
        energy = 0.5 * momentum.square().sum(-1) - value
        at, speed = z, momentum + 0.5 * size * gradient
        for i in range(num):
            at = at + size * speed
            new, gradient = self.value_and_gradient(at, beta)
            speed = speed + (size if i < num - 1 else 0.5 * size) * gradient
        change = (energy - (0.5 * speed.square().sum(-1) - new)).nan_to_num(nan=-math.inf)
        uniform = torch.rand(z.shape[:2], dtype=z.dtype, device=z.device)
        accepted = uniform.log() < change
        return torch.where(accepted.unsqueeze(-1), at, z), change.clamp(max=0).exp().mean(0)

    def flat(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return z (..., d) on the line for latents by site (..., *event_shape)."""
        return self._flat({name: self.maps[name].inv(latents[name]) for name in self.maps})

    def _draws(self, k: int, seed: int | None = None) -> dict[str, Tensor]:
        """Return k draws a datum by site, on the line, (k, N, *shape)."""
        x, *c = (t.repeat(k, *[1] * (t.dim() - 1)) for t in (self.x, *self.c))
        source = self.guide if self.start == "guide" else self.model
        drawn = simulate(source, x, *c, seed=seed, modules=self.modules)
        line = {name: mapped.inv(drawn[name]) for name, mapped in self.maps.items()}
        return {name: u.reshape(k, len(self.x), *u.shape[1:]) for name, u in line.items()}

    def _flat(self, line: Mapping[str, Tensor]) -> Tensor:
        """Join sites on the line, of which two dimensions come before the event's."""
        return torch.cat([line[name].reshape(*line[name].shape[:2], -1) for name in self.maps], -1)

    def _on_the_line(self, z: Tensor) -> dict[str, Tensor]:
        parts = z.split([math.prod(shape) for shape in self.shapes.values()], -1)
        return {
            name: part.reshape(*z.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def _log_jacobian(self, z: Tensor) -> Tensor:
        """Return that of the map from the line to the latents, (K, N)."""
        total = z.new_zeros(z.shape[:2])
        for name, u in self._on_the_line(z).items():
            log_det = self.maps[name].log_abs_det_jacobian(u, self.maps[name](u))
            total = total + log_det.reshape(*z.shape[:2], -1).sum(-1)
        return total

    def _log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return log q_0(z) and log p(x, z), each (K, N)."""
        latents = {name: self.maps[name](u) for name, u in self._on_the_line(z).items()}
        if self.log_guide is not None:
            log_p = log_joint(self.model, latents, self.x, *self.c, modules=self.modules)
            return self.log_guide(latents), log_p
        sites = site_log_probs(self.model, latents, self.x, *self.c, modules=self.modules)
        prior = torch.stack([sites[name] for name in latents]).sum(0)
        return prior, torch.stack(list(sites.values())).sum(0)
