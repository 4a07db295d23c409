"""Pictures. Each function returns a matplotlib Figure; no global state of matplotlib is touched."""

from pyrovae.plots.calibrating import calibration
from pyrovae.plots.charts import (
    comparison_bars,
    copy_distances,
    elbo_curve,
    evidence_intervals,
    gap_bars,
    khat_histogram,
    term_curves,
    unit_bars,
)
from pyrovae.plots.divergence import forward_reverse
from pyrovae.plots.dual import duality
from pyrovae.plots.maps import latent_map
from pyrovae.plots.mosaics import mosaic
from pyrovae.plots.runs import history, latent, manifold, reconstructions, samples, save_all
from pyrovae.plots.style import save

__all__ = [
    "calibration",
    "comparison_bars",
    "copy_distances",
    "duality",
    "elbo_curve",
    "evidence_intervals",
    "forward_reverse",
    "gap_bars",
    "history",
    "khat_histogram",
    "latent",
    "latent_map",
    "manifold",
    "mosaic",
    "reconstructions",
    "samples",
    "save",
    "save_all",
    "term_curves",
    "unit_bars",
]
