"""Normals of low rank plus a diagonal, with marginals over any entries."""

import math

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor


class LowRankNormal(TorchDistribution):
    """N(m, W W' + diag(s^2)) over events of any number of dimensions, flattened for the product.

    With the whitened W~ = W / s and r = (x - m) / s, and QR the decomposition of [W~; I],

        (x - m)' (W W' + diag(s^2))^-1 (x - m) = |[r; 0] - Q Q' [r; 0]|^2,
        log det = 2 sum_i log s_i + 2 sum_j log |R_jj|

    which is a sum of squares. torch's LowRankMultivariateNormal takes one large square from
    another: in float32, with 784 entries, W of 1 and s of 0.002, it errs by tens of nats.

    Args:
        loc: m (..., *event_shape).
        factor: W (..., *event_shape, rank).
        scale: s (..., *event_shape).
        event_dim: how many dimensions an event has.
        validate_args: see torch.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        factor: Tensor,
        scale: Tensor,
        event_dim: int = 1,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.factor, self.scale = loc, factor, scale
        n = loc.dim() - event_dim
        super().__init__(loc.shape[:n], loc.shape[n:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """All real events."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(
        self, batch_shape: torch.Size, _instance: "LowRankNormal | None" = None
    ) -> "LowRankNormal":
        """Return the distribution with its parameters expanded to the batch shape."""
        shape = (*batch_shape, *self.event_shape)
        return type(self)(
            self.loc.expand(shape), self.factor.expand(*shape, -1), self.scale.expand(shape),
            len(self.event_shape), validate_args=self._validate_args,
        )  # fmt: skip

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, shape the broadcast batch shape."""
        return self.log_prob_of(value, value.new_ones(self.event_shape, dtype=torch.bool))

    def log_prob_of(self, value: Tensor, mask: Tensor) -> Tensor:
        """Return the log-density of the entries that are observed, the others integrated out.

        They are those of N(m, W W' + diag(s^2)) with their rows alone, so rows of W~ and entries of
        r that are missing count as 0.

        Args:
            value: (..., *event_shape); anything, NaN too, where it is missing.
            mask: booleans (..., *event_shape): is the entry observed?

        Returns:
            Tensor of the broadcast batch shape.

        Raises:
            ValueError: an observed entry is off the support, if arguments are validated.
        """
        value = torch.where(mask, value, 0.0)  # first of all: 0 * NaN would enter the gradient
        if self._validate_args:
            self._validate_sample(value)
        residual = self._flat(torch.where(mask, (value - self.loc) / self.scale, 0.0))
        log_scale = self._flat(torch.where(mask, self.scale.log(), 0.0))
        factor = torch.where(mask, 1 / self.scale, 0.0).unsqueeze(-1) * self.factor
        factor = factor.flatten(-1 - len(self.event_shape), -2)
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        q, r = torch.linalg.qr(torch.cat([factor, eye.expand(*factor.shape[:-2], -1, -1)], -2))
        padded = torch.cat([residual, residual.new_zeros(*residual.shape[:-1], len(eye))], -1)
        left = padded - self._times(q, self._times(q.mT, padded))
        log_det = log_scale.sum(-1) + r.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        observed = self._flat(mask).sum(-1, dtype=value.dtype)
        return -0.5 * (left.square().sum(-1) + observed * math.log(2 * math.pi)) - log_det

    def conditional(self, value: Tensor, mask: Tensor, draw: bool) -> Tensor:
        """Return E[x | x_obs], or a draw of it, of the shape of a value.

        x = m + W u + s v, and of the factors u, given what is observed,

            u | x_obs ~ N(A^-1 W~' r, A^-1),  A = I + W~' W~

        Args:
            value: (..., *event_shape); anything, NaN too, where it is missing.
            mask: booleans (..., *event_shape): is the entry observed?
            draw: a draw in place of the mean.
        """
        n = len(self.event_shape)
        residual = self._flat(torch.where(mask, (value - self.loc) / self.scale, 0.0))
        factor = torch.where(mask, 1 / self.scale, 0.0).unsqueeze(-1) * self.factor
        factor = factor.flatten(-1 - n, -2)
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        root = torch.linalg.cholesky(eye + factor.mT @ factor)
        u = torch.cholesky_solve((factor.mT @ residual.unsqueeze(-1)), root)
        if draw:
            u = u + torch.linalg.solve_triangular(root.mT, torch.randn_like(u), upper=True)
        u = u.squeeze(-1)
        x = self.loc + (self.factor * u.reshape(*u.shape[:-1], *(1 for _ in range(n)), -1)).sum(-1)
        return x + self.scale * torch.randn_like(x) if draw else x

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw m + W u + s v, with u and v standard normal: shape (*sample_shape, *shape of m)."""
        shape = self._extended_shape(sample_shape)
        u = self.loc.new_empty(*shape[: len(shape) - len(self.event_shape)], self.factor.shape[-1])
        u = u.normal_().reshape(*u.shape[:-1], *(1 for _ in self.event_shape), -1)
        v = self.loc.new_empty(shape).normal_()
        return self.loc + (self.factor * u).sum(-1) + self.scale * v

    @property
    def mean(self) -> Tensor:
        """The mean m."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The diagonal of W W' + diag(s^2)."""
        return self.factor.square().sum(-1) + self.scale.square()

    def _flat(self, t: Tensor) -> Tensor:
        return t.flatten(-len(self.event_shape))

    @staticmethod
    def _times(matrix: Tensor, vector: Tensor) -> Tensor:
        return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
