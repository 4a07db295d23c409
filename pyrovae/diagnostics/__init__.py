"""Diagnostics of a pair: its guide, its weights, what its latents tell, and what it generates."""

from pyrovae.diagnostics.dimensions import Collapse, TotalCorrelation, collapse, total_correlation
from pyrovae.diagnostics.gradients import GradientNoise, gradient_noise
from pyrovae.diagnostics.kernels import TwoSample, two_sample
from pyrovae.diagnostics.latents import ActiveUnits, Surgery, active_units, elbo_surgery
from pyrovae.diagnostics.manifolds import (
    Memorisation,
    Neighbours,
    PrecisionRecall,
    memorisation,
    nearest_neighbours,
    precision_recall,
)
from pyrovae.diagnostics.outliers import AUROC, OutlierScores, auroc, outlier_scores
from pyrovae.diagnostics.probing import Probes, latent_means, probes
from pyrovae.diagnostics.ranks import Calibration, calibration
from pyrovae.diagnostics.rates import RateDistortion, rate_distortion
from pyrovae.diagnostics.tails import Khat, khat
from pyrovae.diagnostics.traversing import traversals

__all__ = [
    "AUROC",
    "ActiveUnits",
    "Calibration",
    "Collapse",
    "GradientNoise",
    "Khat",
    "Memorisation",
    "Neighbours",
    "OutlierScores",
    "PrecisionRecall",
    "Probes",
    "RateDistortion",
    "Surgery",
    "TotalCorrelation",
    "TwoSample",
    "active_units",
    "auroc",
    "calibration",
    "collapse",
    "elbo_surgery",
    "gradient_noise",
    "khat",
    "latent_means",
    "memorisation",
    "nearest_neighbours",
    "outlier_scores",
    "precision_recall",
    "probes",
    "rate_distortion",
    "total_correlation",
    "traversals",
    "two_sample",
]
