"""Pairs of a generative model and a guide, made of parts."""

from pyrovae.pairs.linear import ppca
from pyrovae.pairs.names import build
from pyrovae.pairs.vae import VAE

__all__ = ["VAE", "build", "ppca"]
