"""Distributions that are products of univariate ones."""

from typing import Any

from pyro import distributions as dist
from torch.distributions import Independent

from pyrovae.distributions.discrete import CategoricalVector


def factors(d: Any) -> Any:
    """Return the univariate distributions that d is the product of, or None if it is no product.

    Of batch shape (*d.batch_shape, *d.event_shape).
    """
    if isinstance(d, Independent):
        return factors(d.base_dist)
    if isinstance(d, CategoricalVector):
        return dist.Categorical(logits=d.logits)
    return None if d.event_shape else d


def kind(d: Any) -> str:
    """Return the name of d's class, and of what it wraps."""
    inner = getattr(d, "base_dist", None)
    return type(d).__name__ if inner is None else f"{type(d).__name__} of {kind(inner)}"
