"""A mixture over training points."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.priors.base import OfPosterior


class ExemplarPrior(OfPosterior):
    """p(z) = (1/N) sum_n N(z; mu(x_n), s^2 I), about the posterior's means at training points.

    Norouzi et al. (2020), eqs. 4 to 9. Training leaves the datum itself out: its index among the
    training data is the first context tensor, whole numbers (n,), and -1 for data that are no
    exemplar; without context nothing is left out. In training mode only the `num_neighbors`
    exemplars whose means, as they were encoded last, lie nearest to z enter the sum: a lower bound
    of it. In evaluation mode all do. The prior is `indexed`: the other parts are not given the
    index.

    The exemplars are a buffer, so a saved model holds them. The posterior is held by reference, as
    in `VampPrior`.

    Args:
        latent_dim: length of z.
        posterior: the part q(z|x) that the VAE uses, over all of R^d, with a mean.
        exemplars: training data (N, *data_shape); or None, and `set_exemplars` before first use.
        num_exemplars: number N of exemplars, where none are given yet.
        num_neighbors: terms of the sum in training; N or more for all.

    Raises:
        ValueError: numbers that are not positive, latent dimensions that differ, a posterior on
            another space, or (when called) no exemplars.
    """

    indexed = True
    exemplars: Tensor
    rows: Tensor

    def __init__(
        self,
        latent_dim: int,
        posterior: nn.Module,
        exemplars: Tensor | None = None,
        num_exemplars: int = 5000,
        num_neighbors: int = 10,
    ) -> None:
        super().__init__(latent_dim, posterior)
        for name, number in (("exemplars", num_exemplars), ("neighbors", num_neighbors)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"expected num_{name} to be a positive whole number; got {number}")
        shape = posterior.data_shape
        if getattr(posterior, "space", "") != "real" or not self._has_mean(shape):
            raise ValueError(
                "ExemplarPrior expected a posterior over R^d whose mean is known, such as "
                f"MeanFieldNormal; got {type(posterior).__name__}"
            )
        self.num_neighbors = num_neighbors
        self.log_scale = nn.Parameter(torch.zeros(()))
        n = num_exemplars if exemplars is None else len(exemplars)
        self.register_buffer("exemplars", torch.zeros(n, *shape))  # type: ignore[misc]
        self.register_buffer("rows", torch.full((n,), -1))
        self._means: Tensor | None = None  # of the exemplars, as they were encoded last
        if exemplars is not None:
            self.set_exemplars(exemplars)

    def set_exemplars(self, x: Tensor, seed: int = 0) -> None:
        """Take the exemplars from training data: all, or as many as there is room for, at random.

        Args:
            x: training data (M, *data_shape), M >= N.
            seed: of the choice.

        Raises:
            ValueError: fewer data than exemplars, or of another shape.
        """
        n = len(self.exemplars)
        if x.shape[1:] != self.exemplars.shape[1:] or len(x) < max(n, 2):
            raise ValueError(
                f"expected at least num_exemplars = {n} training data, and two, of shape "
                f"{tuple(self.exemplars.shape[1:])}; got {tuple(x.shape)}"
            )
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]
        rows = order.sort().values
        self.rows.copy_(rows)
        self.exemplars.copy_(x[rows.to(x.device)])
        self._means = None

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return the mixture, without the datum's own component where its index is given."""
        if int(self.rows[0]) < 0:
            raise ValueError(
                "expected exemplars; got none yet: call vae.prior.set_exemplars(train) first"
            )
        if self.training and not c:
            raise ValueError(
                "ExemplarPrior expected the index of each datum among the training data as context "
                "in training, or a datum would be its own neighbour; got none: fit on "
                "(x, torch.arange(len(x))), and validate with -1 for every datum"
            )
        if c and (c[0].is_floating_point() or c[0].dim() != 1):
            raise ValueError(
                "ExemplarPrior expected the index of each datum among the training data, whole "
                f"numbers (n,), as its first context; got {c[0].dtype} {tuple(c[0].shape)}"
            )
        own = c[0].unsqueeze(-1) == self.rows if c else None  # (n, N)
        scale = self.log_scale.exp()
        if not self.training or self.num_neighbors >= len(self.rows):
            means = self._encode(self.exemplars)
            self._means = means.detach()
            return Exemplars(means, scale, own)
        return Exemplars(self._last_means(), scale, own, self.num_neighbors, self._encoded_again)

    def _encode(self, x: Tensor) -> Tensor:
        return self.posterior_of(x).mean

    def _has_mean(self, shape: Any) -> bool:
        like = next(self._posterior[0].parameters())
        try:
            self._encode(like.new_zeros(1, *shape))
        except NotImplementedError:
            return False
        return True

    def _last_means(self) -> Tensor:
        if self._means is None or self._means.dtype != self.log_scale.dtype:
            with torch.no_grad():
                self._means = self._encode(self.exemplars)
        return self._means

    def _encoded_again(self, index: Tensor) -> Tensor:
        """Return the means of some exemplars as they are now, with gradients, and remember them."""
        some, inverse = index.unique(return_inverse=True)
        means = self._encode(self.exemplars[some])
        self._last_means()[some] = means.detach()
        return means[inverse]

    def _apply(self, fn: Callable, recurse: bool = True) -> "ExemplarPrior":
        self._means = None
        super()._apply(fn, recurse)
        return self


class Exemplars(TorchDistribution):
    """(1/N) sum_n N(z; m_n, s^2 I), its nearest terms alone, or without a datum's own.

    Args:
        means: m (N, d).
        scale: s, ().
        own: (n, N) booleans: which component is each datum's own, and left out; None for none.
        num_neighbors: how many of the nearest means enter the sum; None for all.
        encode: from indices (...,) to means (..., d) as they are now, where `means` may be stale.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self,
        means: Tensor,
        scale: Tensor,
        own: Tensor | None = None,
        num_neighbors: int | None = None,
        encode: Callable[[Tensor], Tensor] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.means, self.scale, self.own = means, scale, own
        self.num_neighbors, self.encode = num_neighbors, encode
        batch = torch.Size() if own is None else own.shape[:1]
        super().__init__(batch, means.shape[1:], validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log (1/N) sum_n N(value; m_n, s^2 I), shape the broadcast batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        d = value.shape[-1]
        if self.num_neighbors is None:
            log_normal = self._squares(value) / (-2 * self.scale.square())
            left = self.own
        else:
            with torch.no_grad():
                far = self._squares(value)
                if self.own is not None:
                    far = far.masked_fill(self.own, math.inf)
                nearest = far.topk(self.num_neighbors, -1, largest=False).indices
            assert self.encode is not None
            off = value.unsqueeze(-2) - self.encode(nearest)
            log_normal = off.square().sum(-1) / (-2 * self.scale.square())
            left = None if self.own is None else self._own_of(nearest)
        if left is not None:
            log_normal = log_normal.masked_fill(left, -math.inf)
        log_normal = log_normal - d * (self.scale.log() + 0.5 * math.log(2 * math.pi))
        return log_normal.logsumexp(-1) - self._count.log()

    def _squares(self, value: Tensor) -> Tensor:
        """Return |value - m_n|^2, (..., N), by a matrix product about the means' centre."""
        centre = self.means.mean(0).detach()
        z, m = value - centre, self.means - centre
        both = z.square().sum(-1, keepdim=True) + m.square().sum(-1)
        return (both - 2 * z @ m.T).clamp(min=0)

    def _own_of(self, index: Tensor) -> Tensor:
        assert self.own is not None
        return self.own.expand(*index.shape[:-1], -1).gather(-1, index)

    @property
    def _count(self) -> Tensor:
        n = torch.tensor(len(self.means), dtype=self.means.dtype, device=self.means.device)
        return n if self.own is None else n - self.own.any(-1).to(n.dtype)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw a component, not a datum's own, then from it."""
        with torch.no_grad():
            weights = self.means.new_ones(*self.batch_shape, len(self.means))
            if self.own is not None:
                weights = weights.masked_fill(self.own, 0.0)
            index = torch.distributions.Categorical(weights).sample(torch.Size(sample_shape))
            means = self.means[index]
            return means + self.scale * torch.randn_like(means)

    @property
    def mean(self) -> Tensor:
        """Of all the components, (d,)."""
        return self.means.mean(0).expand(*self.batch_shape, -1)

    @property
    def variance(self) -> Tensor:
        """Of all the components, (d,)."""
        spread = self.means.var(0, correction=0) + self.scale.square()
        return spread.expand(*self.batch_shape, -1)
