"""Pictures. Each function returns a matplotlib Figure; no global state of matplotlib is touched."""

from pyrovae.plots.calibrating import calibration
from pyrovae.plots.divergence import forward_reverse
from pyrovae.plots.dual import duality
from pyrovae.plots.runs import history, latent, manifold, reconstructions, samples, save_all
from pyrovae.plots.style import save

__all__ = [
    "calibration",
    "duality",
    "forward_reverse",
    "history",
    "latent",
    "manifold",
    "reconstructions",
    "samples",
    "save",
    "save_all",
]
