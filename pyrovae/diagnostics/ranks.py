"""Is the guide calibrated? By simulation, from the ranks of what was simulated."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrovae.distributions import seeded
from pyrovae.importance import batched, find_modules, inspect, log_joint, simulate
from pyrovae.importance.weights import rows_of_a_pass

BINS = 16  # of a rank histogram
MIN_SIMULATIONS = 5 * BINS  # five a bin, for the chi-square law
JOINT = "log p(x, z)"
SHOWN = 12  # quantities that str() lists


@dataclass(frozen=True)
class Calibration:
    """Ranks of the truth among draws of the guide. `str(result)` is the table.

    Attributes:
        ranks: of each simulation's truth, from 0 to num_draws, (num_simulations, quantities).
        names: of the quantities: "z[0]", "z[1]", ..., "log p(x, z)".
        p_values: of the chi-square test that a quantity's ranks are uniform, (quantities,).
        num_draws: draws of the guide a simulation.
        level: at which the joint test is made, the rate of false alarms.
    """

    ranks: Tensor
    names: tuple[str, ...]
    p_values: Tensor
    num_draws: int
    level: float

    @property
    def p_value(self) -> float:
        """Of the joint test: the smallest p-value times their number (Bonferroni), at most 1."""
        return min(1.0, len(self.names) * float(self.p_values.min()))

    @property
    def ok(self) -> bool:
        """Is nothing found against the guide, p_value > level?"""
        return self.p_value > self.level

    @property
    def counts(self) -> Tensor:
        """The rank histograms, (quantities, 16)."""
        return _histograms(self.ranks, self.num_draws)

    def __str__(self) -> str:
        p = self.p_values.tolist()
        order = sorted(range(len(p)), key=p.__getitem__)[:SHOWN]
        width = max(len("all, jointly"), *(len(self.names[i]) for i in order))
        lines = [f"{len(self.ranks):,} simulations, {self.num_draws} draws of the guide each"]
        lines += [f"{'quantity':<{width}}  p-value"]
        for i in sorted(order):
            verdict = "" if len(p) * p[i] > self.level else "  not uniform"
            lines.append(f"{self.names[i]:<{width}}  {p[i]:<7.2g}{verdict}".rstrip())
        if len(p) > SHOWN:
            lines.append(f"({len(p) - SHOWN} more, of larger p-values)")
        verdict = "ok" if self.ok else f"FAILS at level {self.level:g}"
        return "\n".join([*lines, f"{'all, jointly':<{width}}  {self.p_value:<7.2g}  {verdict}"])


def calibration(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_simulations: int = 1000,
    num_draws: int = 63,
    level: float = 1e-3,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
) -> Calibration:
    """Test whether the guide is the model's posterior, by simulation.

    z*, x* ~ p(z, x);  z_1 ... z_L ~ q(z|x*);  rank f = #{l : f(z_l, x*) < f(z*, x*)}

    If q(z|x) = p(z|x), every rank is uniform on 0 ... L, ties broken at random. The quantities f
    are each number in z (Talts et al. 2018, theorem 1), and log p(x, z), which catches what these
    cannot: a guide equal to the prior has uniform ranks in z whatever the model (Modrak et al.
    2023). Each quantity's ranks, in 16 bins, are put to a chi-square test, and the smallest p-value
    is multiplied by the number of quantities. So an exact guide is flagged with probability `level`
    at most, 1 in 1,000 by default. (The chi-square law is an approximation: by the multinomial's
    own figures the rate is right to a fifth with 1,000 simulations and up to 100 quantities, and up
    to three times as high with 80 simulations.) Another `seed` gives an independent test.

    For a number in z, high ends of the histogram mean a guide too narrow, a hump one too wide, a
    slope one off to a side (Talts et al. 2018). For log p(x, z), low ranks mean draws more probable
    than the truth, so a guide too narrow, and high ranks one too wide, or collapsed. All this is on
    the model's own data: where the real ones are unlike them, it says nothing of the guide.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...): only its shape and dtype matter.
        *c: context, N rows each, gone through again and again.
        num_simulations: at least 80, five a bin.
        num_draws: L, draws of the guide a simulation; L + 1 must be a multiple of 16.
        level: of the joint test.
        seed: of the simulations, the draws and the ties.
        modules: those that the functions hold in their closures; set to evaluation mode here.

    Returns:
        Calibration.

    Raises:
        ValueError: no valid pair; one whose model cannot be simulated, because it observes more
            than x, or not x itself, or draws x from a distribution that depends on x; or a number
            out of the range above.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> calibration(vae.model, vae.guide, torch.ones(1, 4), num_simulations=100).names
        ('z[0]', 'z[1]', 'log p(x, z)')
    """
    if not isinstance(num_simulations, int) or num_simulations < MIN_SIMULATIONS:
        raise ValueError(
            f"expected num_simulations to be a whole number from {MIN_SIMULATIONS} up, five for "
            f"each of {BINS} bins; got {num_simulations!r}"
        )
    if not isinstance(num_draws, int) or num_draws < 1 or (num_draws + 1) % BINS:
        raise ValueError(
            f"expected num_draws + 1 to be a multiple of {BINS}, so that all bins hold as many "
            f"ranks; got num_draws={num_draws!r}: take 63, or 15 to be faster"
        )
    if not 0 < level < 1:
        raise ValueError(f"expected level to be in (0, 1); got {level!r}")
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    datum, latents = _simulable(model, guide, x, c, found)
    per_pass = max(1, rows_of_a_pass(x) // (num_draws + 1))
    ranks = []
    with torch.no_grad(), seeded(seed):
        for start in range(0, num_simulations, per_pass):
            rows = torch.arange(start, min(start + per_pass, num_simulations)) % len(x)
            cs = [t[rows] for t in c]
            truth = simulate(model, x[rows], *cs, seed=None, modules=found)
            xs = truth[datum]
            drawn = simulate(
                guide, *(torch.cat([t] * num_draws) for t in (xs, *cs)), seed=None, modules=found
            )
            z = {
                name: torch.cat([truth[name], drawn[name]]).unflatten(0, (1 + num_draws, len(rows)))
                for name in latents
            }
            log_p = log_joint(model, z, xs, *cs, modules=found)
            ranks.append(
                torch.cat([_rank(f.reshape(*log_p.shape, -1)) for f in (*z.values(), log_p)], -1)
            )
    names = [scalar for name in latents for scalar in _scalars(name, truth[name].shape[1:])]
    all_ranks = torch.cat(ranks).cpu()
    p_values = _uniformity(_histograms(all_ranks, num_draws))
    return Calibration(all_ranks, (*names, JOINT), p_values, num_draws, level)


def _simulable(
    model: Callable, guide: Callable, x: Tensor, c: Sequence[Tensor], modules: Sequence[nn.Module]
) -> tuple[str, list[str]]:
    """Return the names of the datum and of the latents, of a pair whose model can be simulated."""
    few, few_c = x[:2], [t[:2] for t in c]
    structure = inspect(model, guide, few, *few_c, modules=modules)
    structure.check()
    observed = [s.name for s in structure.sites.values() if s.observed]
    if structure.datum is None or len(observed) > 1:
        raise ValueError(
            "expected one observed site, whose value is the argument x itself; got "
            f"{observed or 'none'}, the datum {structure.datum and structure.datum.name!r}: to be "
            "calibrated a model must draw all that it observes as x (obs=x)"
        )
    datum = structure.datum.name
    once = simulate(model, few, *few_c, modules=modules)[datum]
    again = simulate(model, once, *few_c, modules=modules)[datum]
    if not torch.allclose(once, again, equal_nan=True):
        raise ValueError(
            f"site {datum!r}: expected a distribution that does not depend on the argument x; got "
            "other draws for another x, by the same seed: such a model cannot be simulated in one "
            "pass (an autoregressive likelihood?), so its guide cannot be calibrated"
        )
    return datum, [s.name for s in structure.latents if s.in_model]


def _rank(values: Tensor) -> Tensor:
    """Return the rank of values[0] among values[1:], ties at random, of shape values.shape[1:]."""
    truth, drawn = values[0], values[1:]
    below, tied = (drawn < truth).sum(0), (drawn == truth).sum(0)
    share = torch.rand(below.shape, dtype=torch.float64, device=below.device)
    return below + (share * (tied + 1)).long()


def _histograms(ranks: Tensor, num_draws: int) -> Tensor:
    """Return the counts (quantities, BINS) of ranks (simulations, quantities)."""
    bins = ranks // ((num_draws + 1) // BINS)
    return torch.stack([(bins == b).sum(0) for b in range(BINS)], -1)


def _uniformity(counts: Tensor) -> Tensor:
    """Return p-values (...) of Pearson's chi-square test of counts (..., bins) against a uniform.

    p = Q((bins - 1) / 2, X^2 / 2),   X^2 = sum_b (n_b - n / bins)^2 / (n / bins)
    """
    expected = counts.sum(-1, keepdim=True).double() / counts.shape[-1]
    statistic = ((counts - expected).square() / expected).sum(-1)
    freedom = torch.full_like(statistic, counts.shape[-1] - 1)
    return torch.special.gammaincc(freedom / 2, statistic / 2)


def _scalars(name: str, shape: Sequence[int]) -> list[str]:
    """Return the names of a site's numbers: "z[0]", ..., or "z" alone for a scalar."""
    places = itertools.product(*(range(s) for s in shape))
    return [f"{name}[{', '.join(map(str, place))}]" if place else name for place in places]
