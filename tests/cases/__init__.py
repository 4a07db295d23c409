"""One row a case. A new part is a row in one of these files; the suite fails without one."""

from cases import basic, counts, discrete, flows, levels, mixed, normals, pixels, reals, sphere
from cases.base import CONTEXT, LATENT, NET, ROWS, SHAPE, Case, inputs

FILES = (basic, normals, reals, levels, pixels, counts, mixed, sphere, discrete, flows)
PRIORS = [case for file in FILES for case in getattr(file, "PRIORS", [])]
LIKELIHOODS = [case for file in FILES for case in getattr(file, "LIKELIHOODS", [])]
POSTERIORS = [case for file in FILES for case in getattr(file, "POSTERIORS", [])]
PARTS = [*PRIORS, *LIKELIHOODS, *POSTERIORS]

__all__ = [
    "CONTEXT",
    "LATENT",
    "LIKELIHOODS",
    "NET",
    "PARTS",
    "POSTERIORS",
    "PRIORS",
    "ROWS",
    "SHAPE",
    "Case",
    "inputs",
]
