"""Importance weights of any pair. The only reader of traces in the library.

A pair is Pyro's own: two callables of a batch `x` (leading dimension = data points) and optional
context tensors `*c` with len(x) rows each. A *valid* pair has one plate at dim -1 that holds the
data, of size len(x) or of a larger size with `subsample_size=len(x)`; event dimensions declared
with `.to_event`; the same latent sites on both sides; and row n of both depends on row n of `x` and
`c` alone.
"""

from pyrovae.importance.blame import not_finite
from pyrovae.importance.dependence import analytic_kl_problem
from pyrovae.importance.differentiable import Latent, Particles, particles, simulated
from pyrovae.importance.draws import Draws, posterior_draws, prior_draws
from pyrovae.importance.passes import CompiledPasses, Terms
from pyrovae.importance.structure import (
    Plate,
    Site,
    Structure,
    batched,
    check_support,
    find_modules,
    for_any_rows,
    inspect,
)
from pyrovae.importance.weights import (
    enumerate_latents,
    guide_density,
    guide_distributions,
    log_joint,
    log_terms,
    log_weights,
    simulate,
    site_log_probs,
    weighted_data,
)

__all__ = [
    "CompiledPasses",
    "Draws",
    "Latent",
    "Particles",
    "Plate",
    "Site",
    "Structure",
    "Terms",
    "analytic_kl_problem",
    "batched",
    "check_support",
    "enumerate_latents",
    "find_modules",
    "for_any_rows",
    "guide_density",
    "guide_distributions",
    "inspect",
    "log_joint",
    "log_terms",
    "log_weights",
    "not_finite",
    "particles",
    "posterior_draws",
    "prior_draws",
    "simulate",
    "simulated",
    "site_log_probs",
    "weighted_data",
]
