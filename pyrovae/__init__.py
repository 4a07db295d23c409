"""Variational autoencoders as probabilistic programs, whose evidence bound is measured."""

from pyrovae import (
    data,
    diagnostics,
    divergences,
    evidence,
    importance,
    likelihoods,
    nets,
    objectives,
    pairs,
    plots,
    posteriors,
    priors,
    testing,
)
from pyrovae.convert import to_arviz
from pyrovae.importance import log_weights
from pyrovae.pairs import VAE, build
from pyrovae.training import fit, load

__all__ = [
    "VAE",
    "build",
    "data",
    "diagnostics",
    "divergences",
    "evidence",
    "fit",
    "importance",
    "likelihoods",
    "load",
    "log_weights",
    "nets",
    "objectives",
    "pairs",
    "plots",
    "posteriors",
    "priors",
    "testing",
    "to_arviz",
]
