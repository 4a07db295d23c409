"""Objectives: Pyro ELBOs of any valid pair, and the manual ELBO that cross-checks them.

Each serves Pyro's SVI, `ELBOModule` and `fit`. Those that say `couples_batch` depend on the batch's
size.
"""

import pyro.infer

from pyrovae.nets.naming import by_name
from pyrovae.objectives.aggregate import MMD, BetaTC, InfoVAE
from pyrovae.objectives.annealed import BetaELBO, Capacity
from pyrovae.objectives.divided import FreeBits
from pyrovae.objectives.importance_weighted import CIWAE, IWAE, MIWAE, PIWAE, Renyi
from pyrovae.objectives.manual import ManualELBO
from pyrovae.objectives.pathwise import DReG, StickingTheLanding
from pyrovae.objectives.scaling import with_beta as with_beta
from pyrovae.objectives.wake_sleep import InclusiveKL, ReweightedWakeSleep

__all__ = [
    "BetaELBO",
    "BetaTC",
    "CIWAE",
    "Capacity",
    "DReG",
    "FreeBits",
    "IWAE",
    "InclusiveKL",
    "InfoVAE",
    "MIWAE",
    "MMD",
    "ManualELBO",
    "PIWAE",
    "Renyi",
    "ReweightedWakeSleep",
    "StickingTheLanding",
]

PYRO_ELBOS = ("TraceEnum_ELBO", "TraceGraph_ELBO", "TraceMeanField_ELBO", "Trace_ELBO")


def by_objective_name(name: str) -> type[pyro.infer.ELBO]:
    """Return the ELBO class of that name, ours or one of Pyro's that `fit` takes.

    Args:
        name: compared without case, hyphen, underscore or final "ELBO".

    Raises:
        ValueError: no such name.
    """
    ours = {n: globals()[n] for n in __all__}
    return by_name("objective", name, {n: getattr(pyro.infer, n) for n in PYRO_ELBOS} | ours)
