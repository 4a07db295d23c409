"""Discrete latents, summed over where the objective does that and drawn elsewhere."""

from typing import Any

from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import _PYRO_STACK


def summed(q: TorchDistribution) -> dict[str, Any]:
    """Return `infer` of a guide's site: all values of it at once, if `TraceEnum_ELBO` asks.

    Pyro warns of sites that are marked for this under another objective, and under this one of
    their lack. So that one pair serves all, it is Pyro's handler that is asked, if there is one.

    Args:
        q: the site's distribution; one that cannot be enumerated is drawn.
    """
    asked = any(isinstance(handler, EnumMessenger) for handler in _PYRO_STACK)
    return {"enumerate": "parallel"} if asked and q.has_enumerate_support else {}
