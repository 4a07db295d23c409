"""log p(x) = ELBO + KL(q(z|x) || p(z|x)): the three of them, each computed on its own."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from pyrovae.evidence import choice, closed, discrete, lattice
from pyrovae.evidence.latents import Problem, problem
from pyrovae.importance import guide_distributions, log_weights, site_log_probs

NODES = {1: (200, 260, 320), 2: (56, 80, 104), 3: (16, 22, 28)}  # Gauss-Hermite's, a dimension
REACH = 8.0  # standard deviations of q that the KL's lattice covers
PER_SD = 2.5  # its points a standard deviation, of q or the posterior, whichever is narrower
KL_POINTS = {1: 20_000, 2: 500, 3: 64}  # a dimension, at the most
SHIFT = 0.381966  # of the lattice that normalises the posterior, against the evidence's own


@dataclass(frozen=True)
class Identity:
    """log p(x) = ELBO + KL(q || p(z|x)), one entry a datum, in nats.

    Attributes:
        log_evidence: log p(x), (N,).
        elbo: E_q[log p(x, z) - log q(z|x)], by Gauss-Hermite nodes of q, a sum, or moments, (N,).
        kl: KL(q(z|x) || p(z|x)), by a lattice of its own, a sum, or the normals' formula, (N,).
        error: how far off the three may be together, (N,).
        elbo_sampled: the ELBO by Monte Carlo, the mean of `log_weights`, (N,).
        elbo_standard_error: its standard error, (N,).
        method: how log p(x) was found.
    """

    log_evidence: Tensor
    elbo: Tensor
    kl: Tensor
    error: Tensor
    elbo_sampled: Tensor
    elbo_standard_error: Tensor
    method: str

    @property
    def residual(self) -> Tensor:
        """The difference log p(x) - ELBO - KL, (N,): 0 up to `error`."""
        return self.log_evidence - self.elbo - self.kl


class IdentityRecorder:
    """A callback of `fit` that measures the identity on a fixed batch after every few epochs.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...): a few rows, as the lattices take a while.
        *c: context, N rows each.
        every: epochs between measurements.
        modules: those that the functions hold in their closures.

    Attributes:
        epochs: the epochs measured; the pair as it was before training is epoch 0.
        identities: an `Identity` for each.

    Example:
        >>> from pyrovae import build, fit
        >>> vae = build(data_shape=(4,), latent_dim=1, net_options={"activation": "tanh"})
        >>> recorder = IdentityRecorder(vae.model, vae.guide, torch.ones(2, 4))
        >>> history = fit(vae.model, vae.guide, torch.ones(32, 4), epochs=2, callbacks=[recorder])
        >>> recorder.epochs
        [0, 1, 2]
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        x: Tensor,
        *c: Tensor,
        every: int = 1,
        modules: Sequence[nn.Module] = (),
    ) -> None:
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"expected every to be a positive whole number; got {every!r}")
        self.model, self.guide, self.x, self.c = model, guide, x, c
        self.every, self.modules = every, modules
        self.epochs: list[int] = []
        self.identities: list[Identity] = []
        self(0, {})

    def __call__(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Measure, if it is time."""
        if epoch % self.every == 0:
            self.epochs.append(epoch)
            self.identities.append(
                identity(self.model, self.guide, self.x, *self.c, modules=self.modules)
            )


def identity(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_particles: int = 1000,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
) -> Identity:
    """Measure log p(x), the ELBO and KL(q || p(z|x)), by three computations that share nothing.

    In at most 3 dimensions: log p(x) on a lattice over the prior's mass; the ELBO at Gauss-Hermite
    nodes of q; the KL as the integral of q log q / p(z|x) on a lattice over q +- 8 standard
    deviations that resolves the narrower of the two, p(z|x) being p(x, z) over its own sum on yet
    another lattice. Beyond that, where log p(x, z) is quadratic: Gaussian integral, moments, and
    the KL of two normals. Discrete latents: sums. Computes in float64.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c): one latent site, normal (diagonal or full-rank) or discrete.
        x: data (N, ...).
        *c: context, N rows each.
        num_particles: draws of the sampled ELBO, a datum.
        seed: of those draws.
        modules: those that the functions hold in their closures.

    Raises:
        ValueError: a guide or latents of another kind, or no valid pair.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=1, net_options={"activation": "tanh"})
        >>> found = identity(vae.model, vae.guide, torch.ones(3, 4))
        >>> bool((found.residual.abs() < 1e-8).all())
        True
    """
    with problem(model, guide, x, c, modules) as work:
        exact = choice.solve(work)
        if exact.method == "enumeration":
            elbo, kl, error = _by_enumeration(work)
        elif exact.method == "linear-gaussian":
            elbo, kl, error = _by_moments(work)
        else:
            elbo, elbo_error = _on_nodes(work, *_normal(work))
            kl, kl_error = _on_lattice(work, *_normal(work), exact.covariance)
            error = elbo_error + kl_error
        with torch.no_grad():
            log_w = log_weights(
                model, guide, work.x, *work.c,
                num_particles=num_particles, seed=seed, modules=modules,
            )  # fmt: skip
    return Identity(
        log_evidence=exact.log_evidence,
        elbo=elbo,
        kl=kl,
        error=exact.error + error,
        elbo_sampled=log_w.mean(0),
        elbo_standard_error=log_w.std(0) / math.sqrt(num_particles),
        method=exact.method,
    )


def _normal(work: Problem) -> tuple[Tensor, Tensor]:
    """Return mean (N, d) and Cholesky factor (N, d, d) of the guide.

    It has one normal site, or several that are normal together: log q(z|x) is a quadratic.
    """
    found = guide_distributions(work.guide, work.x, *work.c, modules=work.modules)
    names = ", ".join(f"{name} ({type(q).__name__})" for name, q in found.items())
    q: Any = next(iter(found.values()), None)
    if len(found) == 1 and isinstance(q, MultivariateNormal):
        return q.loc.double(), q.scale_tril.double()
    if len(found) == 1 and isinstance(q, Independent) and isinstance(q.base_dist, Normal):
        n = len(work.x)
        loc, scale = (t.reshape(n, -1).double() for t in (q.base_dist.loc, q.base_dist.scale))
        return loc, torch.diag_embed(scale)
    if len(found) == 1 and isinstance(q, Normal):
        return q.loc.double()[:, None], q.scale.double()[:, None, None]
    together = closed.normal_of(work.log_guide, len(work.x), work.dim)
    if len(found) > 1 and together is not None:
        _, mean, covariance = together
        return mean, torch.linalg.cholesky(covariance)
    raise ValueError(
        "expected a guide with one latent site, normal, or several that are normal together; got "
        f"{names}"
    )


def gauss_hermite(dim: int, n: int) -> tuple[Tensor, Tensor]:
    """Return n^dim nodes (K, dim) and weights (K,) of E[f(u)], u ~ N(0, I)."""
    u, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(n))
    nodes = torch.cartesian_prod(*[u] * dim).reshape(-1, dim)
    weights = torch.cartesian_prod(*[w / w.sum()] * dim).reshape(-1, dim).prod(-1)
    keep = weights > 1e-30  # the outermost nodes add nothing, and overflow a decoder
    return nodes[keep], weights[keep]


def _at(u: Tensor, loc: Tensor, tril: Tensor) -> Tensor:
    """Return z = m + L u for u (K, d): (K, N, d)."""
    return loc + torch.einsum("nde,ke->knd", tril, u)


def _on_nodes(work: Problem, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
    """Return (E_q[log p(x, z) - log q], error) by Gauss-Hermite nodes.

    The error is twice the range over three resolutions: at kinks the rule converges erratically.
    """
    found = []
    for n in NODES[work.dim]:
        u, w = gauss_hermite(work.dim, n)
        z = _at(u, loc, tril)
        found.append(w @ (work.log_joint(z) - work.log_guide(z)))
    values = torch.stack(found)
    return values[-1], 2 * (values.amax(0) - values.amin(0))


def _on_lattice(
    work: Problem, loc: Tensor, tril: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (KL(q || p(z|x)), error) by lattices: q's, and one that normalises the posterior.

    KL = sum_z step q(z) (log q(z) - log p(x, z)) + log of the integral of p(x, z)
    """
    d = work.dim
    white = torch.linalg.solve_triangular(tril, covariance, upper=False)
    white = torch.linalg.solve_triangular(tril, white.mT, upper=False)
    narrower = torch.linalg.eigvalsh((white + white.mT) / 2).amin().clamp(min=1e-12).sqrt()
    points = math.ceil(2 * REACH * PER_SD / min(1.0, float(narrower)))
    points = min(points, KL_POINTS[d])
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    found = []
    for n in (math.ceil(0.7 * points), points):
        axis = torch.linspace(-REACH, REACH, n, dtype=torch.float64)
        z = _at(torch.cartesian_prod(*[axis] * d).reshape(-1, d), loc, tril)
        log_q = work.log_guide(z)
        log_step = d * (axis[1] - axis[0]).log() + log_det
        found.append(((log_q + log_step).exp() * (log_q - work.log_joint(z))).sum(0))
    box = lattice.prior_box(work)
    box = lattice.Box(box.low, box.high, 0.83 * box.step)
    normaliser = lattice.integrate(work.log_joint_of_rows, len(loc), box, shift=SHIFT)
    return found[1] + normaliser.log_value, (found[1] - found[0]).abs() + normaliser.error


def _by_moments(work: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ELBO, KL, error) where log p(x, z) and log q are both quadratic."""
    n, d = len(work.x), work.dim
    loc, tril = _normal(work)
    covariance = tril @ tril.mT
    f, g = closed.probe(work.log_joint, n, d), closed.probe(work.log_guide, n, d)
    elbo = f.expectation(loc, covariance) - g.expectation(loc, covariance)
    precision = -f.h
    mean = torch.linalg.solve(precision, f.b)
    posterior = MultivariateNormal(mean, precision_matrix=precision)
    kl = kl_divergence(MultivariateNormal(loc, scale_tril=tril), posterior)
    return elbo, kl, f.error + g.error


def _by_enumeration(work: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ELBO, KL, error) as sums over every value of the latents."""
    z = discrete.values(work)[:, None].expand(-1, len(work.x), -1)
    log_p, log_q = work.log_joint(z), work.log_guide(z)
    q = log_q.exp()
    support = q > 0  # 0 log 0 = 0
    elbo = torch.where(support, q * (log_p - log_q), 0.0).sum(0)
    kl = torch.where(support, q * (log_q - log_p.log_softmax(0)), 0.0).sum(0)
    return elbo, kl, torch.finfo(log_p.dtype).eps * (1 + elbo.abs()) * 10


# The essay's three forms of the ELBO, on the same nodes of q.


def elbo_of_joint(
    model: Callable, guide: Callable, x: Tensor, *c: Tensor, modules: Sequence[nn.Module] = ()
) -> Tensor:
    """Return the ELBO as E_q[log p(x, z)] - E_q[log q(z|x)], (N,), by Gauss-Hermite nodes of q.

    Arguments and errors: see `identity`; at most 3 latent dimensions.
    """
    with problem(model, guide, x, c, modules) as work:
        loc, tril = _normal(work)
        u, w = gauss_hermite(work.dim, _nodes(work))
        z = _at(u, loc, tril)
        return w @ work.log_joint(z) - w @ work.log_guide(z)


def elbo_of_reconstruction(
    model: Callable, guide: Callable, x: Tensor, *c: Tensor, modules: Sequence[nn.Module] = ()
) -> Tensor:
    """Return the ELBO as E_q[log p(x|z)] - KL(q(z|x) || p(z)), (N,), the KL closed if it can be.

    Arguments and errors: see `identity`; at most 3 latent dimensions.
    """
    with problem(model, guide, x, c, modules) as work:
        loc, tril = _normal(work)
        u, w = gauss_hermite(work.dim, _nodes(work))
        z = _at(u, loc, tril)
        with torch.no_grad():
            log_p = site_log_probs(model, work.by_site(z), work.x, *work.c, modules=modules)
            ((name, q),) = guide_distributions(guide, work.x, *work.c, modules=modules).items()
            prior = guide_distributions(model, work.x, *work.c, modules=modules)[name]
            try:
                kl = kl_divergence(q, prior)
            except NotImplementedError:
                kl = w @ (work.log_guide(z) - log_p[name])
        observed = [log_p[s.name] for s in work.structure.sites.values() if s.observed]
        return w @ torch.stack(observed).sum(0).double() - kl.double()


def elbo_of_evidence(
    model: Callable, guide: Callable, x: Tensor, *c: Tensor, modules: Sequence[nn.Module] = ()
) -> Tensor:
    """Return the ELBO as log p(x) - KL(q(z|x) || p(z|x)), (N,), both on lattices.

    Arguments and errors: see `identity`; at most 3 latent dimensions.
    """
    with problem(model, guide, x, c, modules) as work:
        exact = lattice.solve(work)
        return exact.log_evidence - _on_lattice(work, *_normal(work), exact.covariance)[0]


def _nodes(work: Problem) -> int:
    if work.dim not in NODES:
        raise ValueError(f"expected at most 3 latent dimensions; got {work.dim}")
    return NODES[work.dim][-1]
