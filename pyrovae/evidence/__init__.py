"""Estimators of the evidence log p(x), one idea a file."""

from pyrovae.evidence.annealed import ais
from pyrovae.evidence.choice import exact
from pyrovae.evidence.closed import linear_gaussian
from pyrovae.evidence.discrete import enumeration
from pyrovae.evidence.duality import (
    Identity,
    IdentityRecorder,
    elbo_of_evidence,
    elbo_of_joint,
    elbo_of_reconstruction,
    identity,
)
from pyrovae.evidence.importance_weighted import Summary, iwae, summarise
from pyrovae.evidence.imputation import Imputation, impute
from pyrovae.evidence.inference import Gaps, gaps, generalisation
from pyrovae.evidence.lattice import quadrature
from pyrovae.evidence.results import Evidence, ExactEvidence
from pyrovae.evidence.sampling import PosteriorDraws, nuts
from pyrovae.evidence.two_sided import Bidirectional, bidirectional

__all__ = [
    "Bidirectional",
    "Evidence",
    "ExactEvidence",
    "Gaps",
    "Identity",
    "IdentityRecorder",
    "Imputation",
    "PosteriorDraws",
    "Summary",
    "ais",
    "bidirectional",
    "elbo_of_evidence",
    "elbo_of_joint",
    "elbo_of_reconstruction",
    "enumeration",
    "exact",
    "gaps",
    "generalisation",
    "identity",
    "impute",
    "iwae",
    "linear_gaussian",
    "nuts",
    "quadrature",
    "summarise",
]
