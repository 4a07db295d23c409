"""Pictures. Each function returns a matplotlib Figure; no global state of matplotlib is touched."""

from pyrovae.plots.runs import history, latent, manifold, reconstructions, samples, save_all
from pyrovae.plots.style import save

__all__ = ["history", "latent", "manifold", "reconstructions", "samples", "save", "save_all"]
