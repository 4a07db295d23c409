"""MixtureVAE: the VAE of a mixture prior with its component drawn, summed over, and found."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger

from pyrovae import build, data, evidence, fit, likelihoods, nets, posteriors, priors
from pyrovae.distributions import OneHotGroups, seeded
from pyrovae.importance import log_joint
from pyrovae.pairs import VAE, MixtureVAE

D, K = 4, 3
X = (torch.rand(6, D, generator=torch.Generator().manual_seed(1234)) > 0.5).double()
NET = nets.mlp(hidden=(5,), activation="tanh")
SUMMED = TraceEnum_ELBO(max_plate_nesting=1)


def scattered(pair):
    """The pair, its parameters drawn, in float64."""
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for name, p in pair.double().named_parameters():
            size = 0.3 if name.startswith("posterior") else 0.7
            p.copy_(size * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        pair.posterior.net.output.bias[-1] += 2  # q(z|x) wide, so that no weight is large
    return pair


def both(latent_dim=1, cls=MixtureVAE):
    """The pair, and the VAE of the same parts, whose prior is the mixture."""
    parts = (
        priors.MixtureOfNormals(latent_dim, K),
        likelihoods.Bernoulli(latent_dim, (D,), NET),
        posteriors.MeanFieldNormal((D,), latent_dim, NET),
    )
    return scattered(cls(*parts)), VAE(*parts)


def estimate(elbo, pair, seed=3, x=X):
    """The ELBO a datum, and its gradient."""
    with seeded(seed):
        value = -elbo.differentiable_loss(pair.model, pair.guide, x) / len(x)
    gradient = torch.autograd.grad(value, list(pair.parameters()))
    return value.detach(), torch.cat([g.flatten() for g in gradient])


# The bound


@pytest.mark.parametrize("latent_dim", [1, 3])
def test_summed_over_it_is_the_vae_of_the_mixture(latent_dim):
    """At the same z: log p(z) = sum_y p(y|z) (log p(y) + log p(z|y) - log p(y|z)), gradient too."""
    pair, vae = both(latent_dim)
    for ours, theirs in zip(estimate(SUMMED, pair), estimate(Trace_ELBO(), vae), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_the_weight_is_the_same_for_every_cluster():
    """log p(x, z, y) - log q(z|x) - log p(y|z) = log p(x, z) - log q(z|x) for every y."""
    pair, vae = both(2)
    z = torch.randn(1, len(X), 2, generator=torch.Generator().manual_seed(1234)).double()
    theirs = log_joint(vae.model, {"z": z}, X) - log_joint(vae.guide, {"z": z}, X)
    y = torch.eye(K).double()[:, None].expand(-1, len(X), -1)
    at = {"z": z.expand(K, -1, -1), "y": y}
    ours = log_joint(pair.model, at, X) - log_joint(pair.guide, at, X)
    torch.testing.assert_close(ours, theirs.expand(K, -1), rtol=0, atol=1e-10)


def test_the_bound_is_that_of_quadrature():
    """E_q(z|x)[log p(x|z) + log p(z) - log q(z|x)] by Gauss and Hermite; 5 standard errors."""
    pair, vae = both()
    nodes, weights = (torch.as_tensor(t) for t in np.polynomial.hermite.hermgauss(100))
    q = pair.encode(X)
    z = q.mean + math.sqrt(2) * nodes[:, None, None] * q.stddev
    mixture = torch.stack([
        w + torch.distributions.Normal(m, s).log_prob(z).sum(-1)
        for w, m, s in zip(pair.prior.logits.log_softmax(-1), pair.prior.loc,
                           pair.prior.log_scale.exp(), strict=True)
    ]).logsumexp(0)  # fmt: skip
    inside = pair.decode(z).log_prob(X) + mixture - q.log_prob(z)
    expected = float((weights @ inside).detach().mean() / math.sqrt(math.pi))
    many = X.repeat(200, 1)
    for elbo in (SUMMED, Trace_ELBO()):
        values = torch.stack([estimate(elbo, pair, seed, many)[0] for seed in range(20)])
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - expected) < 5 * error < 0.1


def test_drawn_the_gradient_has_the_same_mean():
    """Score-function gradients of 40 means of 100 draws; a t of 39 exceeds 5 once in 10^5."""
    pair, _ = both()
    many = X.repeat(100, 1)
    differences = torch.stack([
        estimate(Trace_ELBO(), pair, seed, many)[1] - estimate(SUMMED, pair, seed, many)[1]
        for seed in range(40)
    ])  # fmt: skip
    error = differences.std(0) / math.sqrt(len(differences))
    assert bool((differences.mean(0).abs() <= 5 * error + 1e-9).all())
    assert bool((error > 1e-6).any()), "the draws of y make a difference"


class Uninformed(MixtureVAE):
    """A guide that takes all clusters to be equally likely."""

    def cluster_of(self, z):
        return OneHotGroups(torch.zeros_like(super().cluster_of(z).logits))


class WithoutKL(Messenger):
    """Leave out log p(y) - log q(y|z)."""

    def _pyro_sample(self, msg):
        if msg["name"] == "y":
            msg["scale"] = msg["scale"] * 1e-12


def test_another_guide_and_a_kl_left_out_are_seen():
    """Negative controls."""
    pair, vae = both()
    expected, _ = estimate(Trace_ELBO(), vae)
    worse, _ = both(cls=Uninformed)
    assert float(estimate(SUMMED, worse)[0]) < float(expected) - 0.1
    with WithoutKL():
        assert abs(float(estimate(SUMMED, pair)[0] - expected)) > 0.1


# Evidence


def test_evidence_is_that_of_the_mixture():
    """One of 6 data is 5 standard errors off with probability 4e-6."""
    pair, vae = both()
    exact = evidence.quadrature(vae.model, vae.guide, X).log_evidence
    found = evidence.iwae(pair.model, pair.guide, X, num_particles=20_000)
    z = (found.log_evidence - exact) / found.standard_error
    assert float(z.abs().max()) < 5 and float(found.standard_error.max()) < 0.02
    # negative control: N(0, I) in the mixture's place
    wrong = evidence.quadrature(pair.plain.model, pair.plain.guide, X).log_evidence
    assert float(((found.log_evidence - wrong) / found.standard_error).abs().max()) > 20


# Clusters


def test_shares_of_clusters_are_those_of_quadrature():
    """E_q(z|x)[p(y|z)]: 4,000 draws, within 5 standard errors of at most 1/2 / sqrt(4,000)."""
    pair, _ = both()
    q = pair.encode(X)
    z = torch.linspace(-12, 12, 20_001).double()[:, None, None]
    weight = q.log_prob(z.expand(-1, len(X), 1)).exp().unsqueeze(-1) * 24 / 20_000
    p_y = torch.stack([
        w + torch.distributions.Normal(m, s).log_prob(z).sum(-1)
        for w, m, s in zip(pair.prior.logits, pair.prior.loc, pair.prior.log_scale.exp(),
                           strict=True)
    ], -1).softmax(-1)  # fmt: skip
    expected = (weight * p_y).sum(0).detach()
    found = pair.clusters(X, num_draws=4000)
    torch.testing.assert_close(found.sum(-1), torch.ones(len(X)).double())
    assert float((found - expected).abs().max()) < 5 * 0.5 / math.sqrt(4000)
    assert float((found.roll(1, -1) - expected).abs().max()) > 0.1  # negative control


SD = 0.1  # of q(z|x)


def of_points():
    """q(z|x) = N(x, SD^2) in the plane, and 3 groups of 100, 200 and 300 points."""
    pair = MixtureVAE(
        priors.MixtureOfNormals(2, K),
        likelihoods.Normal(2, (2,), nets.mlp(hidden=())),
        posteriors.MeanFieldNormal((2,), 2, nets.mlp(hidden=())),
    )
    with torch.no_grad():
        layer = pair.posterior.net.output
        layer.weight.zero_()
        layer.weight[:2] = torch.eye(2)
        layer.bias[:] = torch.tensor([0.0, 0.0, 2 * math.log(SD), 2 * math.log(SD)])
    generator = torch.Generator().manual_seed(1234)
    groups = [
        torch.tensor(m) + s * torch.randn(n, 2, generator=generator)
        for m, s, n in (((-3.0, 0.0), 0.2, 100), ((3.0, 1.0), 0.4, 200), ((0.0, 4.0), 0.6, 300))
    ]
    return pair, groups


def test_it_starts_at_clusters():
    pair, groups = of_points()
    x = torch.cat(groups)
    pair.start_at_clusters(x[torch.randperm(len(x))])
    order = pair.prior.logits.argsort()
    for k, group in zip(order.tolist(), groups, strict=True):
        torch.testing.assert_close(pair.prior.loc[k].detach(), group.mean(0))
        variance = group.var(0, correction=0) + SD**2
        torch.testing.assert_close(pair.prior.log_scale[k].detach(), 0.5 * variance.log())
    shares = pair.prior.logits.softmax(-1)[order].detach()
    torch.testing.assert_close(shares, torch.tensor([1, 2, 3]) / 6)
    truth = torch.arange(K).repeat_interleave(torch.tensor([100, 200, 300]))
    assert bool((pair.clusters(x).argmax(-1) == order[truth]).all())
    assert pair.cluster_of(x).batch_shape == (600,)


def test_the_plain_vae_trains_the_networks_of_the_pair():
    pair, groups = of_points()
    x = torch.cat(groups)
    before = [p.detach().clone() for p in (*pair.likelihood.parameters(), pair.prior.loc)]
    fit(pair.plain.model, pair.plain.guide, x, epochs=1)
    after = (*pair.likelihood.parameters(), pair.prior.loc)
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [False] * (len(same) - 1) + [True], "the mixture is left alone"
    assert pair.double().plain.prior.loc.dtype == torch.float64


def used(apart, epochs):
    """How many clusters have a hundredth of the digits or more after training from the start."""
    digits = data.load("digits", values="levels")
    pair = build(
        data_shape=(8, 8), latent_dim=8, likelihood="binomial", hidden=(64,), pair="mixture-vae",
        posterior_options={"input_scale": 1 / 16},
    )  # fmt: skip
    if not apart:
        with torch.no_grad():
            pair.prior.loc.zero_()
    pair.likelihood.start_at_mean(digits.train)
    fit(pair.model, pair.guide, digits.train, objective=TraceEnum_ELBO(), epochs=epochs, lr=5e-3)
    counts = pair.clusters(digits.train, num_draws=20).argmax(-1).bincount()
    return int((counts > len(digits.train) / 100).sum())


def test_clusters_of_digits_do_not_collapse():
    """All ten are used; were they to start alike, none would part from the others."""
    assert used(apart=True, epochs=20) >= 9
    assert used(apart=False, epochs=3) == 1  # negative control


# Draws


def test_samples_are_of_the_mixture():
    pair, groups = of_points()
    pair.start_at_clusters(torch.cat(groups))
    with torch.no_grad():
        pair.likelihood.net.output.weight.copy_(torch.eye(2))
        pair.likelihood.net.output.bias.zero_()
    x = pair.sample(6000, mean=True)
    centres = torch.stack([g.mean(0) for g in groups])
    counts = torch.cdist(x, centres).argmin(-1).bincount() / 6000
    assert float((counts - torch.tensor([1, 2, 3]) / 6).abs().max()) < 5 * 0.5 / math.sqrt(6000)
    z = torch.randn(4, 2)
    for other in (z, torch.cat([torch.rand(4, K), z], -1)):
        torch.testing.assert_close(pair.decode(other).mean, z)


def test_it_is_made_of_names():
    common = {"data_shape": (D,), "latent_dim": 2, "pair": "mixture-vae"}
    for prior in ("standard-normal", "mixture-of-normals"):
        pair = build(**common, prior=prior, pair_options={"num_components": 4})
        assert pair.prior.loc.shape == (4, 2) and pair.clusters(X.float()).shape == (len(X), 4)
    assert len(build(**common).prior.loc) == 10


WRONG = {
    "another prior": (
        lambda: build(data_shape=(D,), latent_dim=2, pair="mixture-vae", prior="student-t"),
        "prior to be a MixtureOfNormals.*got StudentT",
    ),
    "no component": (
        lambda: build(data_shape=(D,), pair="mixture-vae", pair_options={"num_components": 0}),
        "num_components to be a positive whole number; got 0",
    ),
    "few data": (
        lambda: both()[0].start_at_clusters(X[:2]), "at least 3 data, one a cluster; got 2",
    ),
    "no mean": (
        lambda: build(
            data_shape=(D,), latent_dim=2, pair="mixture-vae", posterior="flow-posterior"
        ).start_at_clusters(X.float().repeat(2, 1)),
        "a posterior that knows its mean and variance; got FlowPosterior",
    ),
    "no draw": (lambda: both()[0].clusters(X, num_draws=0), "num_draws to be a positive whole"),
    "half a draw": (lambda: both()[0].clusters(X, num_draws=0.5), "num_draws to be a positive"),
}  # fmt: skip


@pytest.mark.parametrize(("act", "message"), WRONG.values(), ids=WRONG)
def test_bad_input_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_pyros_own_loop_trains_it():
    pair, _ = both()
    svi = pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.02}), SUMMED)
    losses = [svi.step(X) for _ in range(150)]
    assert sum(losses[-20:]) < sum(losses[:20])
