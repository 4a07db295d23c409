"""Bidirectional Monte Carlo: log p(x) of simulated data between two bounds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from pyrovae.evidence.annealed import ROWS, Settings, as_evidence, backward, forward, plan
from pyrovae.evidence.bridge import Bridge
from pyrovae.evidence.progress import by_rows, fingerprint
from pyrovae.importance import batched, find_modules, inspect, simulate


@dataclass(frozen=True)
class Bidirectional:
    """log p(x) of data drawn from the model, between two bounds, one entry a datum, in nats.

    Attributes:
        x: the simulated data, (N, ...).
        log_evidence: midway between the bounds, (N,).
        standard_error: of that, (N,).
        lower: by annealing from the start: at most log p(x) on average, (N,).
        lower_se: its standard error, (N,).
        upper: by the same chains run back from the z that x was drawn with: at least log p(x) on
            average, (N,).
        upper_se: its standard error, (N,).
        effective_sample_size: of the weights of `lower`, (N,).
    """

    x: Tensor
    log_evidence: Tensor
    standard_error: Tensor
    lower: Tensor
    lower_se: Tensor
    upper: Tensor
    upper_se: Tensor
    effective_sample_size: Tensor

    @property
    def gap(self) -> Tensor:
        """The difference upper - lower, (N,): on average at least the error of either."""
        return self.upper - self.lower


def bidirectional(
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
) -> Bidirectional:
    """Return bounds of log p(x) from both sides, of data x drawn from the model with their z.

    Grosse et al. (2015): of simulated data z is an exact draw of p(z|x). Annealing from q_0 gives
    log mean w, at most log p(x) on average; the same chains from z back to q_0 give
    -log mean 1/w, at least that. Their gap is how far `ais` with the same options may be off on
    such data, and so calibrates its figure on real ones, as far as those are like simulated ones.

    Args:
        model: Pyro model of (x, *c), its latents continuous; x is its only observed site.
        guide: Pyro guide of (x, *c).
        x: data (N, ...), of which shape and dtype alone matter: as many are drawn.
        *c: context, N rows each.
        num_chains: chains a datum and direction; those of one datum all run back from its one z.
        num_temperatures: see `ais`.
        num_leapfrog: see `ais`.
        start: see `ais`.
        schedule: see `ais`.
        seed: of the data and of the draws.
        progress: see `ais`.
        resume: see `ais`.
        modules: those that the functions hold in their closures.

    Returns:
        Bidirectional.

    Raises:
        ValueError: as `ais`; or the model observes anything beside x.

    Example:
        >>> import torch
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> found = bidirectional(vae.model, vae.guide, torch.ones(3, 4), num_temperatures=5)
        >>> bool((found.lower <= found.upper + 4 * (found.lower_se + found.upper_se)).all())
        True
    """
    how = Settings(num_chains, num_temperatures, num_leapfrog, start, schedule)
    how.check()
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    structure = inspect(model, guide, x[:2], *(t[:2] for t in c), modules=modules)
    structure.check()
    observed = [site.name for site in structure.sites.values() if site.observed]
    if structure.datum is None or len(observed) != 1:
        raise ValueError(
            f"expected a model whose one observed site is the argument x, to draw data from; it "
            f"observes {observed or 'nothing'}"
        )
    drawn = simulate(model, x, *c, seed=seed, modules=modules)
    x = drawn[structure.datum.name]

    def solve(rows: slice) -> Bidirectional:
        bridge = Bridge(model, guide, x[rows], [t[rows] for t in c], start, tuple(modules))
        settled = plan(bridge, how, seed, rows)
        exact = bridge.flat({name: drawn[name][rows].unsqueeze(0) for name in bridge.maps})[0]
        lower = as_evidence(forward(bridge, settled, how, seed, rows))
        upper = as_evidence(-backward(bridge, settled, how, seed, rows, exact))
        both = (lower.standard_error.square() + upper.standard_error.square()).sqrt() / 2
        return Bidirectional(
            x=x[rows].cpu(),
            log_evidence=(lower.log_evidence - upper.log_evidence) / 2,
            standard_error=both,
            lower=lower.log_evidence,
            lower_se=lower.standard_error,
            upper=-upper.log_evidence,
            upper_se=upper.standard_error,
            effective_sample_size=lower.effective_sample_size,
        )

    return by_rows(
        Bidirectional, solve, len(x), max(1, ROWS // num_chains),
        cost=f"bidirectional: {how.cost(len(x), 2)}", progress=progress, resume=resume,
        request=lambda: fingerprint("bidirectional", how, seed, x, *c, *found),
    )  # fmt: skip
