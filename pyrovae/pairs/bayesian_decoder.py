"""A VAE whose decoder's weights are latent too: global latents, one value for all data."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.func import functional_call

from pyrovae.distributions import diagonal_normal, seeded
from pyrovae.nets import evaluating
from pyrovae.nets.naming import by_name
from pyrovae.pairs.base import Pair, check_count, mean_or_draw
from pyrovae.pairs.vae import VAE

START = 0.01  # standard deviation of q(W) before training

# By the option's value, which part of the likelihood's network has latent weights.
LAYERS: dict[str, Callable[[Any], nn.Module]] = {"all": lambda net: net, "last": lambda n: n.output}


class BayesianDecoderVAE(Pair):
    """p(x, z, W) = p(W) prod_n p(z_n) p(x_n|z_n, W), with the guide q(W) prod_n q(z_n|x_n).

        model:  W ~ N(0, s^2 I),         z_n ~ prior(),         x_n ~ likelihood(z_n; W)
        guide:  W ~ N(m, diag sigma^2),  z_n ~ posterior(x_n)

    W, all weights and biases of the likelihood's network in one vector, is the site "weights",
    outside the plate "data"; z and x are within. Full variational Bayes: Kingma & Welling (2014),
    appendix F; normals of independent weights: Blundell et al. (2015). The plate is of size
    `num_data` whatever the batch, so that a batch's ELBO estimates that of all data.

    The likelihood's own weights *are* m, and log sigma is learnt beside them; while the likelihood
    computes, the draw stands in their place. So the VAE of the same three parts, `local`, has the
    weights at the guide's mean. Figures of a datum are of that: of the pair itself there is no
    log p(x) a datum, since the data depend on one another through W. What the likelihood learns
    outside its network, such as a shared variance, stays a parameter.

    Args:
        prior: p(z).
        likelihood: p(x|z, W), whose network is its attribute `net`.
        posterior: q(z|x).
        num_data: how many data there are in all.
        layers: "all", or "last" where only the weights of the network's `output` are latent.
        weight_scale: s.

    Raises:
        ValueError: num_data or weight_scale that is not positive, unknown layers or a network
            without such, or parts that `VAE` refuses.

    Example:
        >>> from pyrovae import build
        >>> vae = build(
        ...     data_shape=(4,), latent_dim=2, hidden=(3,), pair="bayesian-decoder-vae",
        ...     pair_options={"num_data": 100, "layers": "last"},
        ... )
        >>> vae.weight_posterior().event_shape, type(vae.local).__name__
        (torch.Size([16]), 'VAE')
    """

    def __init__(
        self,
        prior: nn.Module,
        likelihood: nn.Module,
        posterior: nn.Module,
        num_data: int,
        layers: str = "all",
        weight_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(num_data, int) or num_data < 1:
            raise ValueError(
                "expected num_data, how many training data there are, to be a positive whole "
                f"number; got {num_data!r}: build(..., pair_options={{'num_data': len(train)}})"
            )
        if not 0 < weight_scale < math.inf:
            raise ValueError(f"expected weight_scale to be a positive number; got {weight_scale!r}")
        self.vae = VAE(prior, likelihood, posterior)
        self.num_data, self.weight_scale = num_data, weight_scale
        net, chosen = self.likelihood.net, by_name("layers", layers, LAYERS)
        if chosen is LAYERS["last"] and not hasattr(net, "output"):
            raise ValueError(
                "expected a network whose last map is its attribute `output` for layers='last'; "
                f"got {type(net).__name__}: take layers='all'"
            )
        latent = {id(p) for p in chosen(net).parameters()}
        self._names = [name for name, p in likelihood.named_parameters() if id(p) in latent]
        mean = self.weight_mean().detach()
        self.log_scale = nn.Parameter(torch.full_like(mean, math.log(START)))

    @classmethod
    def of_names(
        cls,
        parts: Any,
        num_data: int | None = None,
        layers: str = "all",
        weight_scale: float = 1.0,
    ) -> "BayesianDecoderVAE":
        """Make one of parts by name.

        Args:
            parts: see `Pair.of_names`.
            num_data: how many training data there are; the command line says so itself.
            layers: whose weights are latent, "all" or "last".
            weight_scale: the prior standard deviation of a weight.
        """
        vae = VAE.of_names(parts)
        known: Any = num_data  # None is refused, with the remedy
        return cls(vae.prior, vae.likelihood, vae.posterior, known, layers, weight_scale)

    @property
    def prior(self) -> Any:
        """p(z)."""
        return self.vae.prior

    @property
    def likelihood(self) -> Any:
        """p(x|z, W) at W the guide's mean."""
        return self.vae.likelihood

    @property
    def posterior(self) -> Any:
        """q(z|x)."""
        return self.vae.posterior

    @property
    def local(self) -> VAE:
        """The VAE with W at the guide's mean; it has the parameters of this pair."""
        return self.vae

    def model(self, x: Tensor, *c: Tensor) -> None:
        """Pyro model p(W) p(z|c) p(x|z, W, c), sites "weights", "z" and "x".

        Args:
            x: data (N, *data_shape), some or all of `num_data`.
            *c: context, N rows each.
        """
        self.register()
        zero = torch.zeros_like(self.log_scale)
        w = pyro.sample("weights", diagonal_normal(zero, torch.full_like(zero, self.weight_scale)))
        with self._plate(x):
            z = pyro.sample("z", self.prior(*c))
            pyro.sample("x", self.decode(w, z, *c), obs=x)

    def guide(self, x: Tensor, *c: Tensor) -> None:
        """Pyro guide q(W) q(z|x, c), sites "weights" and "z".

        Args:
            x: data (N, *data_shape), some or all of `num_data`.
            *c: context, N rows each.
        """
        self.register()
        pyro.sample("weights", self.weight_posterior())
        with self._plate(x):
            pyro.sample("z", self.posterior(x, *self.vae.shared(c)))

    def weight_mean(self) -> Tensor:
        """Return m, (P,): the latent weights of the likelihood, flattened, in its own order."""
        return nn.utils.parameters_to_vector(self._latent().values())

    def weight_posterior(self) -> TorchDistribution:
        """Return q(W), of event shape (P,)."""
        return diagonal_normal(self.weight_mean(), self.log_scale.exp())

    def decode(self, w: Tensor, z: Tensor, *c: Tensor) -> TorchDistribution:
        """Return p(x | z, W, c), batch shape z.shape[:-1], event shape data_shape.

        Args:
            w: W (P,), one for all z.
            z: (..., latent_dim).
            *c: context, N rows each.
        """
        latent = self._latent()
        pieces = w.split([p.numel() for p in latent.values()])
        named = {n: piece.view_as(p) for (n, p), piece in zip(latent.items(), pieces, strict=True)}
        found: TorchDistribution = functional_call(self.likelihood, named, (z, *self.vae.shared(c)))
        return found

    def sample(self, n: int, *c: Tensor, seed: int | None = 0, mean: bool = False) -> Tensor:
        """Draw n data given one draw W ~ q(W), which they share as the model's data do.

        Arguments and errors: see `VAE.sample`.
        """
        check_count(n)
        with torch.no_grad(), seeded(seed), evaluating(self):
            w, p = self.weight_posterior().sample(), self.prior(*c)
            x = self.decode(w, p.sample(() if p.batch_shape else (n,)), *c)
            return mean_or_draw(x) if mean else x.sample()

    def reconstruct(self, x: Tensor, *c: Tensor, seed: int | None = 0) -> Tensor:
        """Return E[x'|z] at W the guide's mean: see `VAE.reconstruct`."""
        return self.vae.reconstruct(x, *c, seed=seed)

    def _latent(self) -> dict[str, nn.Parameter]:
        named = dict(self.likelihood.named_parameters())
        return {name: named[name] for name in self._names}

    def _plate(self, x: Tensor) -> pyro.plate:
        # which of all data the rows are makes no difference: no indices are drawn
        rows = torch.arange(len(x), device=x.device)
        return pyro.plate("data", self.num_data, subsample=rows)
