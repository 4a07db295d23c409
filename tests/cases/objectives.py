"""Every objective that ships, as the contract runs it."""

from collections.abc import Callable
from dataclasses import dataclass

import pyro.infer

from pyrovae import objectives as o


@dataclass(frozen=True, eq=False)
class ObjectiveCase:
    """An objective, and what it is.

    Attributes:
        make: makes it.
        sums: is it a sum over data, each by itself? Then minibatches keep its expected value.
        bounds: is it a lower bound of log p(x)?
        at_elbo: makes it with the arguments at which it is the ELBO in expectation; None: never.
        trains_model: does it train the model too?
        discrete: does it serve draws without a gradient?
        parts_only: is it for pairs made of parts alone?
    """

    make: Callable[[], pyro.infer.ELBO]
    sums: bool = True
    bounds: bool = True
    at_elbo: Callable[[], pyro.infer.ELBO] | None = None
    trains_model: bool = True
    discrete: bool = False
    parts_only: bool = False

    @property
    def id(self) -> str:
        return type(self.make()).__name__


OBJECTIVES = [
    ObjectiveCase(o.ManualELBO, at_elbo=o.ManualELBO, parts_only=True),
    ObjectiveCase(o.BetaELBO, at_elbo=lambda: o.BetaELBO(1.0)),
    ObjectiveCase(o.IWAE, at_elbo=lambda: o.IWAE(1), discrete=True),
    ObjectiveCase(o.Renyi, at_elbo=lambda: o.Renyi(4, alpha=1.0), discrete=True),
    ObjectiveCase(o.CIWAE, at_elbo=lambda: o.CIWAE(4, share=1.0), discrete=True),
    ObjectiveCase(o.MIWAE, at_elbo=lambda: o.MIWAE(4, 1), discrete=True),
    ObjectiveCase(o.PIWAE, at_elbo=lambda: o.PIWAE(1, 1)),
    ObjectiveCase(o.DReG, at_elbo=lambda: o.DReG(1)),
    ObjectiveCase(o.StickingTheLanding, at_elbo=o.StickingTheLanding),
    ObjectiveCase(o.ReweightedWakeSleep, discrete=True),
    ObjectiveCase(o.InclusiveKL, bounds=False, trains_model=False, discrete=True),
    ObjectiveCase(
        lambda: o.FreeBits(per="site"), sums=False, at_elbo=lambda: o.FreeBits(0.0, per="site")
    ),
    ObjectiveCase(lambda: o.Capacity(1.0, 0.5), sums=False, at_elbo=lambda: o.Capacity(1.0, 0.0)),
    ObjectiveCase(o.BetaTC, sums=False, at_elbo=lambda: o.BetaTC(1.0)),
    ObjectiveCase(o.InfoVAE, sums=False, bounds=False, at_elbo=lambda: o.InfoVAE(0.0, 1.0)),
    ObjectiveCase(o.MMD, sums=False, bounds=False),
]
