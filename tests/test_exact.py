"""log p(x) without sampling, and log p(x) = ELBO + KL, each of the three on its own."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_importance import linear_gaussian

from pyrovae import VAE, build, data, evidence, fit, likelihoods, nets, posteriors, priors
from pyrovae.evidence import closed, lattice
from pyrovae.pairs import ppca

F64 = torch.float64


def made(activation, d, likelihood, posterior="mean-field-normal", trained=False, n=4, scale=3.0):
    """A small VAE and data from another one of a sharper decoder."""
    options = {"net_options": {"activation": activation}, "likelihood": likelihood}
    options |= {"data_shape": (8,), "latent_dim": d, "hidden": (16,)}
    if likelihood == "binomial":
        options["posterior_options"] = {"input_scale": 1 / 16}
    vae, source = build(**options, posterior=posterior), build(**options, seed=1)
    with torch.no_grad():
        for p in source.likelihood.parameters():
            p.mul_(scale)
    x = source.sample(300)
    if trained:
        fit(vae.model, vae.guide, x, epochs=10, lr=5e-3)
    return vae, x[:n]


# Exact evidence


@pytest.mark.parametrize("d", [1, 2, 3])
def test_every_method_agrees_on_a_linear_gaussian_pair(d):
    vae, x, log_evidence = linear_gaussian(d=d)
    for method in (evidence.linear_gaussian, evidence.quadrature, evidence.exact):
        found = method(vae.model, vae.guide, x)
        torch.testing.assert_close(found.log_evidence, log_evidence, rtol=0, atol=1e-9)
        assert found.error.max() < 1e-9 and found.standard_error.max() == 0
        assert bool((found.lower <= found.log_evidence).all() & (found.upper >= found.lower).all())
        q = vae.encode(x)
        torch.testing.assert_close(found.mean, q.mean, rtol=0, atol=1e-9)
        torch.testing.assert_close(found.covariance, q.covariance_matrix, rtol=0, atol=1e-9)
        z = torch.randn(7, 5, d, dtype=F64)
        torch.testing.assert_close(
            found.log_posterior({"z": z}), q.log_prob(z).detach(), rtol=0, atol=1e-7
        )


def test_the_closed_form_is_found_by_probing_and_refuses_the_rest():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=F64), 2.0).to_event(1))
            u = pyro.sample("u", dist.Normal(z[..., 0], 0.5))  # two sites, and no class of ours
            loc = torch.stack([z.sum(-1), 3 * u + 1], -1)
            pyro.sample("x", dist.Normal(loc, 0.7).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3, dtype=F64), 1.0).to_event(1))
            pyro.sample("u", dist.Normal(torch.zeros(len(x), dtype=F64), 1.0))

    x = torch.randn(4, 2, dtype=F64)
    found = evidence.exact(model, guide, x)
    assert found.method == "linear-gaussian"
    # x = A (z, e_u, e_x): covariance by hand
    weights = torch.tensor([[2.0, 2, 2, 0, 0.7, 0], [6.0, 0, 0, 1.5, 0, 0.7]], dtype=F64)
    exact = dist.MultivariateNormal(torch.tensor([0.0, 1.0], dtype=F64), weights @ weights.T)
    torch.testing.assert_close(found.log_evidence, exact.log_prob(x), rtol=0, atol=1e-9)
    for likelihood in ("bernoulli", "normal"):
        vae, x = made("tanh", 5, likelihood)
        with pytest.raises(ValueError, match="concave quadratic in z; it is not"):
            evidence.linear_gaussian(vae.model, vae.guide, x)
        with pytest.raises(ValueError, match="at most 3 latent dimensions, all continuous; got 5"):
            evidence.exact(vae.model, vae.guide, x)


def test_probe_finds_a_quadratic_and_sees_what_is_none():
    h = torch.randn(3, 4, 4, dtype=F64)
    h, b = h + h.mT, torch.randn(3, 4, dtype=F64)

    def f(z):
        return 2 + (b * z).sum(-1) + 0.5 * torch.einsum("knd,nde,kne->kn", z, h, z)

    found = closed.probe(f, 3, 4)
    torch.testing.assert_close(found.h, h)
    torch.testing.assert_close(found.b, b)
    assert found.error.max() < 1e-12
    assert closed.probe(lambda z: f(z) + 1e-3 * z[..., 0] ** 3, 3, 4).error.min() > 1e-3


def bimodal(wrong_mode=False, narrow=0.05):
    """x = |z| + noise: two narrow modes, and a guide that knows one or neither."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=F64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.abs(), narrow).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = x.new_full(x.shape, 40.0) if wrong_mode else x
            pyro.sample("z", dist.Normal(loc, narrow).to_event(1))

    return model, guide


@pytest.mark.parametrize("wrong_mode", [False, True])
@pytest.mark.parametrize("narrow", [0.05, 0.003])
def test_the_guide_never_decides_where_to_look(wrong_mode, narrow):
    x = torch.tensor([[1.0], [2.5], [4.0]], dtype=F64)
    found = evidence.quadrature(*bimodal(wrong_mode, narrow), x)
    # p(x) = 2 N(x; 0, 1 + s^2) Phi(x / (s sqrt(1 + s^2))), all but the tail beyond z = 0
    exact = dist.Normal(torch.zeros((), dtype=F64), (1 + narrow**2) ** 0.5).log_prob(x)[:, 0]
    torch.testing.assert_close(
        found.log_evidence, exact + torch.log(torch.tensor(2.0)).double(), rtol=0, atol=1e-7
    )
    torch.testing.assert_close(found.mean, torch.zeros_like(x), rtol=0, atol=1e-6)


def test_a_density_that_does_not_fall_off_is_refused():
    def masked(x):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x[:, 0] > 0):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=F64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.tanh(), 1.0).to_event(1), obs=x)

    x = torch.tensor([[1.0], [-1.0]], dtype=F64)
    with pytest.raises(ValueError, match="is a latent masked out, or its prior improper"):
        evidence.quadrature(masked, bimodal()[1], x)


def test_a_lattice_error_that_is_not_small_says_so():
    """A density of kinks converges slowly; the error is stated, and covers the truth."""
    low, high, step = (torch.tensor([v], dtype=F64) for v in (-6.0, 6.0, 0.5))
    found = lattice.integrate(
        lambda z, row: -3 * (z[:, 0] - 0.123).abs(), 1, lattice.Box(low, high, step)
    )
    exact = torch.log(torch.tensor(2 / 3, dtype=F64))
    assert 0 < (found.log_value - exact).abs().item() <= 2 * found.error.item() < 1e-4


def discrete_mixture():
    """A mixture of three, its class latent: p(k) N(x; m_k, 1), and an amortised guide."""
    torch.manual_seed(0)
    weights, means = torch.tensor([0.2, 0.3, 0.5], dtype=F64), torch.randn(3, 2, dtype=F64) * 2
    network = torch.nn.Linear(2, 3).double()

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(means[k], 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("network", network)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=network(x)))

    mixture = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, 1.0).to_event(1))
    return model, guide, torch.randn(6, 2, dtype=F64), mixture


def test_enumeration():
    model, guide, x, mixture = discrete_mixture()
    found = evidence.exact(model, guide, x)
    assert found.method == "enumeration"
    torch.testing.assert_close(found.log_evidence, mixture.log_prob(x), rtol=0, atol=1e-12)
    k = torch.arange(3)[:, None].expand(3, 6)
    assert torch.allclose(found.log_posterior({"k": k}).logsumexp(0), torch.zeros(6, dtype=F64))
    vae, x = made("tanh", 1, "bernoulli")
    with pytest.raises(ValueError, match="site 'z': expected a discrete latent"):
        evidence.enumeration(vae.model, vae.guide, x)
    with pytest.raises(ValueError, match="some discrete"):
        evidence.quadrature(model, guide, torch.randn(6, 2, dtype=F64))


def test_float32_modules_come_back_as_they_were():
    vae, x = made("tanh", 1, "bernoulli")
    before = [p.detach().clone() for p in vae.parameters()]
    evidence.identity(vae.model, vae.guide, x)
    assert all(
        torch.equal(a, b) and b.dtype == torch.float32
        for a, b in zip(before, vae.parameters(), strict=True)
    )


def test_ppca_in_closed_form():
    torch.manual_seed(0)
    x = torch.randn(500, 3) @ torch.randn(3, 6) + 0.1 * torch.randn(500, 6) + 1
    vae = ppca(x, 2)
    found = evidence.linear_gaussian(vae.model, vae.guide, x[:20])
    centred = (x - x.mean(0)).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / 500)
    noise = values[:4].mean()
    top = vectors[:, 4:]
    cov = top @ torch.diag(values[4:] - noise) @ top.T + noise * torch.eye(6, dtype=F64)
    exact = dist.MultivariateNormal(x.mean(0).double(), cov).log_prob(x[:20].double())
    torch.testing.assert_close(found.log_evidence, exact, rtol=0, atol=1e-4)
    # its guide is the exact posterior
    assert evidence.identity(vae.model, vae.guide, x[:20]).kl.abs().max() < 1e-6
    for q, message in ((0, "q to be"), (6, "q to be")):
        with pytest.raises(ValueError, match=message):
            ppca(x, q)


@pytest.mark.parametrize(
    ("q", "train", "test"),
    [(10, 182.1547, 186.0241)],  # q = 2 and 50 too: python -m reproduce.ppca
)
def test_ppca_of_mnist(data_dir, q, train, test):
    """DESIGN's reference values (Tipping & Bishop 1999), x = pixel / 255."""
    mnist = data.load("mnist", data_dir=data_dir, validation=0)
    vae = ppca(mnist.train, q)
    w = vae.likelihood.net.output.weight.detach().double()
    cov = w @ w.T + vae.likelihood.variance.value**2 * torch.eye(784, dtype=F64)
    mean = vae.likelihood.net.output.bias.detach().double()
    p = dist.MultivariateNormal(mean, cov, validate_args=False)
    for x, expected in ((mnist.train, train), (mnist.test, test)):
        parts = [p.log_prob(rows.flatten(1).double()) for rows in x.split(10_000)]
        assert torch.cat(parts).mean().item() == pytest.approx(expected, abs=2e-3)
    few = mnist.test[:2] if q == 50 else mnist.test[:10]
    found = evidence.linear_gaussian(vae.model, vae.guide, few)
    torch.testing.assert_close(
        found.log_evidence, p.log_prob(few.flatten(1).double()), rtol=0, atol=1e-3
    )


# The identity

SMOOTH = [
    (activation, d, likelihood, posterior, trained)
    for activation, d, likelihood, posterior, trained in itertools.product(
        ("tanh", "softplus"), (1, 2), ("bernoulli", "normal", "binomial"),
        ("mean-field-normal", "full-rank-normal"), (False, True),
    )
]  # fmt: skip


@pytest.mark.parametrize(("activation", "d", "likelihood", "posterior", "trained"), SMOOTH)
def test_identity(activation, d, likelihood, posterior, trained):
    vae, x = made(activation, d, likelihood, posterior, trained)
    found = evidence.identity(vae.model, vae.guide, x)
    assert found.residual.abs().max() <= 1e-6
    assert bool((found.kl > -1e-9).all())
    z = (found.elbo - found.elbo_sampled) / found.elbo_standard_error
    assert z.abs().max() < 4.5  # 4 data


def test_identity_in_three_dimensions():
    vae, x = made("tanh", 3, "bernoulli", n=2)
    assert evidence.identity(vae.model, vae.guide, x).residual.abs().max() <= 1e-6


@pytest.mark.parametrize("posterior", ["mean-field-normal", "full-rank-normal"])
def test_identity_with_kinks_lies_within_its_own_error(posterior):
    vae, x = made("relu", 2, "bernoulli", posterior, n=2)
    found = evidence.identity(vae.model, vae.guide, x)
    assert bool((found.residual.abs() <= found.error).all())
    assert found.error.max() < 0.05


@pytest.mark.parametrize("posterior", [posteriors.MeanFieldNormal, posteriors.FullRankNormal])
def test_identity_of_ppca(posterior):
    torch.manual_seed(0)
    x = torch.randn(300, 6) @ torch.randn(6, 8) + 0.3 * torch.randn(300, 8)
    vae = ppca(x, 5)
    torch.manual_seed(1)
    broken = VAE(vae.prior, vae.likelihood, posterior((8,), 5, nets.mlp(hidden=(8,))))
    found = evidence.identity(broken.model, broken.guide, x[:10])
    assert found.method == "linear-gaussian"
    assert found.residual.abs().max() <= 1e-6 and found.kl.min() > 0.1


def test_identity_of_a_discrete_latent():
    model, guide, x, mixture = discrete_mixture()
    found = evidence.identity(model, guide, x)
    assert found.residual.abs().max() <= 1e-9 and found.kl.min() > 1e-3
    torch.testing.assert_close(found.log_evidence, mixture.log_prob(x))


class OffByAHundredth(dist.Normal):
    def log_prob(self, value):
        return super().log_prob(value) + 0.01

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


class Off(posteriors.MeanFieldNormal):
    def distribution(self, params):
        q = super().distribution(params).base_dist
        return OffByAHundredth(q.loc, q.scale).to_event(1)


@pytest.mark.parametrize("likelihood", [likelihoods.Bernoulli, likelihoods.Normal])
def test_a_guide_whose_density_is_off_breaks_the_identity(likelihood):
    torch.manual_seed(0)
    hidden = () if likelihood is likelihoods.Normal else (16,)
    net = nets.mlp(hidden=hidden, activation="tanh")
    parts = priors.StandardNormal(1), likelihood(1, (8,), net)
    x = torch.ones(3, 8)
    good = VAE(*parts, posteriors.MeanFieldNormal((8,), 1, net))
    broken = VAE(*parts, Off((8,), 1, good.posterior.net))
    assert evidence.identity(good.model, good.guide, x).residual.abs().max() <= 1e-6
    assert evidence.identity(broken.model, broken.guide, x).residual.abs().min() > 1e-5


def test_identity_refuses_guides_it_cannot_integrate():
    model, _ = bimodal()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Laplace(x, 1.0).to_event(1))

    with pytest.raises(ValueError, match="one latent site, normal, .*; got z .*Independent"):
        evidence.identity(model, guide, torch.ones(2, 1, dtype=F64))


@pytest.mark.parametrize("prior", ["standard-normal", "mixture-of-normals"])
def test_the_three_forms_of_the_elbo_agree(prior):
    vae, x = made("tanh", 1, "bernoulli")
    vae = (
        VAE(priors.MixtureOfNormals(1, 3), vae.likelihood, vae.posterior) if "mix" in prior else vae
    )
    forms = [
        form(vae.model, vae.guide, x)
        for form in (
            evidence.elbo_of_joint, evidence.elbo_of_reconstruction, evidence.elbo_of_evidence,
        )
    ]  # fmt: skip
    for form in forms[1:]:
        torch.testing.assert_close(form, forms[0], rtol=0, atol=1e-7)


def test_the_forms_serve_float32_functions_too():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.tanh(), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))

    x = torch.tensor([[0.3], [1.2]])
    first, second = (
        form(model, guide, x) for form in (evidence.elbo_of_joint, evidence.elbo_of_reconstruction)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_recorder_measures_before_and_during_training():
    vae, x = made("tanh", 1, "bernoulli")
    recorder = evidence.IdentityRecorder(vae.model, vae.guide, x, every=2)
    fit(vae.model, vae.guide, x, epochs=5, lr=0.01, callbacks=[recorder])
    assert recorder.epochs == [0, 2, 4]
    means = [i.log_evidence.mean() for i in recorder.identities]
    assert means[2] > means[0]
    assert all(i.residual.abs().max() < 1e-6 for i in recorder.identities)
    with pytest.raises(ValueError, match="every to be a positive"):
        evidence.IdentityRecorder(vae.model, vae.guide, x, every=0)


def test_the_gap_of_iwae_falls_as_one_over_k():
    """log p(x) - E[L_K] is about var(w / p) / 2K; the control variate is mean(w) / p - 1."""
    from pyrovae import log_weights

    ks = [8, 16, 32, 64, 128, 256, 512]
    vae, x, log_evidence = linear_gaussian(d=1, n=1)
    vae.posterior.net.bias.data[0] += 0.05  # shifted
    vae.posterior.net.bias.data[1] += 0.35  # and wider than the posterior
    slopes = {}
    for name in ("wide", "narrow"):
        if name == "narrow":
            vae.posterior.net.bias.data[1] -= 0.9
        with torch.no_grad():
            log_w = log_weights(vae.model, vae.guide, x, num_particles=2**21)[:, 0] - log_evidence
        w = log_w.exp()
        if name == "wide":
            assert w.var() < 2
        gaps = []
        for k in ks:
            mean = w.reshape(-1, k).mean(1)
            gaps.append((mean - 1 - mean.log()).mean().clamp(min=1e-12))
        line = torch.stack(gaps).log(), torch.tensor(ks, dtype=F64).log()
        centred = line[1] - line[1].mean()
        slopes[name] = float((centred * line[0]).sum() / centred.square().sum())
    assert slopes["wide"] == pytest.approx(-1, abs=0.15)
    assert abs(slopes["narrow"] + 1) > 0.15  # it need not be -1 there
