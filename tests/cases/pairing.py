"""Pairs made of the parts of three cases."""

from dataclasses import replace
from functools import cache

from cases.base import Case
from pyrovae import VAE


def shipped(prior: Case, posterior: Case, likelihood: Case) -> VAE:
    """A VAE of the parts of three cases; a prior that asks for the posterior is handed it.

    Raises:
        ValueError: parts that do not go together.
    """
    p_x = likelihood.build()
    missing = {"missing": True} if getattr(p_x, "missing", False) else {}
    q = replace(posterior, options=posterior.options | missing).build(shape=p_x.data_shape)
    own = {"posterior": lambda: q} if "posterior" in prior.options else {}
    if "exemplars" in prior.options:
        own["exemplars"] = lambda: prior.options["exemplars"]().reshape(-1, *p_x.data_shape)
    return VAE(replace(prior, options=prior.options | own).build(), p_x, q)


@cache
def compatible(priors: tuple[Case, ...], posteriors: tuple[Case, ...], likelihood: Case):
    """Every (prior, posterior) that goes together without context.

    Priors that differ by the posterior they were given alone count once.
    """
    seen, found = set(), []
    for p in priors:
        if p.options.get("context_dim"):
            continue
        key = p.cls, tuple(sorted((k, str(v)) for k, v in p.options.items() if k != "posterior"))
        if "posterior" in p.options and key in seen:
            continue
        seen.add(key)
        for q in posteriors:
            try:
                shipped(p, q, likelihood)
            except ValueError:  # test_catalogue says which, and why
                continue
            found.append((p, q))
    return found
