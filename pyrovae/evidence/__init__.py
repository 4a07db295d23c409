"""Estimators of the evidence log p(x), one idea a file."""

from pyrovae.evidence.importance_weighted import Evidence, Summary, iwae, summarise

__all__ = ["Evidence", "Summary", "iwae", "summarise"]
