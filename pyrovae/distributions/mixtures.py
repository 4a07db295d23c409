"""Mixtures of normals, one a datum, whose draws carry gradients."""

import math

import torch
from pyro import distributions as dist
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn import functional

from pyrovae.distributions.seeding import choose


class PathwiseMixture(TorchDistribution):
    """sum_k w_k N(z; m_k, diag(s_k^2)), with a mixture for each batch entry, and `rsample`.

    A draw's gradient is that of the map from fixed uniform numbers u to z, by the distribution
    functions F_d of z_d given z_1, ..., z_(d-1): differentiating F(z; theta) = u gives

        dz/dtheta = -(dF/dz)^-1 dF/dtheta.

    Figurnov et al. (2018), Graves (2016). It is unbiased, but where components stand some ten
    standard deviations apart it rests on the few draws between them, and varies much. Pyro's
    MixtureOfDiagNormals takes another path, and no single dimension; its gradients of the weights
    are not those of quadrature. Where one set of components serves all z, as in a prior,
    `MixtureOfNormals` is faster.

    Args:
        loc: m (..., K, D).
        scale: s (..., K, D), positive.
        logits: unnormalised log weights (..., K).

    Example:
        >>> PathwiseMixture(torch.zeros(5, 3, 2), torch.ones(2), torch.zeros(3)).rsample().shape
        torch.Size([5, 2])
    """

    arg_constraints = {
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
        "logits": constraints.real_vector,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, loc: Tensor, scale: Tensor, logits: Tensor, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale, logits = torch.broadcast_tensors(loc, scale, logits.unsqueeze(-1))
        self.logits = logits[..., 0]
        super().__init__(self.loc.shape[:-2], self.loc.shape[-1:], validate_args=validate_args)

    def expand(
        self, batch_shape: torch.Size, _instance: "PathwiseMixture | None" = None
    ) -> "PathwiseMixture":
        """Return the mixture with its parameters expanded to the batch shape."""
        loc, scale = (t.expand(*batch_shape, -1, -1) for t in (self.loc, self.scale))
        logits = self.logits.expand(*batch_shape, -1)
        return type(self)(loc, scale, logits, validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log sum_k w_k N(value; m_k, diag(s_k^2)), shape the broadcast batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        log_normal = dist.Normal(self.loc, self.scale, validate_args=False).log_prob(
            value.unsqueeze(-2)
        )
        return (self.logits.log_softmax(-1) + log_normal.sum(-1)).logsumexp(-1)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw a component, then from it: shape (*sample_shape, *batch_shape, D)."""
        with torch.no_grad():
            k = choose(self.logits, sample_shape)
            chosen = k[..., None, None].expand(*k.shape, 1, *self.event_shape)
            loc, scale = (
                t.expand(*k.shape, *t.shape[-2:]).gather(-2, chosen).squeeze(-2)
                for t in (self.loc, self.scale)
            )
            z = loc + scale * torch.randn_like(loc)
        parameters = (self.loc, self.scale, self.logits)
        if torch.is_grad_enabled() and any(t.requires_grad for t in parameters):
            return self._implicit(z)
        return z

    def _implicit(self, z: Tensor) -> Tensor:
        """Return z with the gradient -(dF/dz)^-1 dF/dtheta.

        With v_kd the weight of component k given z_1, ..., z_(d-1), f_d the density of z_d given
        them, and P and p the normal distribution function and density of z_d in component k,

            F_d = sum_k v_kd P_kd,   dF_d/dz_d = f_d,
            dF_d/dz_j = sum_k v_kd (P_kd - F_d) dlog p_kj/dz_j   for j < d,

        a triangular matrix, whose rows are divided by f_d. P is taken as the smaller tail, or its
        digits would be lost above all components.
        """
        x = (z.unsqueeze(-2) - self.loc) / self.scale  # (..., K, D)
        log_p = -0.5 * x.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)
        before = functional.pad(log_p.cumsum(-1)[..., :-1], (1, 0))  # log p(z_1, ..., z_(d-1) | k)
        v = (self.logits.unsqueeze(-1) + before).softmax(-2)
        with torch.no_grad():
            f = (v * log_p.exp()).sum(-2)
            upper = ((v * _below(x)).sum(-2) > 0.5).unsqueeze(-2)
            sign = torch.where(upper, -1.0, 1.0).to(x)
        tail = _below(sign * x)
        total = (v * tail).sum(-2)
        sign = sign.squeeze(-2)
        with torch.no_grad():
            weight = sign.unsqueeze(-2) * v * (tail - total.unsqueeze(-2)) / f.unsqueeze(-2)
            jacobian = weight.mT @ (-x / self.scale)  # (..., D, D); d, j
        change = sign * (total - total.detach()) / f  # 0, with a gradient
        solved = torch.linalg.solve_triangular(
            jacobian, change.unsqueeze(-1), upper=False, unitriangular=True
        )
        return z - solved.squeeze(-1)

    @property
    def mean(self) -> Tensor:
        """sum_k w_k m_k, shape (*batch_shape, D)."""
        return (self._weights() * self.loc).sum(-2)

    @property
    def variance(self) -> Tensor:
        """sum_k w_k (s_k^2 + (m_k - mean)^2), shape (*batch_shape, D)."""
        apart = self.loc - self.mean.unsqueeze(-2)
        return (self._weights() * (self.scale.square() + apart.square())).sum(-2)

    def _weights(self) -> Tensor:
        return self.logits.softmax(-1).unsqueeze(-1)


def _below(x: Tensor) -> Tensor:
    """Return the standard normal's distribution function; torch's ndtr has no tail in float32."""
    return 0.5 * torch.erfc(-math.sqrt(0.5) * x)
