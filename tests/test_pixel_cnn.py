"""PixelCNN: exact on small images; a pixel sees what came before it, all of that, and no more."""

import copy
import itertools

import pytest
import scipy.stats
import torch
from cases.pixels import every_image
from sklearn.datasets import load_digits

from pyrovae import build, fit, likelihoods, log_weights, nets, testing
from pyrovae.distributions import Autoregressive, seeded
from pyrovae.likelihoods.pixels import Before

NET = nets.mlp(hidden=(7,), activation="tanh")
SMALL = {"channels": 4, "layers": 2, "kernel_size": 3}
LEVEL = 1e-4  # of the chi-square tests: seeds are fixed, so a pass stays one


def pixel_cnn(shape, **options):
    with seeded(3):
        part = likelihoods.PixelCNN(2, shape, NET, **SMALL | options).double()
        for p in part.pixel_net.parameters():
            p.data.mul_(2)  # pixels that depend on one another strongly
    return part


def leaky(part):
    """The part with a first mask of type B, under which a pixel is told its own value."""
    part = copy.deepcopy(part)
    first = part.pixel_net.layers[0]
    before, after = first.horizontal.in_channels, first.horizontal.out_channels
    reach = first.vertical.kernel_size[1] // 2
    first.horizontal = Before(before, after, reach, rows=False, strict=False).double()
    return part


@pytest.fixture
def z():
    return torch.randn(3, 2, dtype=torch.float64)


SHAPES = [((2, 2), 2), ((1, 3), 2), ((3, 1), 3), ((2, 1, 2), 3), ((3, 2, 1), 2)]
by_shape = pytest.mark.parametrize(("shape", "levels"), SHAPES)


def total(part, z, shape, levels):
    x = every_image(shape, levels)
    with torch.no_grad():
        return part(z).log_prob(x.unsqueeze(1).expand(-1, len(z), *shape)).exp()


@by_shape
def test_probabilities_of_all_images_sum_to_one(shape, levels, z):
    part = pixel_cnn(shape, num_levels=levels)
    torch.testing.assert_close(total(part, z, shape, levels).sum(0), torch.ones_like(z[:, 0]))
    wrong = total(leaky(part), z, shape, levels).sum(0)  # the negative control
    assert (wrong - 1).abs().min() > 1e-3


@by_shape
def test_draws_have_the_enumerated_probabilities(shape, levels, z):
    part, n = pixel_cnn(shape, num_levels=levels), 4000
    p = total(part, z, shape, levels)
    with seeded(1):
        x = part(z).sample((n,))
    place = levels ** torch.arange(x[0, 0].numel() - 1, -1, -1)
    counts = [torch.bincount(i, minlength=len(p)) for i in (x.flatten(2) @ place.double()).long().T]
    for row, count in enumerate(counts):
        assert scipy.stats.chisquare(count, n * p[:, row]).pvalue > LEVEL
    # the negative control: the draws of one z under another's probabilities
    assert scipy.stats.chisquare(counts[0], n * p[:, 1]).pvalue < LEVEL


def jacobian(part, x, z):
    """sum over levels of |d logits_i / d x_j|: (pixels, pixels), in raster order."""
    net = part.pixel_net
    s = part.params(z)
    rows = torch.autograd.functional.jacobian(lambda t: net(t, s)[0], x)  # (L, H, W, 1, 1, H, W)
    pixels = x.numel()
    return rows.reshape(net.num_levels, pixels, pixels).abs().sum(0)


@pytest.mark.parametrize(("layers", "kernel_size"), [(1, 3), (3, 3), (2, 5)])
def test_a_pixel_sees_those_before_it_and_no_other(layers, kernel_size, z):
    """All of them in reach: no blind spot to the right, which one masked stack has."""
    h, w, reach = 6, 7, layers * (kernel_size // 2)
    part = pixel_cnn((h, w), layers=layers, kernel_size=kernel_size, channels=16)
    at = torch.randint(2, (len(z), 1, h, w)).double()  # at one image, all ReLUs may be shut
    seen = sum(jacobian(part, x[None], z_n[None]) for x, z_n in zip(at, z, strict=True))
    pixels = list(itertools.product(range(h), range(w)))
    for (i, (r, c)), (j, (r2, c2)) in itertools.product(enumerate(pixels), repeat=2):
        near = r - r2 <= reach and abs(c - c2) <= reach
        assert (seen[i, j] > 0) == (j < i and near), ((r, c), (r2, c2))


def test_a_first_mask_of_type_b_leaks(z):
    """Negative control."""
    seen = jacobian(leaky(pixel_cnn((3, 3))), torch.ones(1, 1, 3, 3).double(), z[:1])
    assert seen.diagonal().min() > 0


def test_one_masked_stack_has_a_blind_spot():
    """What the two stacks are for: masks A and B over whole kernels miss pixels up to the right."""
    a = torch.tensor([[[[1.0, 1, 1], [1, 0, 0], [0, 0, 0]]]])
    b = torch.tensor([[[[1.0, 1, 1], [1, 1, 0], [0, 0, 0]]]])
    x = torch.zeros(1, 1, 6, 7, requires_grad=True)
    y = x
    for mask in (a, b, b):
        y = torch.conv2d(y, mask, padding=1)
    y[0, 0, 4, 3].backward()
    assert x.grad[0, 0, 3, 5] == 0 and x.grad[0, 0, 3, 4] > 0  # in reach, and not seen


def test_the_channels_of_a_pixel_follow_one_another(z):
    """Each channel of a pixel is told of those before it, and of no later one."""
    part = pixel_cnn((3, 2, 2), num_levels=4)
    x = torch.randint(4, (1, 3, 2, 2)).double()
    d = part(z[:1])

    def chain(x):  # log p(x_i | x_<i), (H, W, C)
        laid = x.movedim(1, -1).flatten(2).unsqueeze(1)
        s = part.params(z[:1]).movedim(-3, -1).flatten(-2)
        log_p = part.pixel_net(laid, s).log_softmax(1)
        return log_p.gather(1, laid.long()).reshape(2, 2, 3)

    torch.testing.assert_close(chain(x).sum(), d.log_prob(x)[0])
    other = x.clone()
    other[0, 1, 0, 1] = (x[0, 1, 0, 1] + 1) % 4  # green of the pixel (0, 1)
    changed = (chain(other) != chain(x)).flatten()
    at = 3 * 1 + 1
    assert not changed[:at].any() and changed[at:].any() and changed[at + 1]


def test_sampling_row_by_row_is_the_network_as_a_whole(z):
    """Sampling sees the same logits as `log_prob`: with hard logits the draw is the one image."""
    part = pixel_cnn((4, 5), num_levels=3)
    part.pixel_net.logits[-1].weight.data.mul_(1e4)
    x = part(z).sample()
    s = part.params(z)
    assert torch.equal(part.pixel_net(x.unsqueeze(1), s).argmax(1), x.long())


def test_the_distribution_is_one_of_pyro(z):
    d = pixel_cnn((3, 2))(z)
    assert isinstance(d, Autoregressive)
    assert (d.batch_shape, d.event_shape) == ((3,), (3, 2))
    lifted = d.expand((4, 3))
    assert isinstance(lifted, Autoregressive) and lifted.batch_shape == (4, 3)
    x = lifted.sample((2,))
    assert x.shape == (2, 4, 3, 3, 2) and x.dtype == torch.float64
    torch.testing.assert_close(lifted.log_prob(x), d.log_prob(x))
    torch.testing.assert_close(d.log_prob(x[0, 0, 0]), d.log_prob(x[0, 0, :1].expand(3, 3, 2)))
    assert d.sample((0,)).shape == (0, 3, 3, 2)
    assert not d.has_rsample and d.support.is_discrete
    for bad in (torch.full((3, 2), 0.5), torch.full((3, 2), 2.0), torch.full((3, 2), torch.nan)):
        with pytest.raises(ValueError, match="support"):
            d.log_prob(bad)
    with pytest.raises(NotImplementedError):
        _ = d.mean


def test_it_starts_at_the_frequencies(z):
    """With f = 0 the pixels are independent, each level as frequent as in the data."""
    part = pixel_cnn((3, 2), num_levels=3)
    for name, p in part.named_parameters():
        if name != "net.output.bias":
            p.data.zero_()
    x = torch.randint(3, (50, 3, 2)).double()
    x[:, 0, 0] = 1  # two levels of this pixel are never seen
    part.start_at_mean(x)
    f = torch.stack([(x == k).double().mean(0) for k in range(3)])
    p = 0.999 * f + 0.001 / 3
    expected = p.gather(0, x.long()).log().sum((1, 2))
    got = part(z[:1]).log_prob(x)
    torch.testing.assert_close(got, expected)


def test_context_enters_the_network(z):
    part = likelihoods.PixelCNN(2, (3, 2), NET, context_dim=1, **SMALL).double()
    c = torch.randn(3, 1, dtype=torch.float64)
    x = part(z, c).sample()
    assert not torch.equal(part(z, c + 1).log_prob(x), part(z, c).log_prob(x))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize("net", [nets.mlp, nets.gated_mlp, nets.conv, nets.residual_conv])
def test_laws_under_each_net(shape, net):
    options = {"data_shape": shape} if net in (nets.conv, nets.residual_conv) else {}
    part = likelihoods.PixelCNN(2, shape, net(hidden=(5,), **options), **SMALL)
    report = testing.check_part(part)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: likelihoods.PixelCNN(2, (5,)), r"images: .*\(C, H, W\); got \(5,\)"),
        (lambda: likelihoods.PixelCNN(2, (2, 2), num_levels=1), "num_levels to be a whole .*>= 2"),
        (lambda: likelihoods.PixelCNN(2, (2, 2), channels=0), "channels to be a whole number >= 1"),
        (lambda: likelihoods.PixelCNN(2, (2, 2), layers=0), "layers to be a whole number >= 1"),
        (lambda: likelihoods.PixelCNN(2, (2, 2), kernel_size=1), "kernel_size to be a .*>= 3"),
        (lambda: likelihoods.PixelCNN(2, (2, 2), kernel_size=4), "kernel_size to be odd; got 4"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def digits_pair(name, **options):
    return build(
        data_shape=(8, 8), latent_dim=4, likelihood=name, net="conv", hidden=(8, 16),
        likelihood_options=options,
    )  # fmt: skip


def test_a_vae_with_it_trains_on_digits():
    """After as many steps it beats independent pixels from the same decoder, by far."""
    x = torch.tensor(load_digits().images > 7.5, dtype=torch.float32)
    train, held_out = x[:1500], x[1500:]
    losses = []
    for vae in (digits_pair("pixel-cnn", channels=8, layers=2), digits_pair("bernoulli")):
        vae.likelihood.start_at_mean(train)
        fit(vae.model, vae.guide, train, epochs=6, lr=5e-3, batch_size=100)
        with torch.no_grad():
            losses.append(-log_weights(vae.model, vae.guide, held_out, num_particles=20).mean())
        report = testing.check_pair(vae.model, vae.guide, held_out[:16])
        assert report.ok, str(report)
    assert losses[0] < losses[1] - 2
