"""Several levels of latents, z_L -> ... -> z_1 -> x."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrovae.distributions import seeded
from pyrovae.nets import evaluating
from pyrovae.nets.naming import by_name
from pyrovae.pairs.base import Pair, check_count, mean_or_draw
from pyrovae.pairs.hierarchical_posteriors import (
    BottomUp,
    Ladder,
    Level,
    LevelsPosterior,
    TopDown,
    rungs,
)
from pyrovae.priors import ConditionalNormal


@dataclass(frozen=True)
class LevelTerms:
    """The terms of the ELBO level by level, in nats: elbo = reconstruction - kl.sum(0).

    Attributes:
        kl: E_q KL(q(z_i|x, z_{i+1}, ...) || p(z_i|z_{i+1}, ...)) a level and datum, (L, N), z_1
            first. Of a guide that draws z_i before what p(z_i|...) depends on, bottom-up, it is
            E_q[log q(z_i|...) - log p(z_i|...)], which is no KL and may be negative.
        kl_standard_error: its standard error, (L, N).
        reconstruction: E_q log p(x|z), (N,).
        elbo: the ELBO, (N,).
        elbo_standard_error: its standard error, (N,).
    """

    kl: Tensor
    kl_standard_error: Tensor
    reconstruction: Tensor
    elbo: Tensor
    elbo_standard_error: Tensor


class HierarchicalVAE(Pair):
    """p(x, z) = p(z_L) p(z_{L-1}|z_L) ... p(x|z_1, ...) with a guide over all levels.

    The sites are "zL", ..., "z1", "x":

        model:  z_L ~ prior(*c),  z_i ~ between[i - 1](z_{i+1}, ..., z_L),
                x ~ likelihood(z_1, z_2, ..., z_L, *c)              within the plate "data"
        guide:  z_i ~ posterior, in its order                       within the plate "data"

    With skip connections p(z_i|...) depends on all levels above and the likelihood on all levels;
    without, each on the next level alone. Of two levels, with skip connections and the guide
    `TopDown`, it is the model of Tomczak & Welling (2018), section 4; with the guide `Ladder`, and
    no skip connections, that of Sonderby et al. (2016), without batch normalisation, under which
    rows would depend on one another. Context goes to the top prior, the likelihood and what the
    posterior has of x.

    Args:
        prior: p(z_L).
        between: p(z_1|z_2, ...), ..., p(z_{L-1}|z_L), z_1's first, such as `ConditionalNormal`.
        likelihood: p(x|z_1, ...), of latent_dim that of z_1, the others its context.
        posterior: the guide's distributions: `TopDown`, `Ladder` or `BottomUp`.
        skip: whether there are skip connections.

    Raises:
        ValueError: parts that disagree on the number of levels, their lengths or spaces, on
            data_shape, or on missing entries.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2, pair="hierarchical-vae", hidden=(8,))
        >>> vae.latent_dims, vae.levels(torch.ones(3, 4)).kl.shape
        ((2, 2), torch.Size([2, 3]))
    """

    posterior: Any

    def __init__(
        self,
        prior: nn.Module,
        between: Sequence[nn.Module],
        likelihood: nn.Module,
        posterior: LevelsPosterior,
        skip: bool = True,
    ) -> None:
        super().__init__()
        levels: list[Any] = [*between, prior]
        dims = tuple(part.latent_dim for part in levels)
        if dims != posterior.latent_dims:
            raise ValueError(
                "expected model and guide of the same levels z_1, ..., z_L; got latent dimensions "
                f"{dims} in the model, {posterior.latent_dims} in the guide"
            )
        for i, part in enumerate(levels[:-1], 1):
            above = sum(dims[i:] if skip else dims[i : i + 1])
            if part.context_dim != above:
                raise ValueError(
                    f"expected p(z_{i}|...) of context_dim {above}, the lengths of "
                    f"{'all levels' if skip else 'the level'} above with skip={skip}; got "
                    f"{part.context_dim}"
                )
        for name in ("latent_dim", "data_shape"):
            wanted = dims[0] if name == "latent_dim" else posterior.data_shape
            if getattr(likelihood, name) != wanted:
                raise ValueError(
                    f"expected a likelihood of {name} {wanted}; got {getattr(likelihood, name)}"
                )
        if getattr(likelihood, "missing", False) and not posterior.missing:
            raise ValueError(
                f"expected a posterior that takes missing entries, as the likelihood "
                f"{type(likelihood).__name__} does: build its parts with missing=True"
            )
        for i, (part, space) in enumerate(zip(levels, posterior.spaces, strict=True), 1):
            if getattr(part, "space", space) != space:
                raise ValueError(
                    f"expected model and guide over one space of z_{i}; got {part.space!r} in the "
                    f"model, {space!r} in the guide: a draw of the one has no density under the "
                    "other"
                )
        self.prior, self.between = prior, nn.ModuleList(between)
        self.likelihood, self.posterior, self.skip = likelihood, posterior, skip

    @classmethod
    def of_names(
        cls,
        parts: Any,
        levels: int = 2,
        latent_dims: Sequence[int] | None = None,
        kind: str = "two-level",
        skip: bool = True,
        width: int = 128,
    ) -> "HierarchicalVAE":
        """Make one of parts by name; p(z_i|...) between levels is a `ConditionalNormal`.

        With the nets "gated-mlp" of (300, 300) and 40 latent dimensions a level it is the network
        of Tomczak & Welling (2018), but for these: theirs takes x and z_2, or z_1 and z_2, through
        a layer of 300 each before a joint one of 300, where here they are side by side from the
        first layer on (one of 600 contains both of theirs); and log-variances are not clipped to
        [-6, 2].

        Args:
            parts: see `Pair.of_names`.
            levels: how many there are, L.
            latent_dims: lengths of z_1, ..., z_L; None for the latent_dim of `build` each.
            kind: the guide, "two-level" (`TopDown`), "ladder" or "bottom-up".
            skip: whether there are skip connections.
            width: length of each d_i of a ladder's bottom-up pass.

        Raises:
            ValueError: an unknown kind, numbers out of their range, or parts that do not go
                together.
        """
        make = by_name("kind", kind, KINDS)
        if levels < 1 or (make is _top_down and levels != 2):
            raise ValueError(
                f"expected levels to be 2 of kind two-level, and 1 or more of ladder and "
                f"bottom-up; got levels={levels}, kind={kind}"
            )
        dims = (parts.latent_dim,) * levels if latent_dims is None else tuple(latent_dims)
        if len(dims) != levels or min(dims) < 1:
            raise ValueError(
                f"expected latent_dims to hold a positive whole number for each of {levels} "
                f"levels, z_1 first; got {list(dims)}: give levels={len(dims)}, or others"
            )
        posterior = make(parts, dims, width)
        prior = parts.prior(latent_dim=dims[-1], posterior=posterior.top)
        between = [
            ConditionalNormal(d, sum(dims[i:] if skip else dims[i : i + 1]), parts.decoder)
            for i, d in enumerate(dims[:-1], 1)
        ]
        likelihood = parts.likelihood(latent_dim=dims[0], context_dim=sum(dims[1:]) if skip else 0)
        return cls(prior, between, likelihood, posterior, skip)

    @property
    def latent_dims(self) -> tuple[int, ...]:
        """Lengths of z_1, ..., z_L."""
        dims: tuple[int, ...] = self.posterior.latent_dims
        return dims

    def model(self, x: Tensor, *c: Tensor) -> None:
        """Pyro model p(z_L|c) ... p(z_1|...) p(x|z_1, ..., c), sites "zL", ..., "z1" and "x".

        Args:
            x: data (N, *data_shape).
            *c: context, N rows each.
        """
        self.register()
        z: dict[int, Tensor] = {}
        with pyro.plate("data", len(x)):
            for i in self._down():
                z[i] = pyro.sample(f"z{i}", self._p(c, i, z))
            pyro.sample("x", self._p_x(z, c), obs=x)

    def guide(self, x: Tensor, *c: Tensor) -> None:
        """Pyro guide q(z_1, ..., z_L|x, c), the same sites, in the order of the posterior.

        Args:
            x: data (N, *data_shape).
            *c: context, N rows each.
        """
        self.register()
        z: dict[int, Tensor] = {}
        with pyro.plate("data", len(x)):
            q = self._q(x, c)
            for i in self.posterior.order:
                z[i] = pyro.sample(f"z{i}", q(i, z))

    def decode(self, z: Tensor, *c: Tensor) -> TorchDistribution:
        """Return p(x|z_1, ..., c), batch shape (N,), event shape data_shape.

        Args:
            z: all levels side by side in the model's order, z_L first, (N, sum of latent_dims).
            *c: context, N rows each.

        Raises:
            ValueError: z is of another shape.
        """
        dims = self.latent_dims[::-1]
        if z.dim() != 2 or z.shape[1] != sum(dims):
            raise ValueError(
                f"expected z of shape (N, {' + '.join(map(str, dims))}), the levels side by side, "
                f"z_{len(dims)} first; got {tuple(z.shape)}"
            )
        pieces = self._cast(z).split(dims, -1)
        return self._p_x(dict(zip(self._down(), pieces, strict=True)), c)

    def sample(self, n: int, *c: Tensor, seed: int | None = 0, mean: bool = False) -> Tensor:
        """Draw n data from the generative model, level by level. Arguments: see `Pair.sample`.

        Raises:
            ValueError: n is negative or no whole number.
        """
        check_count(n)
        z: dict[int, Tensor] = {}
        with torch.no_grad(), seeded(seed), evaluating(self):
            for i in self._down():
                p = self._p(c, i, z)
                z[i] = p.sample(() if p.batch_shape else (n,))
            x = self._p_x(z, c)
            return mean_or_draw(x) if mean else x.sample()

    def reconstruct(self, x: Tensor, *c: Tensor, seed: int | None = 0) -> Tensor:
        """Return E[x'|z, c] for one z ~ q(z|x, c) a datum. Arguments: see `Pair.reconstruct`."""
        with torch.no_grad(), seeded(seed), evaluating(self):
            z = {i: draw for i, _, draw, _ in self._drawn(self._cast(x), c)}
            return mean_or_draw(self._p_x(z, c))

    def levels(
        self, x: Tensor, *c: Tensor, num_particles: int = 100, seed: int | None = 0
    ) -> LevelTerms:
        """Return what each level costs a datum: E_q KL(q(z_i|x, z_{>i}) || p(z_i|z_{>i})).

        The KL of a level given those above is in closed form where one is registered, and
        log q - log p at the draw otherwise; the levels above are drawn.

        Args:
            x: data (N, *data_shape).
            *c: context, N rows each.
            num_particles: draws of all levels a datum, 2 or more.
            seed: of the draws; None for the global generator.

        Returns:
            LevelTerms, whose ELBO is the reconstruction less the sum over the levels.

        Raises:
            ValueError: num_particles is no whole number of 2 or more.
        """
        if not isinstance(num_particles, int) or num_particles < 2:
            raise ValueError(
                "expected num_particles to be a whole number of 2 or more, for standard errors; "
                f"got {num_particles!r}"
            )
        with torch.no_grad(), seeded(seed), evaluating(self):
            x = self._cast(x)
            terms = torch.stack([self._terms(x, c) for _ in range(num_particles)])
        kl, likelihood = terms[:, :-1], terms[:, -1]
        elbo = likelihood - kl.sum(1)
        root = math.sqrt(num_particles)
        return LevelTerms(
            kl.mean(0), kl.std(0) / root, likelihood.mean(0), elbo.mean(0), elbo.std(0) / root
        )

    def _terms(self, x: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        """Return each level's KL at one draw a datum, and then log p(x|z): (L + 1, N)."""
        found = list(self._drawn(x, c))
        z = {i: draw for i, _, draw, _ in found}
        kl = {}
        for i, q, draw, above in found:
            p = self._p(c, i, z)
            closed = _closed_kl(q, p) if above else None
            kl[i] = q.log_prob(draw) - p.log_prob(draw) if closed is None else closed
        return torch.stack([*(kl[i] for i in sorted(kl)), self._p_x(z, c).log_prob(x)])

    def _drawn(
        self, x: Tensor, c: tuple[Tensor, ...]
    ) -> Iterator[tuple[int, TorchDistribution, Tensor, bool]]:
        """Yield, in the guide's order, a level, its q, a draw, and: were those above drawn?"""
        q = self._q(x, c)
        z: dict[int, Tensor] = {}
        for i in self.posterior.order:
            above = all(j in z for j in range(i + 1, len(self.latent_dims) + 1))
            q_i = q(i, z)
            z[i] = q_i.sample()
            yield i, q_i, z[i], above

    def _down(self) -> range:
        return range(len(self.latent_dims), 0, -1)

    def _p(self, c: tuple[Tensor, ...], i: int, z: Mapping[int, Tensor]) -> TorchDistribution:
        """Return p(z_i|z_{i+1}, ...)."""
        top = i == len(self.latent_dims)
        found: TorchDistribution = (
            self.prior(*c) if top else self.between[i - 1](*self._above(i, z))
        )
        return found

    def _p_x(self, z: Mapping[int, Tensor], c: tuple[Tensor, ...]) -> TorchDistribution:
        found: TorchDistribution = self.likelihood(*self._above(0, z), *self._shared(c))
        return found

    def _q(self, x: Tensor, c: tuple[Tensor, ...]) -> Level:
        found: Level = self.posterior(x, partial(self._p, c), *self._shared(c))
        return found

    def _above(self, i: int, z: Mapping[int, Tensor]) -> list[Tensor]:
        """Return the levels that z_i depends on (those of x are above 0), the nearest first."""
        last = len(self.latent_dims) if self.skip else i + 1
        return [z[j] for j in range(i + 1, last + 1)]

    def _shared(self, c: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the context without the index that is the top prior's alone."""
        return c[1:] if getattr(self.prior, "indexed", False) else c


def _closed_kl(q: TorchDistribution, p: TorchDistribution) -> Tensor | None:
    """Return KL(q || p) where it is registered."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def _top_down(parts: Any, dims: tuple[int, ...], width: int) -> TopDown:
    return TopDown(
        [parts.posterior(latent_dim=d, context_dim=sum(dims[i:])) for i, d in enumerate(dims, 1)]
    )


def _ladder(parts: Any, dims: tuple[int, ...], width: int) -> Ladder:
    net = rungs(parts.encoder, dims, width)
    return Ladder(parts.posterior(latent_dim=sum(dims), net=net), dims)


def _bottom_up(parts: Any, dims: tuple[int, ...], width: int) -> BottomUp:
    first = parts.posterior(latent_dim=dims[0])
    rest = [
        ConditionalNormal(d, below, parts.encoder) for below, d in zip(dims, dims[1:], strict=False)
    ]
    return BottomUp(first, rest)


KINDS: dict[str, Callable[[Any, tuple[int, ...], int], LevelsPosterior]] = {
    "two-level": _top_down, "ladder": _ladder, "bottom-up": _bottom_up,
}  # fmt: skip
