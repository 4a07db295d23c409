"""Diagnostics of a pair: its guide, its importance weights, and what its latents tell."""

from pyrovae.diagnostics.latents import ActiveUnits, Surgery, active_units, elbo_surgery
from pyrovae.diagnostics.ranks import Calibration, calibration
from pyrovae.diagnostics.tails import Khat, khat

__all__ = [
    "ActiveUnits",
    "Calibration",
    "Khat",
    "Surgery",
    "active_units",
    "calibration",
    "elbo_surgery",
    "khat",
]
