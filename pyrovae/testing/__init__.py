"""Checks for pairs and parts of your own: is the ELBO right, does a part obey the laws?"""

from pyrovae.testing.pairs import check_pair
from pyrovae.testing.parts import check_part
from pyrovae.testing.report import Failure, Report, Row

__all__ = ["Failure", "Report", "Row", "check_pair", "check_part"]
