"""Pairs of a generative model and a guide, made of parts."""

from pyrovae.pairs.linear import ppca
from pyrovae.pairs.names import build
from pyrovae.pairs.refinement import refined
from pyrovae.pairs.vae import VAE
from pyrovae.pairs.variance import fit_variance

__all__ = ["VAE", "build", "fit_variance", "ppca", "refined"]
