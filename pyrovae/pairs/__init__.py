"""Pairs of a generative model and a guide, made of parts."""

from pyrovae.pairs.bayesian_decoder import BayesianDecoderVAE
from pyrovae.pairs.conditional import ConditionalVAE
from pyrovae.pairs.hierarchical import HierarchicalVAE
from pyrovae.pairs.hierarchical_posteriors import BottomUp, Ladder, TopDown, rungs
from pyrovae.pairs.linear import ppca
from pyrovae.pairs.mixture import MixtureVAE
from pyrovae.pairs.names import build
from pyrovae.pairs.refinement import refined
from pyrovae.pairs.semi_supervised import SemiSupervisedVAE
from pyrovae.pairs.sequence import SequenceVAE
from pyrovae.pairs.sequence_parts import (
    Combiner,
    GatedTransition,
    LinearTransition,
    RecurrentEncoder,
)
from pyrovae.pairs.vae import VAE
from pyrovae.pairs.variance import fit_variance

__all__ = [
    "BayesianDecoderVAE",
    "BottomUp",
    "Combiner",
    "ConditionalVAE",
    "GatedTransition",
    "HierarchicalVAE",
    "Ladder",
    "LinearTransition",
    "MixtureVAE",
    "RecurrentEncoder",
    "SemiSupervisedVAE",
    "SequenceVAE",
    "TopDown",
    "VAE",
    "build",
    "fit_variance",
    "ppca",
    "refined",
    "rungs",
]
