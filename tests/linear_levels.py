"""Linear-Gaussian hierarchies, whose evidence, ELBO and KLs are closed forms of their weights."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from pyrovae import build
from pyrovae.distributions import seeded
from pyrovae.pairs import BottomUp, Ladder, TopDown

D, SD = 5, 0.7
KINDS = {
    "two-level": {},
    "ladder": {"kind": "ladder", "levels": 3, "latent_dims": [2, 1, 2], "width": 4},
    "ladder-no-skip": {"kind": "ladder", "skip": False},
    "bottom-up": {"kind": "bottom-up"},
    "bottom-up-3": {"kind": "bottom-up", "levels": 3, "latent_dims": [2, 1, 2], "skip": False},
}
TOP_DOWN = [kind for kind in KINDS if not kind.startswith("bottom-up")]


def data(n=6):
    return torch.randn(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1234))


def heads(pair):
    """The linear layers whose outputs are a mean and a log-variance."""
    q = pair.posterior
    parts = [*pair.between, *([] if isinstance(q, Ladder) else q.parts)]
    return [p.net.output for p in parts] + (
        list(q.estimates.net.outputs) if isinstance(q, Ladder) else []
    )


def linear(kind, **options):
    """A linear-Gaussian hierarchy: variances that depend on nothing."""
    pair = build(
        data_shape=(D,), latent_dim=2, hidden=(), likelihood="normal", pair="hierarchical-vae",
        likelihood_options={"variance": f"fixed:{SD}"}, pair_options=KINDS[kind], **options,
    ).double()  # fmt: skip
    with torch.no_grad(), seeded(3):
        for p in pair.parameters():
            p.copy_(0.3 * torch.randn_like(p))
        for head in heads(pair):
            head.weight[len(head.weight) // 2 :] = 0
        if isinstance(pair.posterior, BottomUp):  # with much between the levels, each way
            for p, q in zip(pair.between, pair.posterior.parts[1:], strict=True):
                for weight, slope in ((p.net.output.weight, 1.5), (q.net.output.weight, 0.7)):
                    half = weight[: len(weight) // 2]
                    half.copy_(slope * torch.eye(*half.shape))
    return pair


class Affine(NamedTuple):
    """mean (N, d) + map (d, E) noise."""

    mean: Tensor
    map: Tensor


def affine(weight, bias, parents):
    pieces = weight.split([len(p.map) for p in parents], 1)
    mean = bias + sum(p.mean @ w.T for p, w in zip(parents, pieces, strict=True))
    return Affine(mean, sum(w @ p.map for p, w in zip(parents, pieces, strict=True)))


class Closed:
    """log p(x), the ELBO and the levels' KLs of a linear pair, of its parameters as they are."""

    def __init__(self, pair, x):
        self.pair, self.dims, self.levels = pair, pair.latent_dims, len(pair.latent_dims)
        self.x = Affine(x, x.new_zeros(D, sum(self.dims)))
        z, moments = {}, {}
        for i in self.order(pair.posterior):
            moments[i] = self.q(i, z)
            z[i] = self.draw(i, *moments[i])
        prior = {}
        for i in range(self.levels, 0, -1):
            prior[i] = self.draw(i, *self.p(i, prior))
        self.guide, model = self.joint(z), self.joint(prior)
        net = pair.likelihood.net.output
        seen = affine(net.weight, net.bias, self.above(0, prior))
        noise = SD**2 * torch.eye(D, dtype=x.dtype)
        evidence = MultivariateNormal(seen.mean, seen.map @ seen.map.T + noise)
        joint = torch.cat([prior[i].map for i in range(1, self.levels + 1)])
        gain = joint @ seen.map.T @ torch.linalg.inv(evidence.covariance_matrix[0])
        self.posterior = MultivariateNormal(
            model.mean + (x - seen.mean) @ gain.T,
            joint @ joint.T - gain @ seen.map @ joint.T,
        )
        self.log_evidence = evidence.log_prob(x)
        self.elbo = self.log_evidence - kl_divergence(self.guide, self.posterior)
        self.kl = [self.level(*moments[i], *self.p(i, z)) for i in range(1, self.levels + 1)]

    def order(self, posterior):
        levels = range(1, self.levels + 1)
        return levels if isinstance(posterior, BottomUp) else levels[::-1]

    def above(self, i, z):
        last = self.levels if self.pair.skip else i + 1
        return [z[j] for j in range(i + 1, last + 1)]

    def draw(self, i, mean, tril):
        left = sum(self.dims[: i - 1])
        right = sum(self.dims) - left - self.dims[i - 1]
        return Affine(mean.mean, mean.map + nn.functional.pad(tril, (left, right)))

    def joint(self, z):
        mean = torch.cat([z[i].mean for i in range(1, self.levels + 1)], 1)
        root = torch.cat([z[i].map for i in range(1, self.levels + 1)])
        return MultivariateNormal(mean, root @ root.T)

    def head(self, layer, parents):
        half = len(layer.weight) // 2
        mean = affine(layer.weight[:half], layer.bias[:half], parents)
        return mean, (0.5 * layer.bias[half:]).exp().diag()

    def p(self, i, z):
        if i < self.levels:
            return self.head(self.pair.between[i - 1].net.output, self.above(i, z))
        d = self.dims[-1]
        mean = Affine(
            self.x.mean.new_zeros(len(self.x.mean), d), self.x.map.new_zeros(d, sum(self.dims))
        )
        return mean, torch.eye(d, dtype=torch.float64)

    def q(self, i, z):
        posterior = self.pair.posterior
        if isinstance(posterior, TopDown):
            over = [z[j] for j in range(i + 1, self.levels + 1)]
            return self.head(posterior.parts[i - 1].net.output, [self.x, *over])
        if isinstance(posterior, BottomUp):
            below = self.x if i == 1 else z[i - 1]
            return self.head(posterior.parts[i - 1].net.output, [below])
        net, d = posterior.estimates.net, self.x
        for f in net.passes[:i]:
            d = affine(f.output.weight, f.output.bias, [d])
        own, s = self.head(net.outputs[i - 1], [d])
        if i == self.levels:
            return own, s
        theirs, s_p = self.p(i, z)
        w, w_p = (t.diagonal() ** -2 for t in (s, s_p))
        mean = (own.mean * w + theirs.mean * w_p) / (w + w_p)
        root = (own.map * w[:, None] + theirs.map * w_p[:, None]) / (w + w_p)[:, None]
        return Affine(mean, root), (w + w_p).rsqrt().diag()

    def level(self, m_q, s_q, m_p, s_p):
        """E KL(N(m_q, S_q) || N(m_p, S_p)) over the noise in m_q - m_p."""
        root = m_q.map - m_p.map
        gap = (m_q.mean - m_p.mean).square() + root.square().sum(1)
        v_q, v_p = (s.diagonal().square() for s in (s_q, s_p))
        return 0.5 * ((v_q + gap) / v_p - 1 + v_p.log() - v_q.log()).sum(1)
