"""A variational family for each datum on its own, started from what the guide says of it."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrovae.distributions import seeded
from pyrovae.importance import guide_distributions, inspect, log_joint, log_terms
from pyrovae.pairs.refinement import Family

MAPS = 8  # planar maps of the flow family


class Each:
    """q_n(z), one a datum: log p(x, z) - log q(z) at its draws, as a function of `parameters`.

    Attributes:
        n: how many data.
        draws: a datum, of which a step's gradient is made.
        unit: of the parameters, a small part of which is a fair step.
        parameters: leaf tensors, a row a datum; at their start q_n is the guide's q(z|x_n).
    """

    n: int
    draws = 16
    unit = 1.0
    parameters: list[Tensor]

    def log_weights(self, k: int, seed: int) -> Tensor:
        """Return log w (k, N) at k draws a datum, differentiable in the parameters."""
        raise NotImplementedError


class Normals(Each):
    """Normals, diagonal or full-rank, z = m + L e; `bend` puts planar maps after them.

    Args:
        model: Pyro model of (x, *c).
        q: the guide's distribution of the latent site, batch shape (N,).
        name: of the site.
        x: data (N, ...).
        c: context, N rows each.
        full: of full rank, whatever the guide's is.
        modules: those that the model holds in its closure.
    """

    def __init__(
        self,
        model: Callable,
        q: Any,
        name: str,
        x: Tensor,
        c: Sequence[Tensor],
        *,
        full: bool,
        modules: Sequence[nn.Module],
    ) -> None:
        self.model, self.name, self.x, self.c, self.modules = model, name, x, c, modules
        self.family = Family(name, q)
        if full:
            self.family.widen()
        self.n = len(x)
        move = self.family.loc.new_zeros(self.n, self.family.num_moves)
        self.parameters = [move.requires_grad_()]

    def bend(self, maps: int = MAPS) -> None:
        """Add maps of the draws, z = f_M(... f_1(m + L e)), at first the identity.

        f_i(u) = u + a_i tanh(w_i'u + b_i), Rezende & Mohamed (2015), eq. 10.
        """
        loc = self.family.loc
        self.draws = 64  # the score of q stays in its gradient, and makes it noisy
        with seeded(0):
            w = torch.randn(self.n, maps, self.family.dim, dtype=loc.dtype, device=loc.device)
        w = w / self.family.dim**0.5
        self.parameters += [t.requires_grad_() for t in (torch.zeros_like(w), w, w[..., 0].clone())]

    def log_weights(self, k: int, seed: int) -> Tensor:
        """Return log w (k, N); of normals the score of q, which is 0 on average, is left out.

        Without it the gradient has no variance where q is the posterior: Roeder et al. (2017).
        """
        family = self.family
        move, *maps = self.parameters
        with seeded(seed):
            noise = torch.randn(
                k, self.n, family.dim, dtype=family.loc.dtype, device=family.loc.device
            )
        u = family.points(move, noise)
        q = family.moved(move if maps else move.detach())
        log_q = q.log_prob(u.reshape(k, self.n, *family.shape))
        if maps:
            u, log_det = self._mapped(u, *maps)
            log_q = log_q - log_det
        z = {self.name: u.reshape(k, self.n, *family.shape)}
        return log_joint(self.model, z, self.x, *self.c, modules=self.modules) - log_q

    def _mapped(self, u: Tensor, a: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps' image of u (k, N, d), in units of the guide, and their log |det|."""
        v, log_det = self.family.standardised(u), u.new_zeros(u.shape[:2])
        for i in range(a.shape[1]):
            inner = (w[:, i] * a[:, i]).sum(-1, keepdim=True)
            # w'a >= -1, so that the map can be inverted (their appendix A.1); a = 0 stays 0
            shift = softplus(inner + 0.5413) - 1 - inner
            direction = a[:, i] + shift * w[:, i] / w[:, i].square().sum(-1, keepdim=True)
            bend = torch.tanh((w[:, i] * v).sum(-1) + b[:, i])
            slope = (1 - bend.square()) * (w[:, i] * direction).sum(-1)
            v = v + direction * bend.unsqueeze(-1)
            log_det = log_det + (1 + slope).clamp(min=1e-12).log()
        return self.family.destandardised(v), log_det


class Copied(Each):
    """The guide itself, a copy of it trained on one datum."""

    n = 1
    unit = 0.02  # weights of a network, where Normals' parameters are standard deviations

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        x: Tensor,
        c: Sequence[Tensor],
        modules: Sequence[nn.Module],
    ) -> None:
        owner = guide if isinstance(guide, nn.Module) else getattr(guide, "__self__", None)
        if not isinstance(owner, nn.Module):
            raise ValueError(
                "expected a normal guide of one site, or a guide that is a module or a method of "
                "one, of which a copy can be trained on each datum; got "
                f"{getattr(guide, '__qualname__', guide)!r}"
            )
        mine = copy.deepcopy(owner)
        self.guide = mine if owner is guide else getattr(mine, guide.__name__)
        self.model, self.x, self.c, self.modules = model, x, c, [*modules, mine]
        self.parameters = [p for p in mine.parameters() if p.requires_grad]

    def log_weights(self, k: int, seed: int) -> Tensor:
        """Return log w (k, 1)."""
        return log_terms(
            self.model, self.guide, self.x, *self.c, num_particles=k, seed=seed,
            modules=self.modules,
        ).log_weight  # fmt: skip


def families(
    model: Callable,
    guide: Callable,
    x: Tensor,
    c: Sequence[Tensor],
    family: str,
    modules: Sequence[nn.Module],
) -> Iterator[tuple[slice, Each]]:
    """Yield families that cover the rows of x: all rows at once, or one by one.

    Raises:
        ValueError: latents without `rsample`, or a guide that has no such family.
    """
    latents = inspect(model, guide, x, *c, modules=modules).latents
    for site in latents:
        if not site.reparameterised:
            raise ValueError(
                f"site {site.name!r}: expected a guide with `rsample`, to follow its gradient; "
                "got one without"
            )
    qs: Mapping[str, Any] = guide_distributions(guide, x, *c, modules=modules)
    ((name, q), *others) = qs.items()
    if not others and Family.is_normal(q):
        yield slice(0, len(x)), Normals(model, q, name, x, c, full=family != "own", modules=modules)
        return
    if family != "own":
        raise ValueError(
            f"expected a normal guide of one site, to start the family {family!r} from; got "
            f"{', '.join(f'{n}: {type(d).__name__}' for n, d in qs.items())}: take family='own'"
        )
    for i in range(len(x)):
        rows = slice(i, i + 1)
        yield rows, Copied(model, guide, x[rows], [t[rows] for t in c], modules)
