"""The exact evidence of a pair, by whichever method it allows."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pyrovae.evidence import closed, discrete, lattice
from pyrovae.evidence.latents import Problem, problem
from pyrovae.evidence.results import ExactEvidence


def solve(work: Problem) -> ExactEvidence:
    """Enumerate discrete latents; else the closed form if there is one; else quadrature."""
    if work.discrete:
        return discrete.solve(work)
    return closed.solve(work) or lattice.solve(work)


def exact(
    model: Callable, guide: Callable, x: Tensor, *c: Tensor, modules: Sequence[nn.Module] = ()
) -> ExactEvidence:
    """Return log p(x) exactly: by enumeration, in closed form, or by quadrature.

    Discrete latents are enumerated; where log p(x, z) is a quadratic in z the closed form is taken;
    anything else of at most 3 latent dimensions is integrated on a lattice.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c); only its sites matter.
        x: data (N, ...).
        *c: context, N rows each.
        modules: those that the functions hold in their closures.

    Raises:
        ValueError: none of the three serves, or the pair is not valid.

    Example:
        >>> import torch
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=1, net_options={"activation": "tanh"})
        >>> found = exact(vae.model, vae.guide, torch.ones(3, 4))
        >>> found.method, bool((found.error < 1e-9).all())
        ('quadrature', True)
    """
    with problem(model, guide, x, c, modules) as work:
        return solve(work)
