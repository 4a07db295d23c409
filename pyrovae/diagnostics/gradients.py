"""How much of an objective's gradient is signal, and how much the noise of its draws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn

from pyrovae.diagnostics.arrays import check_whole
from pyrovae.distributions import mixed, seeded
from pyrovae.importance import batched, find_modules
from pyrovae.nets import evaluating


@dataclass(frozen=True)
class GradientNoise:
    """The gradient of an objective at one batch, over its draws, by parameter.

    Attributes:
        mean: E g, for each parameter by its name in Pyro's store, in the parameter's shape.
        standard_deviation: of g, the same.
        num_draws: gradients that both were estimated from.
    """

    mean: dict[str, Tensor]
    standard_deviation: dict[str, Tensor]
    num_draws: int

    def signal_to_noise(self, *parts: str) -> float:
        """Return the mean of |E g| / sd(g) over the numbers of parameters that vary at all.

        With n draws the estimate of |E g| / sd(g) is about sqrt(2 / (pi n)) where E g = 0.

        Args:
            *parts: of the names of the parameters that count, such as "posterior"; none for all.

        Raises:
            ValueError: no parameter of such a name has a gradient that varies.
        """
        chosen = [n for n in self.mean if not parts or any(part in n for part in parts)]
        mean = torch.cat([self.mean[n].flatten() for n in chosen] or [torch.zeros(0)])
        sd = torch.cat([self.standard_deviation[n].flatten() for n in chosen] or [torch.zeros(0)])
        varies = sd > 0
        if not bool(varies.any()):
            raise ValueError(
                f"expected parameters whose gradient varies among {', '.join(self.mean)}; got "
                f"{', '.join(chosen) or f'none of {parts}'}"
            )
        return float((mean[varies].abs() / sd[varies]).mean())


def gradient_noise(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    objective: ELBO,
    num_draws: int = 100,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
) -> GradientNoise:
    """Return mean and standard deviation of an objective's gradient, over its draws of z.

    Rainforth et al. (2018), eq. 7: the signal-to-noise ratio |E g| / sd(g) of the guide's gradient
    falls as 1/sqrt(K) for IWAE, whose bound is the tighter for it; DReG's rises.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: the batch (N, ...).
        *c: context, N rows each.
        objective: a Pyro ELBO.
        num_draws: gradients, >= 2.
        seed: of the draws.
        modules: those that the functions hold in their closures.

    Returns:
        GradientNoise. The parameters' own `.grad` is left as it was.

    Raises:
        ValueError: fewer than two draws, bad data, or a pair without parameters.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> x = torch.ones(3, 4)
        >>> found = gradient_noise(vae.model, vae.guide, x, objective=Trace_ELBO(), num_draws=9)
        >>> found.signal_to_noise("posterior") > 0
        True
    """
    check_whole("num_draws", num_draws, 2)
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    total: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    store = pyro.get_param_store()
    with evaluating(*found), seeded(seed):
        with poutine.trace(param_only=True) as capture, torch.no_grad():
            objective.loss(model, guide, x, *c)
        leaves = {name: store[name].unconstrained() for name in capture.trace.nodes}
        if not leaves:
            raise ValueError("expected a pair with parameters; got none")
        kept = {name: leaf.grad for name, leaf in leaves.items()}
        for draw in range(num_draws):
            for leaf in leaves.values():
                leaf.grad = None
            with seeded(mixed(seed, draw)):
                objective.loss_and_grads(model, guide, x, *c)
            for name, leaf in leaves.items():
                g = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                g = g.double()
                delta = g - total.get(name, torch.zeros_like(g))  # Welford's running moments
                total[name] = total.get(name, torch.zeros_like(g)) + delta / (draw + 1)
                squares[name] = squares.get(name, torch.zeros_like(g)) + delta * (g - total[name])
        for name, leaf in leaves.items():
            leaf.grad = kept[name]
    deviation = {name: (s / (num_draws - 1)).sqrt() for name, s in squares.items()}
    return GradientNoise(total, deviation, num_draws)
