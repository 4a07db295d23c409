"""Training a pair, and the directory a run leaves behind."""

from pyrovae.training.history import History
from pyrovae.training.rundir import load
from pyrovae.training.trainer import fit

__all__ = ["History", "fit", "load"]
