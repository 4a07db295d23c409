"""The variational autoencoder: a Pyro pair made of a prior, a likelihood and a posterior."""

from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import seeded
from pyrovae.nets import evaluating
from pyrovae.pairs.base import Pair, check_count, mean_or_draw


class VAE(Pair):
    """p(z) p(x|z) with the guide q(z|x): `vae.model` and `vae.guide` are a Pyro pair.

        model(x, *c):  z ~ prior(*c),  x ~ likelihood(z, *c)        within the plate "data"
        guide(x, *c):  z ~ posterior(x, *c)                         within the plate "data"

    Kingma & Welling (2014). Every instance, copies too, registers its parameters with Pyro under
    names of its own, so any number of them train in one process.

    Args:
        prior: p(z), a module whose call on `*c` returns a distribution of event shape (d,).
        likelihood: p(x|z), a module whose call on (z, *c) returns one of event shape data_shape.
        posterior: q(z|x), a module whose call on (x, *c) returns one of event shape (d,).

    Raises:
        ValueError: the parts disagree on latent_dim or data_shape, or the prior and the posterior
            on where z lives (on the sphere, say, and on all of R^d).

    Example:
        >>> from pyrovae import likelihoods, posteriors, priors
        >>> vae = VAE(
        ...     prior=priors.StandardNormal(latent_dim=2),
        ...     likelihood=likelihoods.Bernoulli(latent_dim=2, data_shape=(8, 8)),
        ...     posterior=posteriors.MeanFieldNormal(data_shape=(8, 8), latent_dim=2),
        ... )
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> loss = svi.step(torch.ones(5, 8, 8))
    """

    posterior: Any  # a module of any class, with the attributes of `posteriors.Posterior`

    def __init__(self, prior: nn.Module, likelihood: nn.Module, posterior: nn.Module) -> None:
        super().__init__()
        for attribute in ("latent_dim", "data_shape"):
            values = {
                part: getattr(module, attribute)
                for part, module in (
                    ("prior", prior), ("likelihood", likelihood), ("posterior", posterior),
                )
                if hasattr(module, attribute)
            }  # fmt: skip
            if len(set(values.values())) > 1:
                raise ValueError(f"expected parts of one {attribute}; got {values}")
        if getattr(likelihood, "missing", False) and not getattr(posterior, "missing", True):
            raise ValueError(
                f"expected a posterior that takes missing entries, as the likelihood "
                f"{type(likelihood).__name__} does; got {type(posterior).__name__}: build it with "
                "missing=True"
            )
        spaces = [getattr(part, "space", None) for part in (prior, posterior)]
        if None not in spaces and spaces[0] != spaces[1]:
            raise ValueError(
                "expected a prior and a posterior over one space of z; got "
                f"{type(prior).__name__} over {spaces[0]!r} and {type(posterior).__name__} over "
                f"{spaces[1]!r}: a draw of the one has no density under the other"
            )
        self.prior, self.likelihood, self.posterior = prior, likelihood, posterior

    @classmethod
    def of_names(cls, parts: Any) -> "VAE":
        """Make one of parts by name; it has no options of its own."""
        posterior = parts.posterior()
        prior = parts.prior(posterior=posterior)
        return cls(prior, parts.likelihood(), posterior)

    def model(self, x: Tensor, *c: Tensor) -> None:
        """Pyro model p(z | c) p(x | z, c), sites "z" and "x".

        Args:
            x: data (N, *data_shape).
            *c: context, N rows each.
        """
        self.register()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(*c))
            pyro.sample("x", self.likelihood(z, *self.shared(c)), obs=x)

    def guide(self, x: Tensor, *c: Tensor) -> None:
        """Pyro guide q(z | x, c), site "z".

        Args:
            x: data (N, *data_shape).
            *c: context, N rows each.
        """
        self.register()
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x, *self.shared(c)))

    def encode(self, x: Tensor, *c: Tensor) -> TorchDistribution:
        """Return q(z | x, c), batch shape (N,), event shape (latent_dim,)."""
        return self.posterior(self._cast(x), *self.shared(c))

    def decode(self, z: Tensor, *c: Tensor) -> TorchDistribution:
        """Return p(x | z, c), batch shape z.shape[:-1], event shape data_shape."""
        return self.likelihood(self._cast(z), *self.shared(c))

    def sample(self, n: int, *c: Tensor, seed: int | None = 0, mean: bool = False) -> Tensor:
        """Draw n data from the generative model: z ~ p(z | c), then x ~ p(x | z, c).

        Args:
            n: how many.
            *c: context, n rows each.
            seed: of the draws; None for the global generator.
            mean: return E[x | z] for the drawn z in place of x, where that is known.

        Returns:
            Tensor (n, *data_shape).

        Raises:
            ValueError: n is negative or no whole number.
        """
        check_count(n)
        with torch.no_grad(), seeded(seed), evaluating(self):
            p = self.prior(*c)
            z = p.sample(() if p.batch_shape else (n,))
            x = self.decode(z, *c)
            return mean_or_draw(x) if mean else x.sample()

    def reconstruct(self, x: Tensor, *c: Tensor, seed: int | None = 0) -> Tensor:
        """Return E[x' | z, c] for one z ~ q(z | x, c) a datum.

        Args:
            x: data (N, *data_shape).
            *c: context, N rows each.
            seed: of the draws; None for the global generator.

        Returns:
            Tensor (N, *data_shape).
        """
        with torch.no_grad(), seeded(seed), evaluating(self):
            return mean_or_draw(self.decode(self.encode(x, *c).sample(), *c))

    def shared(self, c: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the context that every part is given: all, or without the prior's index."""
        return c[1:] if getattr(self.prior, "indexed", False) else c
