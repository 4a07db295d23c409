import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from pyrovae import build, likelihoods, nets, posteriors, testing
from pyrovae.nets.convolutions import Image

LATENT = 3


@dataclass(frozen=True)
class Row:
    """A factory, the data it is for, its options, and what may stand after the data in a shape."""

    make: Callable[..., nets.NetFactory]
    data_shape: tuple[int, ...]
    options: dict = field(default_factory=dict)
    trailing: tuple[int, ...] = (256,)  # where the image is found from the right, none

    @property
    def id(self):
        return f"{self.make.__name__}-{'x'.join(map(str, self.data_shape))}"

    @property
    def factory(self):
        return self.make(**self.options)

    @property
    def x(self):
        return torch.rand(4, *self.data_shape)


def shaped(make, data_shape, **options):
    return Row(make, data_shape, {"data_shape": data_shape, **options})


ROWS = [
    Row(nets.mlp, (3, 2), {"hidden": (5, 4)}),
    Row(nets.gated_mlp, (3, 2), {"hidden": (5,)}),
    Row(nets.residual_mlp, (5,), {"hidden": (6, 6)}),
    Row(nets.residual_mlp, (2, 3), {"hidden": (6,), "activation": "gelu"}),
    shaped(nets.deep_set, (5,), hidden=(6, 4)),
    shaped(nets.deep_set, (4, 3), hidden=(6,), activation="tanh"),
    shaped(nets.conv, (28, 28), hidden=(3, 4)),
    shaped(nets.conv, (1, 32, 32), hidden=(3, 4)),
    shaped(nets.conv, (3, 32, 32), hidden=(3, 4)),
    shaped(nets.conv, (28, 20), hidden=(3, 4), kernel_size=5),
    shaped(nets.conv, (8, 8), hidden=(2, 3, 4, 5, 6), activation="elu"),  # down to 1 x 1, and on
    Row(nets.conv, (7, 5), {"hidden": (3,)}, trailing=()),
    shaped(nets.residual_conv, (8, 8), hidden=(3, 4)),
    shaped(nets.residual_conv, (3, 9, 6), hidden=(3,), blocks=2),
    Row(nets.residual_conv, (2, 6, 7), {"hidden": (3, 4), "weight_init": "he-normal"}, trailing=()),
]
by_id = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)


def without_row():
    """The exported factories that no row names."""
    return set(nets.__all__) - {row.make.__name__ for row in ROWS}


def test_every_factory_has_a_row():
    assert not without_row(), f"add a row to ROWS for {without_row()}"


def test_a_new_factory_without_a_row_is_found(monkeypatch):
    """Negative control."""
    monkeypatch.setattr(nets, "__all__", [*nets.__all__, "new"])
    assert without_row() == {"new"}


@by_id
def test_every_shape_that_parts_ask_for(row):
    data, z = row.data_shape, (LATENT,)
    pairs = [
        *itertools.product([data, (2, *data)], [(2, LATENT), (9,)]),  # with a mask, and without
        *itertools.product([z], [data, (2, *data), (3, 4, *data), (*data, *row.trailing)]),
    ]
    for in_shape, out_shape in pairs:
        net = nets.connect(row.factory, in_shape, out_shape)
        assert net.output.bias.numel() == math.prod(out_shape)
        x = torch.rand(2, 1, 3, *in_shape)
        y = net(x)
        assert y.shape == (2, 1, 3, *out_shape)
        torch.testing.assert_close(net(x[1, 0]), y[1, 0])
        assert net(x[:0]).shape == (0, 1, 3, *out_shape)


@by_id
def test_laws_of_parts_under_it(row):
    """Left dimensions, rows alone, gradients, the state dict, float32 and float64."""
    parts = [
        (likelihoods.Bernoulli(LATENT, row.data_shape, row.factory), None),
        (posteriors.MeanFieldNormal(row.data_shape, LATENT, row.factory), row.x),
        (
            posteriors.MeanFieldNormal(row.data_shape, LATENT, row.factory, missing=True),
            row.x.masked_fill(row.x < 0.3, math.nan),
        ),
    ]
    for part, x in parts:
        report = testing.check_part(part, x=x)
        assert report.ok, str(report)


@by_id
@pytest.mark.parametrize(
    ("cls", "options", "top"),
    [
        (likelihoods.Bernoulli, {}, 1),
        (likelihoods.Binomial, {"total_count": 16}, 16),
        (likelihoods.Normal, {"variance": likelihoods.Predicted()}, 1),
    ],
    ids=["bernoulli", "binomial", "normal"],
)
def test_decoding_starts_at_the_mean(row, cls, options, top):
    part = cls(LATENT, row.data_shape, row.factory, **options).double()
    for name, p in part.net.named_parameters():
        if name != "output.bias":
            p.data.zero_()
    mean = top * torch.linspace(0.2, 0.8, math.prod(row.data_shape), dtype=torch.float64)
    x = mean.reshape(row.data_shape).expand(3, *row.data_shape)
    part.start_at_mean(x)
    torch.testing.assert_close(part(torch.randn(3, LATENT, dtype=torch.float64)).mean, x)


class OneBiasForAll(nn.Sequential):
    @property
    def output(self):
        return self[-1]


def test_a_bias_that_entries_share_starts_nowhere():
    """Negative control: a decoder whose last bias is its convolution's."""
    net = OneBiasForAll(nn.Linear(LATENT, 20), nn.Unflatten(1, (1, 5, 4)), nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="last linear map is its attribute `output`"):
        likelihoods.Bernoulli(LATENT, (1, 5, 4), net).start_at_mean(torch.rand(3, 1, 5, 4))


@by_id
def test_weights_start_as_named(row):
    net = row.make(**row.options | {"weight_init": "glorot-normal"})((LATENT,), row.data_shape)
    plain = row.make(**row.options | {"weight_init": "torch"})((LATENT,), row.data_shape)
    layers = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert layers
    for name, layer in layers:
        bias = plain.get_submodule(name).bias
        assert layer.bias is None or not layer.bias.any()
        assert bias is None or bias.any()


@pytest.mark.parametrize("name", ["conv", "residual_conv", "residual-mlp", "deep-set"])
def test_build_finds_it(name):
    vae = build(data_shape=(8, 8), latent_dim=LATENT, net=name, net_options={"activation": "elu"})
    assert vae.sample(2).shape == (2, 8, 8)
    assert vae.encode(torch.rand(2, 8, 8)).batch_shape == (2,)
    same = build(**vae.config)
    torch.testing.assert_close(same.state_dict(), vae.state_dict(), rtol=0, atol=0)


def test_the_decoder_is_the_encoder_backwards():
    vae = build(data_shape=(28, 20), net="conv", hidden=(5, 6, 7))
    encoder, decoder = vae.posterior.net, vae.likelihood.net
    assert decoder.smallest == (7, 4, 3)
    maps = [m for m in encoder.hidden if isinstance(m, nn.Conv2d)]
    back = [m for m in decoder.hidden if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in maps] == [(1, 5), (5, 6), (6, 7)]
    assert [(m.in_channels, m.out_channels) for m in back] == [(7, 6), (6, 5), (5, 1)]
    sizes = [m.size for m in decoder.hidden if isinstance(m, nn.Upsample)]
    assert sizes == [(7, 5), (14, 10), (28, 20)]


def test_what_is_around_an_image_is_channels():
    image = Image((2,), (3, 4), (5,))
    x = torch.randn(6, 2, 3, 4, 5)
    maps = image.to_maps(x)
    assert maps.shape == (6, 10, 3, 4)
    for a, b in itertools.product(range(2), range(5)):
        assert torch.equal(maps[:, 5 * a + b], x[:, a, :, :, b])
    assert torch.equal(image.from_maps(maps), x)


def convolved(layer, x, stride):
    """sum_ij W_ij x[stride r + i - m, stride c + j - m] + b by loops, zero outside."""
    weight = layer.weight.detach().numpy()
    m = weight.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (m, m), (m, m)))
    rows, columns = (-(-n // stride) for n in x.shape[-2:])
    out = np.zeros((len(x), len(weight), rows, columns))
    for r, c in itertools.product(range(rows), range(columns)):
        patch = padded[:, :, stride * r :, stride * c :][:, :, : 2 * m + 1, : 2 * m + 1]
        out[:, :, r, c] = np.einsum("oipq,nipq->no", weight, patch)
    return out if layer.bias is None else out + layer.bias.detach().numpy()[:, None, None]


def linear(layer, x):
    out = x @ layer.weight.detach().numpy().T
    return out if layer.bias is None else out + layer.bias.detach().numpy()


@pytest.mark.parametrize("make", [nets.conv, nets.residual_conv])
def test_convolutions_are_their_formulas(make):
    torch.manual_seed(1)
    factory = make(hidden=(3,), data_shape=(2, 5, 4), activation="tanh")
    encoder, decoder = factory((2, 5, 4), (6,)).double(), factory((4,), (2, 5, 4)).double()
    decoder.output.bias.data.normal_()

    def blocks(h, layers):
        for _, one, _, two in (m.residual for m in layers if hasattr(m, "residual")):
            h = h + convolved(two, np.tanh(convolved(one, np.tanh(h), 1)), 1)
        return np.tanh(h)

    x = np.random.default_rng(0).normal(size=(3, 2, 5, 4))
    h = blocks(convolved(encoder.hidden[0], x, 2), encoder.hidden)
    expected = linear(encoder.output, h.reshape(3, -1))
    np.testing.assert_allclose(encoder(torch.tensor(x)).detach().numpy(), expected)

    z = np.random.default_rng(1).normal(size=(3, 4))
    h = blocks(linear(decoder.input, z).reshape(3, 3, 3, 2), decoder.hidden)
    wide = h[:, :, [0, 0, 1, 1, 2]][:, :, :, [0, 0, 1, 1]]
    bias = decoder.output.bias.detach().numpy().reshape(2, 5, 4)
    expected = convolved(decoder.hidden[-1], wide, 1) + bias
    np.testing.assert_allclose(decoder(torch.tensor(z)).detach().numpy(), expected)


def normalised(layer, h):
    centred = h - h.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(centred.var(-1, keepdims=True) + layer.eps)
    return scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def test_residual_mlp_is_its_formula():
    net = nets.residual_mlp(hidden=(6, 6), activation="tanh")((4,), (2, 3)).double()
    x = np.random.default_rng(0).normal(size=(5, 4))
    h = linear(net.input, x)
    for block in net.hidden[:2]:
        norm, one, _, two = block.residual
        h = h + linear(two, np.tanh(linear(one, normalised(norm, h))))
    expected = linear(net.output, np.tanh(normalised(net.hidden[2], h))).reshape(5, 2, 3)
    np.testing.assert_allclose(net(torch.tensor(x)).detach().numpy(), expected)


def perceptron(layers, x):
    for layer in layers:
        x = linear(layer, x) if isinstance(layer, nn.Linear) else np.tanh(x)
    return x


@pytest.mark.parametrize("data_shape", [(3,), (3, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_deep_set_is_its_formula(data_shape, masked):
    """Element by element: those observed, with their masks and embeddings."""
    factory = nets.deep_set(hidden=(5,), data_shape=data_shape, activation="tanh")
    net = factory((2, *data_shape) if masked else data_shape, (2, 4)).double()
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(6, *data_shape)), rng.integers(0, 2, (6, *data_shape)) * 1.0
    given = np.stack([x, mask], 1) if masked else x
    expected = []
    for values, seen in zip(x.reshape(6, 3, -1), mask.reshape(6, 3, -1), strict=True):
        total = np.zeros(5)
        for m in range(3):
            element = [*(values[m] * seen[m]), *seen[m]] if masked else [*values[m]]
            if len(data_shape) == 1:
                element += net.embedding[m].tolist()
            if seen[m].any() or not masked:
                total += perceptron(net.phi, np.array(element))
        expected.append(linear(net.output, perceptron(net.rho, total / 3)).reshape(2, 4))
    np.testing.assert_allclose(net(torch.tensor(given)).detach().numpy(), np.stack(expected))


def test_deep_set_decoder_is_its_formula():
    net = nets.deep_set(hidden=(5,), data_shape=(3, 2), activation="tanh")((4,), (7, 3, 2, 6))
    net.double().output.bias.data.normal_()
    z = np.random.default_rng(0).normal(size=(5, 4))
    got = net(torch.tensor(z)).detach().numpy()
    for n, m in itertools.product(range(5), range(3)):
        element = perceptron(net.psi, np.concatenate([z[n], net.embedding[m].detach().numpy()]))
        bias = net.output.bias.detach().numpy().reshape(7, 3, 2, 6)[:, m]
        np.testing.assert_allclose(got[n, :, m], element.reshape(7, 2, 6) + bias)


def test_elements_of_a_set_have_no_order():
    x, order = torch.randn(4, 5, 3), torch.tensor([2, 0, 4, 1, 3])
    net = nets.deep_set(hidden=(6,), data_shape=(5, 3))((5, 3), (2, 2))
    torch.testing.assert_close(net(x[:, order]), net(x))
    both = torch.stack([x, (x > 0).float()], 1)
    net = nets.deep_set(hidden=(6,), data_shape=(5, 3))((2, 5, 3), (2, 2))
    torch.testing.assert_close(net(both[:, :, order]), net(both))


def test_columns_of_a_table_have_an_order():
    """Negative control: columns are told apart, and another net sees the order of elements."""
    order = torch.tensor([2, 0, 4, 1, 3])
    x = torch.randn(4, 5)
    net = nets.deep_set(hidden=(6,), data_shape=(5,))((5,), (2, 2))
    assert not torch.allclose(net(x[:, order]), net(x))
    x = torch.randn(4, 5, 3)
    net = nets.residual_mlp(hidden=(6,))((5, 3), (2, 2))
    assert not torch.allclose(net(x[:, order]), net(x))


@pytest.mark.parametrize("data_shape", [(5,), (4, 3)])
def test_what_is_missing_has_no_influence(data_shape):
    net = nets.deep_set(hidden=(6,), data_shape=data_shape)((2, *data_shape), (2, 2))
    x, mask = torch.randn(8, *data_shape), (torch.rand(8, *data_shape) < 0.5).float()
    y = net(torch.stack([x, mask], 1))
    assert torch.equal(net(torch.stack([x + 9 * (1 - mask), mask], 1)), y)
    # the negative control: what is observed has an influence, and so has being observed
    assert not torch.allclose(net(torch.stack([x + 9 * mask, mask], 1)), y)
    assert not torch.allclose(net(torch.stack([x, torch.ones_like(x)], 1)), y)


@pytest.mark.parametrize("make", [nets.mlp, nets.gated_mlp])
@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_shapes(make, hidden):
    net = make(hidden=hidden)((3, 2), (2, 4))
    assert net(torch.zeros(6, 7, 3, 2)).shape == (6, 7, 2, 4)
    assert net(torch.zeros(3, 2)).shape == (2, 4)


def test_mlp_is_its_formula():
    net = nets.mlp(hidden=(5,), activation="tanh")((3,), (2,))
    x = torch.randn(4, 3)
    first = net.hidden[0]
    h = torch.tanh(x @ first.weight.T + first.bias)
    torch.testing.assert_close(net(x), h @ net.output.weight.T + net.output.bias)


def test_gated_mlp_is_linear_times_sigmoid_of_linear():
    net = nets.gated_mlp(hidden=(5,))((3,), (2,))
    net.hidden[0].bias.data.normal_()
    x = torch.randn(4, 3)
    (w, v), (b, c) = net.hidden[0].weight.chunk(2), net.hidden[0].bias.chunk(2)
    h = (x @ w.T + b) * torch.sigmoid(x @ v.T + c)
    torch.testing.assert_close(net(x), h @ net.output.weight.T + net.output.bias)


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("he-normal", math.sqrt(2 / 400)),
        ("he-uniform", math.sqrt(2 / 400)),
        ("glorot-normal", math.sqrt(2 / (400 + 300))),
        ("glorot-uniform", math.sqrt(2 / (400 + 300))),
        ("torch", math.sqrt(1 / 3 / 400)),
    ],
)
@pytest.mark.parametrize("make", [nets.mlp, nets.gated_mlp])
def test_weights_have_the_named_spread(make, name, std):
    torch.manual_seed(0)
    layer = make(hidden=(300,), weight_init=name)((400,), (1,)).hidden[0]
    # sd of 120,000 draws: relative error 0.2 %, 0.3 % for a kurtosis of 3
    assert layer.weight.std().item() == pytest.approx(std, rel=0.015)
    assert (name == "torch") != bool((layer.bias == 0).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nets.mlp(activation="rleu"), "activation to be one of elu, .*; got 'rleu'"),
        (lambda: nets.mlp(hidden=(0,)), r"positive whole numbers; got \(0,\)"),
        (lambda: nets.mlp(hidden=(2.5,)), "positive whole numbers"),
        (lambda: nets.gated_mlp(weight_init="he"), "weight_init to be one of torch, .*; got 'he'"),
        (lambda: nets.connect(nn.Linear(3, 5), (3,), (4,)), r"to \(2, 4\); got \(2, 5\)"),
        (lambda: nets.connect(nn.Linear(3, 5), (2,), (5,)), r"takes \(N, 2\); Linear refused it"),
        (lambda: nets.connect(lambda a, b: 3, (2,), (5,)), "which made a int"),
        (lambda: nets.conv(hidden=()), r"hidden to hold 1 number\(s\) or more; got none"),
        (lambda: nets.conv(hidden=(8, -1)), "positive whole numbers"),
        (lambda: nets.conv(kernel_size=4), "kernel_size to be an odd whole number; got 4"),
        (lambda: nets.conv(activation="rleu"), "activation to be one of"),
        (lambda: nets.conv(weight_init="he"), "weight_init to be one of"),
        (lambda: nets.conv(data_shape=(20,)), r"conv takes images: .*got \(20,\): take nets.mlp"),
        (lambda: nets.residual_conv(blocks=-1), "blocks to be a whole number >= 0; got -1"),
        (
            lambda: nets.conv()((20,), (2, 5)),
            r"conv takes images: .*\(20,\) -> \(2, 5\), with an image in neither",
        ),
        (
            lambda: posteriors.MeanFieldNormal(
                (8, 8), 3, nets.conv(data_shape=(8, 8)), context_dim=2
            ),
            r"expected \(8, 8\) in one .* got \(66,\) -> \(2, 3\).*context",
        ),
        (lambda: nets.residual_conv()((8, 8), (8, 8)), "with an image in both: give data_shape"),
        (lambda: nets.residual_mlp(hidden=(8, 9)), r"one width, once for each block.*got \(8, 9\)"),
        (lambda: nets.residual_mlp(hidden=()), "or more; got none"),
        (lambda: nets.deep_set(), r"data_shape \(D,\) or \(M, F\); got None"),
        (lambda: nets.deep_set(data_shape=(1, 2, 3)), r"got \(1, 2, 3\)"),
        (lambda: nets.deep_set(data_shape=(3,), embedding_dim=0), "embedding_dim to be a positive"),
        (
            lambda: nets.deep_set(data_shape=(3,))((4,), (2, 2)),
            r"data of shape \(3,\) as the network's input.*got \(4,\) -> \(2, 2\)",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_connect_takes_a_module_and_leaves_its_mode():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = module[1].running_mean.clone()
    assert nets.connect(module, (3,), (4,)) is module
    assert module[1].training
    assert torch.equal(module[1].running_mean, before)


def test_evaluating_restores_every_mode():
    module = nn.Sequential(nn.Dropout(), nn.Dropout())
    module[1].eval()
    with pytest.raises(KeyError), nets.evaluating(module):
        assert not module[0].training
        raise KeyError
    assert (module[0].training, module[1].training) == (True, False)
