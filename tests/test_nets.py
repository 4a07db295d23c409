import math

import pytest
import torch
from torch import nn

from pyrovae import nets


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
