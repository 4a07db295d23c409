"""BayesianDecoderVAE: a conjugate case in closed form, and batches against all data."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy.stats import multivariate_normal
from torch import nn

from pyrovae import (
    build,
    evidence,
    fit,
    likelihoods,
    log_weights,
    nets,
    objectives,
    posteriors,
    priors,
)
from pyrovae.distributions import diagonal_normal
from pyrovae.optimise import cosine
from pyrovae.pairs import BayesianDecoderVAE
from pyrovae.testing import check_pair
from pyrovae.training.experiment import prepare

N, SCALE, NOISE = 20, 1.3, 0.5  # data, s of the weights, sigma of the data


class Apart(nn.Module):
    """x = (V z, W c): a known map of z, and beside it a linear regression on the context c."""

    def __init__(self):
        super().__init__()
        self.known = nn.Linear(1, 2, bias=False)
        self.known.weight.requires_grad_(False)
        self.output = nn.Linear(3, 2, bias=False)

    def forward(self, zc):
        return torch.cat([self.known(zc[..., :1]), self.output(zc[..., 1:])], -1)


class ExactOfZ(nn.Module):
    """q(z|x) = N(V'x_a / (V'V + sigma^2), sigma^2 / (V'V + sigma^2)), x_a the first half of x."""

    latent_dim = 1

    def __init__(self, known):
        super().__init__()
        self.known = known

    def forward(self, x, c):
        v = self.known.weight[:, 0]
        precision = v @ v + NOISE**2
        loc = (x[:, :2] @ v / precision).unsqueeze(-1)
        return diagonal_normal(loc, (NOISE**2 / precision).sqrt().expand_as(loc))


def conjugate(posterior=None, num_data=N):
    """The pair, in float64."""
    net = Apart()
    pair = BayesianDecoderVAE(
        priors.StandardNormal(1),
        likelihoods.Normal(1, (4,), net, context_dim=3, variance=likelihoods.Fixed(NOISE)),
        ExactOfZ(net.known) if posterior is None else posterior,
        num_data=num_data, layers="last", weight_scale=SCALE,
    ).double()  # fmt: skip
    generator = torch.Generator().manual_seed(1234)
    with torch.no_grad():
        for p in pair.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return pair


def regression(n=N):
    """x (N, 4) and c (N, 3), of orthogonal columns: then the weights' posterior is diagonal."""
    rng = np.random.default_rng(1234)
    c = np.linalg.qr(rng.standard_normal((n, 3)))[0] * np.sqrt(n) * np.array([1.0, 0.5, 2.0])
    x = rng.standard_normal((n, 4)) + np.pad(c @ rng.standard_normal((3, 2)), ((0, 0), (2, 0)))
    return torch.from_numpy(x), torch.from_numpy(c)


def log_evidence(pair, x, c):
    """log p(x_1, ..., x_N): of x_a a normal a datum, of each column of x_b a normal over the data.

    x_a ~ N(0, V V' + sigma^2 I),  column of x_b ~ N(0, s^2 C C' + sigma^2 I).
    """
    v, x, c = pair.likelihood.net.known.weight.numpy(), x.numpy(), c.numpy()
    own = multivariate_normal(np.zeros(2), v @ v.T + NOISE**2 * np.eye(2)).logpdf(x[:, :2]).sum()
    shared = multivariate_normal(np.zeros(len(c)), SCALE**2 * c @ c.T + NOISE**2 * np.eye(len(c)))
    return own + shared.logpdf(x[:, 2:].T).sum()


def set_exactly(pair, x, c):
    """Give q(W) the posterior's moments: precision 1/s^2 + c_k'c_k / sigma^2, mean by x'c."""
    precision = SCALE**-2 + c.square().sum(0) / NOISE**2
    with torch.no_grad():
        pair.likelihood.net.output.weight.copy_(x[:, 2:].T @ c / NOISE**2 / precision)
        pair.log_scale.copy_(-0.5 * precision.log().repeat(2))


def losses(pair, elbo, n, *batch):
    return -torch.tensor([elbo.loss(pair.model, pair.guide, *batch) for _ in range(n)]).double()


# The conjugate case


def test_with_the_exact_guide_every_draw_gives_the_log_evidence():
    pair, (x, c) = conjugate(), regression()
    expected = log_evidence(pair, x, c)
    before = losses(pair, Trace_ELBO(), 20, x, c)
    assert before.mean() < expected - 10 and before.std() > 1  # negative control
    set_exactly(pair, x, c)
    for _ in range(20):
        loss = Trace_ELBO().differentiable_loss(pair.model, pair.guide, x, c)
        assert abs(loss.item() + expected) <= 1e-8


def test_training_reaches_the_log_evidence():
    """To half a nat of -171: at the optimum the bound is the evidence and its estimate constant."""
    x, c = regression()
    pair = conjugate(posteriors.MeanFieldNormal((4,), 1, nets.mlp(hidden=()), context_dim=3))
    with torch.no_grad():
        pair.log_scale.fill_(math.log(0.01))
    expected = log_evidence(pair, x, c)
    assert losses(pair, Trace_ELBO(), 100, x, c).mean() < expected - 10  # negative control
    fit(pair.model, pair.guide, (x, c), objective=Trace_ELBO(), epochs=500, batch_size=N, lr=0.05,
        schedule=cosine)  # fmt: skip
    found = losses(pair, Trace_ELBO(), 400, x, c)
    assert expected - 0.5 < found.mean() < expected + 4 * found.std() / 20
    exact = conjugate()
    set_exactly(exact, x, c)
    torch.testing.assert_close(pair.weight_mean(), exact.weight_mean(), rtol=0, atol=0.05)
    torch.testing.assert_close(pair.log_scale, exact.log_scale, rtol=0, atol=0.15)


# Batches


def batched_elbo(pair, rows, w_noise, z_noise, x, c):
    """The ELBO's estimate by some rows, at given noise, and its gradient."""
    w = pair.weight_mean() + pair.log_scale.exp() * w_noise
    q = pair.posterior(x[rows], c[rows])
    values = {"weights": w, "z": q.mean + q.stddev * z_noise[rows]}
    ours, theirs = (
        poutine.trace(poutine.condition(f, values)).get_trace(x[rows], c[rows])
        for f in (pair.model, pair.guide)
    )
    elbo = ours.log_prob_sum() - theirs.log_prob_sum()
    trained = [p for p in pair.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(elbo, trained)
    return elbo.detach(), torch.cat([g.flatten() for g in gradients])


def over_a_partition(pair, x, c):
    """(ELBO and gradient by all rows, their means over ten batches), at common noise."""
    generator = torch.Generator().manual_seed(7)
    w_noise, z_noise = (torch.randn(*s, generator=generator).double() for s in ((6,), (len(x), 1)))
    whole = batched_elbo(pair, slice(None), w_noise, z_noise, x, c)
    order = torch.randperm(len(x), generator=generator)
    parts = [batched_elbo(pair, rows, w_noise, z_noise, x, c) for rows in order.chunk(10)]
    means = [torch.stack(t).mean(0) for t in zip(*parts, strict=True)]
    return whole, means


def test_the_mean_over_the_batches_of_a_partition_is_all_data():
    pair, (x, c) = conjugate(num_data=50), regression(50)
    for found, expected in zip(*over_a_partition(pair, x, c), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_without_the_size_of_all_data_it_is_not(monkeypatch):
    """Negative control: a plate of the batch alone, whether or not the sum is scaled up."""
    pair, (x, c) = conjugate(num_data=50), regression(50)
    monkeypatch.setattr(pair, "_plate", lambda x: pyro.plate("data", len(x)))
    (whole, gradient), (mean, mean_gradient) = over_a_partition(pair, x, c)
    for factor in (1, 10):
        assert abs(factor * mean - whole) > 1
        assert (factor * mean_gradient - gradient).norm() > 1e-3 * gradient.norm()


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_random_tenths_give_the_elbo_and_gradient_of_all_data(elbo):
    """Means of 200 and of 50 draws, within 4 standard errors: one seed in 4,000 fails."""
    pair, (x, c) = conjugate(num_data=50), regression(50)
    set_exactly(pair, x, c)
    with torch.no_grad():  # off the optimum, where the gradient is 0
        pair.likelihood.net.output.weight.add_(0.3)
    trained = [pair.likelihood.net.output.weight, pair.log_scale]

    def drawn(n, rows):
        found = []
        for _ in range(n):
            some = rows()
            loss = elbo().differentiable_loss(pair.model, pair.guide, x[some], c[some])
            gradients = torch.autograd.grad(loss, trained)
            found.append([loss.item(), *(g.sum().item() for g in gradients)])
        return torch.tensor(found)

    def tenth():
        return torch.randperm(50)[:5]

    torch.manual_seed(11)
    some, whole = drawn(200, tenth), drawn(50, lambda: slice(None))
    error = (some.var(0) / len(some) + whole.var(0) / len(whole)).sqrt()
    assert ((some.mean(0) - whole.mean(0)).abs() < 4 * error).all()
    pair.num_data = 5  # negative control
    assert ((drawn(200, tenth).mean(0) - whole.mean(0)).abs() > 4 * error)[:2].all()


# What is latent, and what is trained


def small(layers="all", likelihood="bernoulli", **options):
    return build(
        data_shape=(3,), latent_dim=2, hidden=(4,), pair="bayesian-decoder-vae",
        likelihood=likelihood, pair_options={"num_data": 10, "layers": layers}, **options,
    )  # fmt: skip


def bits(n=6):
    return (torch.rand(n, 3, generator=torch.Generator().manual_seed(1234)) > 0.5).float()


@pytest.mark.parametrize(("layers", "size"), [("all", 2 * 4 + 4 + 4 * 3 + 3), ("last", 4 * 3 + 3)])
@pytest.mark.parametrize("likelihood", ["bernoulli", "normal", "masked:normal"])
def test_drawn_weights_take_the_place_of_the_parameters(layers, size, likelihood):
    """Given W the model has gradients of the other parameters alone, such as a shared sigma."""
    pair, x = small(layers, likelihood), bits()
    assert pair.weight_mean().shape == pair.log_scale.shape == (size,)
    w = torch.zeros(size)
    w[-3:] = torch.tensor([1.0, 2.0, 3.0])
    pair.zero_grad()
    values = {"weights": w, "z": torch.ones(6, 2, requires_grad=True)}
    trace = poutine.trace(poutine.condition(pair.model, values)).get_trace(x)
    trace.log_prob_sum().backward()
    latent = {id(p) for p in pair._latent().values()}
    inside = getattr(pair.likelihood, "likelihood", pair.likelihood)
    for name, p in inside.named_parameters():
        outside = name == "s" or (layers == "last" and "hidden" in name)
        assert (id(p) in latent) != outside and (p.grad is not None) == outside
    expected = torch.tensor([1.0, 2.0, 3.0])  # all weights 0 but the last map's bias
    expected = expected.sigmoid() if likelihood == "bernoulli" else expected
    torch.testing.assert_close(pair.decode(w, values["z"]).mean, expected.expand(6, 3))


def test_every_trained_parameter_is_one_of_the_pairs_own():
    pair = small("last")
    with poutine.trace(param_only=True) as seen:
        pair.guide(bits())
        pair.model(bits())
    own = {id(p) for p in pair.parameters()}
    store = pyro.get_param_store()
    found = [id(store[name].unconstrained()) for name in seen.trace.nodes]
    assert set(found) == own and len(found) == len(own)


def test_the_kl_of_the_weights_counts_once():
    """ELBO / num_data falls by KL(q(W) || p(W)) / num_data below the local pair's, sigma -> 0."""
    pair, x = small(), bits(10)
    with torch.no_grad():
        pair.log_scale.fill_(math.log(1e-7))
    mean, scale = pair.weight_mean().detach().double(), 1e-7
    kl = (0.5 * (mean.square() + scale**2 - 1) - math.log(scale)).sum().item()
    torch.manual_seed(2)
    found = losses(pair, TraceMeanField_ELBO(), 1, x)
    torch.manual_seed(2)
    torch.randn(len(mean))  # of the weights
    local = losses(pair.local, TraceMeanField_ELBO(), 1, x)
    assert float(local - found) == pytest.approx(kl, rel=1e-5)


# Figures of a datum


def test_figures_of_a_datum_are_refused_and_those_of_local_are_a_vaes():
    pair, x = small(), bits()
    refusing = log_weights, evidence.iwae, evidence.exact, objectives.IWAE().loss
    for function in refusing:
        with pytest.raises(ValueError, match="site 'weights': in the model it stands outside the"):
            function(pair.model, pair.guide, x)
    with pytest.raises(ValueError, match="of one VAE made of parts"):
        objectives.ManualELBO().loss(pair.model, pair.guide, x)
    local = pair.local
    assert check_pair(local.model, local.guide, x).ok
    vae = build(data_shape=(3,), latent_dim=2, hidden=(4,))  # of the same seed
    expected = log_weights(vae.model, vae.guide, x, num_particles=5)
    assert torch.equal(log_weights(local.model, local.guide, x, num_particles=5), expected)
    assert torch.equal(pair.reconstruct(x), vae.reconstruct(x))
    fit(pair.model, pair.guide, x, epochs=2)
    trained = log_weights(pair.local.model, pair.local.guide, x, num_particles=5)
    assert not torch.isclose(trained, expected).any()  # its weights are the pair's own


def test_samples_share_one_draw_of_the_weights():
    pair = small("last", "normal")
    with torch.no_grad():
        pair.likelihood.net.output.weight.zero_()
        pair.log_scale[: 4 * 3].fill_(-50.0)
        pair.log_scale[4 * 3 :].fill_(2.0)  # only the bias varies
    one, other = pair.sample(5, mean=True), pair.sample(5, mean=True, seed=1)
    torch.testing.assert_close(one, one[:1].expand(5, 3))
    assert ((one - other).abs()[0] > 1e-3).all()


def test_the_command_line_says_how_many_data_there_are():
    prepared = prepare(
        data="digits", data_dir=None, download=False, binarize="none", dequantize=False,
        standardize=False, validation=None, prior="standard-normal", likelihood=None,
        posterior="mean-field-normal", objective="trace", latent_dim=2, prior_options={},
        likelihood_options={}, posterior_options={}, epochs=1, batch_size=100, lr=1e-3, seed=0,
        pair="bayesian-decoder-vae", pair_options={"layers": "last"}, hidden=(8,),
    )  # fmt: skip
    assert prepared.vae.num_data == len(prepared.data.train) > 1000
    told = {"num_data": prepared.vae.num_data, "layers": "last"}
    assert prepared.config["build"]["pair_options"] == told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"num_data, how many training data .* got None: build"),
        ({"num_data": 0}, "got 0"),
        ({"num_data": 5, "layers": "first"}, "expected layers to be one of all, last; got 'first'"),
        ({"num_data": 5, "weight_scale": 0.0}, "weight_scale to be a positive number; got 0.0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        build(data_shape=(3,), latent_dim=2, pair="bayesian-decoder-vae", pair_options=options)


def test_a_network_without_a_last_map_is_refused():
    net = nn.Sequential(nn.Linear(2, 3))
    parts = priors.StandardNormal(2), likelihoods.Bernoulli(2, (3,), net)
    posterior = posteriors.MeanFieldNormal((3,), 2)
    assert BayesianDecoderVAE(*parts, posterior, num_data=5).weight_mean().shape == (9,)
    with pytest.raises(ValueError, match="got Sequential: take layers='all'"):
        BayesianDecoderVAE(*parts, posterior, num_data=5, layers="last")
