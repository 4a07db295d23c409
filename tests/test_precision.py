"""bfloat16 where networks multiply, and nowhere else; what that does to the ELBO."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae import build, data, fit, log_weights, nets
from pyrovae.nets.precision import bf16_matmuls


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1234), dtype=dtype)


@pytest.mark.parametrize("factory", [nets.mlp((8,)), nets.gated_mlp((8,)), nets.conv((4,))])
def test_networks_are_rounded_gradients_too(factory):
    net = factory((1, 8, 8), (3,))
    x = normal(5, 1, 8, 8)
    exact = net(x)
    grad = torch.autograd.grad(exact.square().sum(), list(net.parameters()))
    with bf16_matmuls():
        rounded = net(x)
        rough = torch.autograd.grad(rounded.square().sum(), list(net.parameters()))
    for one, other in zip([rounded, *rough], [exact, *grad], strict=True):
        assert one.dtype == torch.float32
        error = (one - other).norm() / other.norm()
        assert 1e-5 < error < 0.05  # the least: it was rounded
    assert torch.equal(net(x), exact)


def test_densities_are_left_alone_and_so_is_float64():
    """Densities multiply matrices, too: those of mixtures."""
    vae = build(data_shape=(6,), latent_dim=2, prior="mixture-of-normals", hidden=(5,), seed=3)
    z, x = normal(7, 2), (normal(7, 6) > 0).float()
    likelihood = vae.likelihood(z)
    with bf16_matmuls():
        inside, density = vae.prior().log_prob(z), likelihood.log_prob(x)
    assert torch.equal(inside, vae.prior().log_prob(z)) and density.dtype == torch.float32
    assert torch.equal(density, likelihood.log_prob(x))
    double = vae.double()
    exact = double.likelihood(z.double()).log_prob(x.double())
    with bf16_matmuls():
        assert torch.equal(double.likelihood(z.double()).log_prob(x.double()), exact)


def test_it_stays_in_what_is_traced():
    net, x = nets.mlp((8,))((4,), (3,)), normal(5, 4)
    with bf16_matmuls():
        expected, graph = net(x), make_fx(net)(x)
    assert torch.equal(graph(x), expected) and not torch.equal(net(x), expected)
    plain = make_fx(net)(x)  # negative control
    assert not torch.equal(plain(x), expected)


def test_the_elbo_of_a_model_that_was_trained_so_moves_little():
    """Digits, with the same noise: by less than 0.2 nats a datum, 5 standard errors included."""
    digits = data.load("digits", values="levels")
    vae = build(
        data_shape=digits.data_shape, latent_dim=8, likelihood="binomial", hidden=(100,), seed=0,
        likelihood_options={"total_count": 16},
    )  # fmt: skip
    with bf16_matmuls():
        history = fit(vae.model, vae.guide, digits.train, epochs=5, compile="never")
    assert history["loss"][-1] < history["loss"][0]
    exact = log_weights(vae.model, vae.guide, digits.test, num_particles=5).mean(0)
    with bf16_matmuls():
        rounded = log_weights(vae.model, vae.guide, digits.test, num_particles=5).mean(0)
    change = (rounded - exact).double()
    error = change.std() / len(change) ** 0.5
    print(f"ELBO {exact.mean():.3f}, in bfloat16 {change.mean():+.4f} +- {error:.4f} nats")
    assert 0 < change.abs().max() and change.mean().abs() + 5 * error < 0.2
