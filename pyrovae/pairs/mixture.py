"""The VAE of clusters: a mixture of normals as p(z), with the component a latent of its own."""

from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import OneHotGroups, diagonal_normal, seeded
from pyrovae.nets import evaluating
from pyrovae.pairs.summing import summed
from pyrovae.pairs.vae import VAE
from pyrovae.priors import MixtureOfNormals, StandardNormal

MIN_VARIANCE = 1e-4  # of a cluster at its start


class MixtureVAE(VAE):
    """p(x, y, z) = p(y) p(z|y) p(x|z) with the guide q(z|x) p(y|z), y one of K clusters.

        model(x, *c):  y ~ Cat(pi),  z ~ N(m_y, diag s_y^2),  x ~ likelihood(z, *c)
        guide(x, *c):  z ~ posterior(x, *c),  y ~ p(y|z)               within the plate "data"

    Jiang et al. (2017), VaDE; Dilokthanakul et al. (2016) have p(y|z) in their guide too. Since x
    tells nothing of y that z does not, no other q(y|x, z) has a better bound, and p(y|z) is known:
    pi_y N(z; m_y, s_y^2) / sum_k pi_k N(z; m_k, s_k^2). So the ELBO is that of the `VAE` with the
    same mixture as its prior. `TraceEnum_ELBO` sums over y. `Trace_ELBO` and the others draw it:
    the value is the same at every draw, but gradients vary more.

    The means start as draws of N(0, I), apart. Clusters that say more start from latents that are
    trained already, as those of Jiang et al. do: train `plain`, then `start_at_clusters`, and then
    train the pair.

    Args:
        prior: p(z), a `priors.MixtureOfNormals`: pi, m and s, all learnt.
        likelihood: p(x|z).
        posterior: q(z|x).

    Raises:
        ValueError: another prior, or parts that `VAE` refuses.

    Example:
        >>> from pyrovae import build
        >>> vae = build(
        ...     data_shape=(4,), latent_dim=2, hidden=(8,), pair="mixture-vae",
        ...     pair_options={"num_components": 3},
        ... )
        >>> vae.clusters(torch.ones(5, 4)).shape
        torch.Size([5, 3])
    """

    def __init__(self, prior: nn.Module, likelihood: nn.Module, posterior: nn.Module) -> None:
        if not isinstance(prior, MixtureOfNormals):
            raise ValueError(
                "expected the prior to be a MixtureOfNormals, whose components are the clusters; "
                f"got {type(prior).__name__}"
            )
        super().__init__(prior, likelihood, posterior)

    @classmethod
    def of_names(cls, parts: Any, num_components: int = 10) -> "MixtureVAE":
        """Make one of parts by name.

        Args:
            parts: see `Pair.of_names`; the prior, "standard-normal" or "mixture-of-normals", is
                that of a cluster.
            num_components: number K of clusters.
        """
        posterior = parts.posterior()
        prior = parts.prior(posterior=posterior, num_components=num_components)
        if isinstance(prior, StandardNormal):
            prior = MixtureOfNormals(parts.latent_dim, num_components)
        return cls(prior, parts.likelihood(), posterior)

    @property
    def plain(self) -> VAE:
        """The VAE with p(z) = N(0, I) and this pair's likelihood and posterior."""
        like = self.prior.loc
        prior = StandardNormal(self.prior.latent_dim).to(like.device, like.dtype)
        return VAE(prior, self.likelihood, self.posterior)

    def model(self, x: Tensor, *c: Tensor) -> None:
        """Pyro model p(y) p(z|y) p(x|z, c), sites "y", "z" and "x".

        Args:
            x: data (N, *data_shape).
            *c: context, N rows each.
        """
        self.register()
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", OneHotGroups(self.prior.logits.unsqueeze(0)))
            z = pyro.sample("z", self._of_cluster(y))
            pyro.sample("x", self.likelihood(z, *c), obs=x)

    def guide(self, x: Tensor, *c: Tensor) -> None:
        """Pyro guide q(z|x, c) p(y|z), sites "z" and "y".

        Args:
            x: data (N, *data_shape).
            *c: context, N rows each.
        """
        self.register()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.posterior(x, *c))
            q_y = self.cluster_of(z)
            pyro.sample("y", q_y, infer=summed(q_y))

    def cluster_of(self, z: Tensor) -> OneHotGroups:
        """Return p(y|z), one-hot, batch shape z.shape[:-1], event shape (K,)."""
        each = diagonal_normal(self.prior.loc, self.prior.log_scale.exp())
        log_joint = self.prior.logits.log_softmax(-1) + each.log_prob(z.unsqueeze(-2))
        return OneHotGroups(log_joint.unsqueeze(-2))

    def clusters(self, x: Tensor, *c: Tensor, num_draws: int = 100, seed: int | None = 0) -> Tensor:
        """Return q(y|x) = E_q(z|x)[p(y|z)] by draws of z, the share of each cluster, (N, K).

        Args:
            x: data (N, *data_shape).
            *c: context, N rows each.
            num_draws: of z a datum.
            seed: of the draws; None for the global generator.

        Raises:
            ValueError: num_draws is no positive whole number.
        """
        if not isinstance(num_draws, int) or num_draws < 1:
            raise ValueError(f"expected num_draws to be a positive whole number; got {num_draws!r}")
        with torch.no_grad(), seeded(seed), evaluating(self):
            q = self.encode(x, *c)
            draws = (self.cluster_of(q.sample()).probs.squeeze(-2) for _ in range(num_draws))
            total = torch.zeros(())
            for share in draws:
                total = total + share
            return total / num_draws

    def start_at_clusters(self, x: Tensor, *c: Tensor, seed: int = 0) -> None:
        """Set the mixture by k-means of the means of q(z|x): a cluster's share, mean and variance.

        The variance is that of the z of its data, not of their means alone: what they spread about
        the cluster's mean, and what q(z|x) is wide.

        Args:
            x: data (N, *data_shape), of at least K.
            *c: context, N rows each.
            seed: of k-means, the best of 10 starts.

        Raises:
            ValueError: fewer data than clusters, or a posterior that does not know its mean.
        """
        from sklearn.cluster import KMeans

        k = len(self.prior.loc)
        if len(x) < k:
            raise ValueError(f"expected at least {k} data, one a cluster; got {len(x)}")
        with torch.no_grad(), evaluating(self):
            q = self.encode(x, *c)
            try:
                mean, variance = q.mean, q.variance
            except NotImplementedError:
                raise ValueError(
                    "expected a posterior that knows its mean and variance; got "
                    f"{type(self.posterior).__name__}: take one such as MeanFieldNormal"
                ) from None
            found = KMeans(k, n_init=10, random_state=seed).fit(mean.double().cpu().numpy())
            label = torch.as_tensor(found.labels_, device=mean.device).long()
            member = torch.nn.functional.one_hot(label, k).to(mean)
            share = member.sum(0)
            loc = member.T @ mean / share.unsqueeze(-1)
            spread = member.T @ ((mean - loc[label]).square() + variance) / share.unsqueeze(-1)
            self.prior.loc.copy_(loc)
            self.prior.log_scale.copy_(0.5 * spread.clamp(min=MIN_VARIANCE).log())
            self.prior.logits.copy_(share.log())

    def decode(self, z: Tensor, *c: Tensor) -> TorchDistribution:
        """Return p(x | z, c), batch shape z.shape[:-1], event shape data_shape.

        Args:
            z: (..., latent_dim), or y and z side by side, of which y makes no difference.
            *c: context, N rows each.
        """
        both = len(self.prior.loc) + self.prior.latent_dim
        return super().decode(z[..., -self.prior.latent_dim :] if z.shape[-1] == both else z, *c)

    def _of_cluster(self, y: Tensor) -> TorchDistribution:
        """Return p(z|y) for one-hot y (..., K)."""
        return diagonal_normal(y @ self.prior.loc, y @ self.prior.log_scale.exp())
