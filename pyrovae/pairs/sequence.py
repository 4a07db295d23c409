"""Series: a chain of latents z_1 -> z_2 -> ..., each of which says what is seen at its step."""

import contextlib
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import seeded
from pyrovae.nets import evaluating, mlp
from pyrovae.pairs.base import Pair, check_count, mean_or_draw
from pyrovae.pairs.sequence_parts import (
    Combiner,
    FirstStep,
    GatedTransition,
    LinearTransition,
    RecurrentEncoder,
    StepwiseLikelihood,
    before_end,
)


class SequenceVAE(Pair):
    """p(x, z) = p(z_1) prod_t p(z_t|z_{t-1}) p(x_t|z_t): a deep Markov model of series (N, T, ...).

        model:  z_1 ~ prior(),  z_t ~ transition(z_{t-1}),  x_t ~ likelihood(z_t)
        guide:  h = encoder(x),  z_t ~ posterior(z_{t-1}, h_t),  z_0 = 0

    within the plate "data", of series; the sites are "z_1", "z_2", ..., "x". Krishnan, Shalit &
    Sontag (2017): the true posterior of z_t depends on z_{t-1} and x_t, ..., x_T alone, so an
    encoder that runs from the end back loses nothing by its structure.

    Series may differ in length: they are padded to T steps, and the context is their lengths, whole
    numbers (N,). Latents and data beyond the end are masked, so what stands there has no influence
    on any density.

    Args:
        prior: p(z_1), over all of R^d, without context.
        transition: p(z_t|z_{t-1}), a module z (N, d) -> distribution, such as `GatedTransition`.
        likelihood: p(x_t|z_t), of data_shape that of one step.
        encoder: a module (x, *lengths) -> h (N, T, ...) with an attribute `data_shape`, (T, ...),
            such as `RecurrentEncoder`.
        posterior: q(z_t|z_{t-1}, x), a module (z (N, d), h_t (N, ...)) -> distribution, such as
            `Combiner`.

    Raises:
        ValueError: parts that disagree on latent_dim or data_shape, or a prior with context or
            over another space; when called, lengths that are no whole numbers from 1 to T.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(6, 3), latent_dim=2, pair="sequence-vae", likelihood="normal")
        >>> vae.sample(4, torch.tensor([6, 6, 2, 3])).shape
        torch.Size([4, 6, 3])
    """

    def __init__(
        self,
        prior: nn.Module,
        transition: nn.Module,
        likelihood: nn.Module,
        encoder: nn.Module,
        posterior: nn.Module,
    ) -> None:
        super().__init__()
        known: dict[str, Any] = {
            "prior": prior, "transition": transition, "likelihood": likelihood,
            "posterior": posterior,
        }  # fmt: skip
        dims = {name: part.latent_dim for name, part in known.items()}
        if len(set(dims.values())) > 1:
            raise ValueError(f"expected parts of one latent_dim; got {dims}")
        part: Any = encoder
        steps, *step = part.data_shape
        if tuple(known["likelihood"].data_shape) != tuple(step):
            raise ValueError(
                f"expected a likelihood of one step of the encoder's {part.data_shape}, of "
                f"data_shape {tuple(step)}; got {tuple(known['likelihood'].data_shape)}"
            )
        if getattr(likelihood, "missing", False) and not getattr(encoder, "missing", True):
            raise ValueError(
                "expected an encoder that takes missing entries, as the likelihood "
                f"{type(likelihood).__name__} does; build it with missing=True"
            )
        if getattr(prior, "context_dim", 0) or getattr(prior, "indexed", False):
            raise ValueError(
                f"expected a prior p(z_1) that takes no context; got {type(prior).__name__}: the "
                "context of series is their lengths"
            )
        spaces = {name: getattr(known[name], "space", "real") for name in ("prior", "posterior")}
        if set(spaces.values()) != {"real"}:
            raise ValueError(f"expected latents over all of R^d, as the transition's; got {spaces}")
        self.prior, self.transition = prior, transition
        self.likelihood = StepwiseLikelihood(likelihood, steps)
        self.encoder, self.posterior = encoder, posterior

    @classmethod
    def of_names(
        cls, parts: Any, linear: bool = False, bidirectional: bool = False, width: int = 128
    ) -> "SequenceVAE":
        """Make one of parts by name; data_shape is (T, ...), the first dimension being time.

        The nets are those of one step, from x_t to the encoder's GRU and from z_t to x_t. The
        posterior is of the family named, linear in what `Combiner` makes of z_{t-1} and h_t.

        Args:
            parts: see `Pair.of_names`.
            linear: take a `LinearTransition` in place of a `GatedTransition`.
            bidirectional: let the encoder see the past too.
            width: of the encoder's GRU, and of the hidden layers of a gated transition.
        """
        likelihood = parts.likelihood(data_shape=parts.data_shape[1:])
        posterior = parts.posterior(data_shape=(width,), net=mlp(hidden=()), missing=False)
        # the option is meant for x, which not the posterior but the encoder is given
        scale, posterior.input_scale = posterior.input_scale, 1.0
        encoder = RecurrentEncoder(
            parts.data_shape, width, parts.encoder, bidirectional, scale,
            missing=getattr(likelihood, "missing", False),
        )  # fmt: skip
        combiner = Combiner(posterior, encoder.directions)
        prior = parts.prior(posterior=FirstStep(encoder, combiner))
        d = parts.latent_dim
        transition = LinearTransition(d) if linear else GatedTransition(d, width)
        return cls(prior, transition, likelihood, encoder, combiner)

    def model(self, x: Tensor, *c: Tensor) -> None:
        """Pyro model p(z_1) p(z_2|z_1) ... p(x|z_1, ..., z_T), sites "z_1", ..., "z_T" and "x".

        Args:
            x: series (N, T, ...).
            *c: lengths (N,), or nothing where all have T steps.
        """
        self.register()
        z: list[Tensor] = []
        with pyro.plate("data", len(x)):
            for t, scored in enumerate(self._scored(c)):
                with scored:
                    p = self.transition(z[-1]) if t else self.prior()
                    z.append(pyro.sample(f"z_{t + 1}", p))
            pyro.sample("x", self.likelihood(torch.cat(z, -1), *c), obs=x)

    def guide(self, x: Tensor, *c: Tensor) -> None:
        """Pyro guide q(z_1|x) q(z_2|z_1, x) ..., the same sites.

        Args:
            x: series (N, T, ...).
            *c: lengths (N,), or nothing where all have T steps.
        """
        self.register()
        scores = self._scored(c)
        h, z = self.encoder(x, *c), self._origin(x)
        with pyro.plate("data", len(x)):
            for t, scored in enumerate(scores):
                with scored:
                    z = pyro.sample(f"z_{t + 1}", self.posterior(z, h[:, t]))

    def decode(self, z: Tensor, *c: Tensor) -> TorchDistribution:
        """Return p(x|z_1, ..., z_T), batch shape z.shape[:-1], event shape (T, ...).

        Args:
            z: z_1, ..., z_T side by side, (..., T latent_dim).
            *c: lengths (N,), or nothing where all have T steps.
        """
        found: TorchDistribution = self.likelihood(self._cast(z), *c)
        return found

    def sample(self, n: int, *c: Tensor, seed: int | None = 0, mean: bool = False) -> Tensor:
        """Draw n series from the generative model; padding is 0. Arguments: see `Pair.sample`.

        Raises:
            ValueError: n is negative or no whole number, or lengths that are not n, or none from
                1 to T.
        """
        check_count(n)
        if any(len(t) != n for t in c):
            raise ValueError(f"expected n = {n} lengths; got {[len(t) for t in c]}")
        self._scored(c)
        with torch.no_grad(), seeded(seed), evaluating(self):
            z = [self.prior().sample((n,))]
            while len(z) < self.likelihood.steps:
                z.append(self.transition(z[-1]).sample())
            x = self.decode(torch.cat(z, -1), *c)
            return mean_or_draw(x) if mean else x.sample()

    def reconstruct(self, x: Tensor, *c: Tensor, seed: int | None = 0) -> Tensor:
        """Return E[x'|z] for one z ~ q(z|x) a series; padding is 0. See `Pair.reconstruct`."""
        with torch.no_grad(), seeded(seed), evaluating(self):
            z = self._states(self._cast(x), c)
            return mean_or_draw(self.decode(z.flatten(1), *c))

    def forecast(
        self, x: Tensor, *c: Tensor, steps: int, seed: int | None = 0, mean: bool = False
    ) -> Tensor:
        """Draw what comes after the end of each series, x_{T+1}, ..., (N, steps, ...).

        z ~ q(z|x) up to the end, then transition and likelihood from there.

        Args:
            x: series (N, T, ...).
            *c: lengths (N,), or nothing where all have T steps.
            steps: how many.
            seed: of the draws; None for the global generator.
            mean: return E[x_t | z_t] for the drawn z_t, where that is known.

        Raises:
            ValueError: steps that is no positive whole number.
        """
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"expected steps to be a positive whole number; got {steps!r}")
        with torch.no_grad(), seeded(seed), evaluating(self):
            states = self._states(self._cast(x), c)
            last = c[0].long() - 1 if c else torch.full((len(x),), states.shape[1] - 1)
            z, found = states[torch.arange(len(x)), last], []
            for _ in range(steps):
                z = self.transition(z).sample()
                x_t = self.likelihood.likelihood(z)
                found.append(mean_or_draw(x_t) if mean else x_t.sample())
            return torch.stack(found, 1)

    def _states(self, x: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        """Draw z_1, ..., z_T from the guide, (N, T, latent_dim)."""
        self._scored(c)
        h, z, found = self.encoder(x, *c), self._origin(x), []
        for t in range(self.likelihood.steps):
            z = self.posterior(z, h[:, t]).sample()
            found.append(z)
        return torch.stack(found, 1)

    def _origin(self, x: Tensor) -> Tensor:
        """Return z_0 = 0, which the guide has before the first step."""
        return x.new_zeros(len(x), self.prior.latent_dim)

    def _scored(self, c: tuple[Tensor, ...]) -> list[contextlib.AbstractContextManager[Any]]:
        """Return, step by step, a context that masks those series which have ended.

        Raises:
            ValueError: a context of more than lengths, or lengths that `before_end` refuses.
        """
        if len(c) > 1:
            raise ValueError(
                "expected no context but the lengths of the series, (N,); got shapes "
                f"{[tuple(t.shape) for t in c]}"
            )
        steps = self.likelihood.steps
        if not c:  # no mask at all, so that exact evidence is to be had
            return [contextlib.nullcontext()] * steps
        return [poutine.mask(mask=inside) for inside in before_end(c[0], steps).unbind(1)]
