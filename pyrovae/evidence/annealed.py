"""Annealed importance sampling: from a start that can be drawn, in steps, to p(z|x)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pyrovae.distributions import mixed, seeded
from pyrovae.evidence import pareto
from pyrovae.evidence.bridge import Bridge
from pyrovae.evidence.progress import by_rows, fingerprint
from pyrovae.evidence.results import Evidence
from pyrovae.importance import batched, find_modules, inspect

STARTS = ("guide", "prior")
SCHEDULES = ("adaptive", "sigmoid", "linear")
ROWS = 2048  # data x chains that move together
ACCEPTED = 0.65  # part of the proposals: the optimum of HMC (Neal 2011, section 5.4.4)
STEEP = 4.0  # of the sigmoid schedule (Wu et al. 2017)
PILOT_CHAINS = 16
APART = 10  # transitions at p(z|x) before chains run back from one draw of it


@dataclass(frozen=True)
class Plan:
    """What a pilot run settles, so that the run itself is a fixed sequence of transitions.

    Attributes:
        betas: inverse temperatures 0 = b_0 < ... < b_T = 1, (T + 1, N).
        steps: leapfrog step of the transition at each, (T + 1, N).
    """

    betas: Tensor
    steps: Tensor


@dataclass(frozen=True)
class Settings:
    """How to anneal. Attributes: see `ais`."""

    num_chains: int = 16
    num_temperatures: int = 100
    num_leapfrog: int = 10
    start: str = "guide"
    schedule: str = "adaptive"

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: a count that is not positive, or an unknown name.
        """
        for name in ("num_chains", "num_temperatures", "num_leapfrog"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"expected {name} to be a positive whole number; got {value!r}")
        for name, known in (("start", STARTS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"expected {name} to be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )

    def cost(self, n: int, times: int = 1) -> str:
        """Tell the work for n data, done so many times over."""
        gradients = times * n * self.num_chains * self.num_temperatures * self.num_leapfrog
        return (
            f"{n:,} data x {self.num_chains} chains x {self.num_temperatures:,} temperatures x "
            f"{self.num_leapfrog} leapfrog steps{' x 2 directions' if times > 1 else ''} = "
            f"{gradients:.2g} gradients of log p(x, z), and a quarter as many to plan them"
        )


def ais(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_chains: int = 16,
    num_temperatures: int = 100,
    num_leapfrog: int = 10,
    start: str = "guide",
    schedule: str = "adaptive",
    seed: int = 0,
    progress: bool = False,
    resume: str | Path | None = None,
    modules: Sequence[nn.Module] = (),
) -> Evidence:
    """Return log (1/K) sum_k w_k, w = prod_t f_t(z_{t-1}) / f_{t-1}(z_{t-1}), by annealing.

    Neal (2001): f_t(z) = q_0(z)^(1 - b_t) p(x, z)^b_t leads from q_0, the prior or the guide, to
    p(x, z); z_0 ~ q_0, and z_t comes of z_{t-1} by a step of Hamiltonian Monte Carlo that leaves
    f_t as it is, so that E[w] = p(x) and the estimate is a lower bound of log p(x) on average. Wu
    et al. (2017) measured decoders so.

    Step sizes, a datum and temperature each, and the adaptive schedule are settled by a pilot run
    of a quarter of the length and frozen: what adapts while it runs is no longer unbiased.

    Args:
        model: Pyro model of (x, *c), its latents continuous.
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        num_chains: number K of chains a datum.
        num_temperatures: number T of steps from q_0 to p(x, z).
        num_leapfrog: leapfrog steps, each a gradient, of one transition.
        start: q_0: "guide", from which it is not far, or "prior", which owes the guide nothing and
            needs ten times as many temperatures.
        schedule: of b_t: "adaptive", at a constant thermodynamic speed, b' ~ 1 / sd(log f_1 / f_0)
            (Gelman & Meng 1998, section 4), "sigmoid" (Wu et al. 2017) or "linear".
        seed: of the draws.
        progress: tell what there is to do, and show a bar, on stderr.
        resume: a .safetensors file that keeps what is done, and from which to go on.
        modules: those that the functions hold in their closures.

    Returns:
        Evidence; its k-hat from 30 chains on.

    Raises:
        ValueError: no valid pair, latents that are discrete or on a sphere, bad data, a count that
            is not positive, an unknown name, or a file of other work.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> ais(vae.model, vae.guide, torch.ones(3, 4), num_temperatures=5).log_evidence.shape
        torch.Size([3])
    """
    how = Settings(num_chains, num_temperatures, num_leapfrog, start, schedule)
    how.check()
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    inspect(model, guide, x[:2], *(t[:2] for t in c), modules=modules).check()

    def solve(rows: slice) -> Evidence:
        bridge = Bridge(model, guide, x[rows], [t[rows] for t in c], start, tuple(modules))
        return as_evidence(forward(bridge, plan(bridge, how, seed, rows), how, seed, rows))

    return by_rows(
        Evidence, solve, len(x), max(1, ROWS // num_chains),
        cost=f"ais: {how.cost(len(x))}", progress=progress, resume=resume,
        request=lambda: fingerprint("ais", how, seed, x, *c, *found),
    )  # fmt: skip


def as_evidence(log_w: Tensor) -> Evidence:
    """Return the estimate that log weights (K, N) make."""
    k, log_w = len(log_w), log_w.double().cpu()
    log_evidence = log_w.logsumexp(0) - math.log(k)
    size = (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()
    error = ((k / size - 1).clamp(min=0) / max(k - 1, 1e-300)).sqrt()
    return Evidence(
        log_evidence=log_evidence,
        standard_error=error if k > 1 else torch.full_like(error, torch.inf),
        lower=log_evidence,
        effective_sample_size=size,
        num_particles=torch.full_like(size, k, dtype=torch.long),
        khat=pareto.khat(log_w) if k >= pareto.MIN_DRAWS else None,
    )


def forward(bridge: Bridge, plan: Plan, how: Settings, seed: int, rows: slice) -> Tensor:
    """Return log w (K, N) of chains from draws of the start to p(x, z)."""
    with seeded(mixed(seed, rows.start, 1)):
        z = bridge.draw(how.num_chains)
        log_w = z.new_zeros(z.shape[:2])
        for t in range(1, len(plan.betas)):
            log_w += (plan.betas[t] - plan.betas[t - 1]) * bridge.difference(z)
            if t < len(plan.betas) - 1:
                z, _ = bridge.move(z, plan.betas[t], plan.steps[t], how.num_leapfrog)
    return log_w


def backward(
    bridge: Bridge, plan: Plan, how: Settings, seed: int, rows: slice, exact: Tensor
) -> Tensor:
    """Return log w (K, N) of the same chains run back, from a draw of p(z|x) to the start.

    Each transition is reversible, so that E[1 / w] = 1 / p(x). All chains begin at one draw of
    p(z|x); a few transitions that leave p(z|x) as it is take them apart, or their common start
    would make an error that their spread does not show.

    Args:
        bridge: between the start and p(x, z).
        plan: of the forward run.
        how: to anneal.
        seed: of the draws.
        rows: of the data.
        exact: a draw of p(z|x) a datum, (N, d).
    """
    with seeded(mixed(seed, rows.start, 2)):
        z = exact.expand(how.num_chains, *exact.shape)
        for _ in range(APART):
            z, _ = bridge.move(z, plan.betas[-1], plan.steps[-1], how.num_leapfrog)
        log_w = z.new_zeros(z.shape[:2])
        for t in range(len(plan.betas) - 1, 0, -1):
            if t < len(plan.betas) - 1:
                z, _ = bridge.move(z, plan.betas[t], plan.steps[t], how.num_leapfrog)
            log_w += (plan.betas[t] - plan.betas[t - 1]) * bridge.difference(z)
    return log_w


def plan(bridge: Bridge, how: Settings, seed: int, rows: slice) -> Plan:
    """Settle step sizes and schedule by a pilot run of chains of its own.

    Its step sizes follow the share of proposals accepted. At a constant thermodynamic speed
    b' ~ 1 / sd_b(log f_1 / f_0), the sds being those of the pilot's chains at its temperatures.
    """
    length = max(10, how.num_temperatures // 4)
    linear = torch.linspace(0, 1, length + 1, dtype=torch.float64)
    betas = _sigmoid(linear)
    with seeded(mixed(seed, rows.start, 0)):
        z = bridge.draw(PILOT_CHAINS)
        n = z.shape[1]
        step = z.new_full((n,), 0.5 / bridge.dim**0.25)
        steps, spreads = [step], [bridge.difference(z).std(0)]
        for beta in betas[1:]:
            for _ in range(2 if len(steps) > 1 else 10):  # more at first: the size is a guess
                z, accepted = bridge.move(z, z.new_full((n,), beta), step, how.num_leapfrog)
                step = step * (1.5 * (accepted - ACCEPTED)).exp()
            steps.append(step)
            spreads.append(bridge.difference(z).std(0))
    spread = _smooth(torch.stack(spreads).double().cpu())
    if how.schedule == "adaptive":
        ours = _constant_speed(betas, spread, how.num_temperatures)
    else:
        even = torch.linspace(0, 1, how.num_temperatures + 1, dtype=torch.float64)
        ours = (_sigmoid(even) if how.schedule == "sigmoid" else even).unsqueeze(-1).expand(-1, n)
    sizes = _interpolate(ours, betas, torch.stack(steps).double().cpu().log()).exp()
    return Plan(ours.to(z), sizes.to(z))


def _sigmoid(t: Tensor) -> Tensor:
    """Return the sigmoid schedule at t in [0, 1]: it moves slowly at both ends."""
    ends = torch.sigmoid(torch.tensor([-STEEP, STEEP], dtype=t.dtype))
    return (torch.sigmoid(STEEP * (2 * t - 1)) - ends[0]) / (ends[1] - ends[0])


def _smooth(values: Tensor) -> Tensor:
    """Return root mean squares over three neighbours, (T, N), finite and positive."""
    squares = values.nan_to_num(0.0, 0.0, 0.0).square()
    padded = torch.cat([squares[:1], squares, squares[-1:]])
    mean = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    return (mean + 1e-4 * mean.amax(0) + 1e-20).sqrt()


def _constant_speed(betas: Tensor, spread: Tensor, num: int) -> Tensor:
    """Return T + 1 temperatures (T + 1, N) with as much of the integral of sd db between each."""
    pieces = (spread[1:] + spread[:-1]) / 2 * (betas[1:] - betas[:-1]).unsqueeze(-1)
    length = torch.cat([pieces.new_zeros(1, pieces.shape[1]), pieces.cumsum(0)])
    length = length / length[-1]
    even = torch.linspace(0, 1, num + 1, dtype=betas.dtype)
    columns = [
        _interpolate(even.unsqueeze(-1), length[:, n], betas.unsqueeze(-1))[:, 0]
        for n in range(length.shape[1])
    ]
    found = torch.stack(columns, -1)
    found[0], found[-1] = 0.0, 1.0
    return found


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return y (M, N) of ascending x (M,), piecewise linear, at points (T, N): (T, N)."""
    i = torch.searchsorted(x.contiguous(), at.contiguous()).clamp(1, len(x) - 1)
    share = ((at - x[i - 1]) / (x[i] - x[i - 1]).clamp(min=1e-300)).clamp(0, 1)
    y = y.expand(-1, at.shape[1])
    return torch.lerp(y.gather(0, i - 1), y.gather(0, i), share)
