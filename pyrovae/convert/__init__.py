"""Pairs in ArviZ's terms: an InferenceData (ArviZ 0.2x) or DataTree (1.x), and model comparison."""

from pyrovae.convert.pairs import posterior_to_arviz, to_arviz
from pyrovae.convert.tables import compare_evidence, loo

__all__ = ["compare_evidence", "loo", "posterior_to_arviz", "to_arviz"]
