"""beta: one factor of the latents' log-densities, in model and guide alike."""

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor


class _ScaleLatents(Messenger):
    def __init__(self, beta: float | Tensor) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.beta


def with_beta(function: Callable, beta: float | Tensor) -> Callable:
    """Return a model or guide whose latent sites' log-densities are multiplied by beta.

    Wrapped around model *and* guide this makes any ELBO a beta-ELBO, sampled or analytic alike;
    around one of them only, the two would differ.

    Args:
        function: the model or the guide.
        beta: the factor, >= 0, a number or a tensor ().
    """
    if not isinstance(beta, Tensor) and beta == 1.0:
        return function

    def scaled(*args: Any, **kwargs: Any) -> Any:
        with _ScaleLatents(beta):
            return function(*args, **kwargs)

    return scaled
