"""Probes of latents, against known accuracies and scikit-learn; and the means that are probed."""

import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from sklearn.neighbors import KNeighborsClassifier

from pyrovae import build
from pyrovae.diagnostics import latent_means, probes

F64 = torch.float64


def normals(*shape, seed=1234):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_the_linear_probe_of_two_gaussians_has_bayes_accuracy():
    """N(-u, 1) against N(u, 1): the best accuracy is Phi(u), and the probe fits two numbers."""
    y = torch.arange(2000) % 2
    z = normals(2000, 1) + (2 * y - 1).unsqueeze(1) * 0.8
    found = probes(z, y)
    exact = scipy.stats.norm.cdf(0.8)
    assert abs(found.linear - exact) < 3.3 * found.linear_se
    assert found.linear_se == pytest.approx(math.sqrt(exact * (1 - exact) / 2000), rel=0.05)
    assert found.nearest < found.linear  # five neighbours are noisier than a line
    assert found.majority == 0.5 and found.n == 2000
    others = y[torch.randperm(2000, generator=torch.Generator().manual_seed(1))]
    broken = probes(z, others)  # labels of other data: the control
    assert abs(broken.linear - 0.5) < 4.5 * broken.linear_se


def test_a_ring_is_seen_by_neighbours_and_not_by_a_line():
    y = torch.arange(600) % 2
    z = torch.nn.functional.normalize(normals(600, 2), dim=1) * (1 + 2 * y).unsqueeze(1)
    found = probes(z + 0.1 * normals(600, 2, seed=5), y)
    assert found.nearest > 0.99 and found.linear < 0.7


def test_the_majority_is_the_baseline_of_latents_that_know_nothing():
    y = (torch.arange(500) % 5 == 0).long()
    found = probes(normals(500, 3), y)
    assert found.majority == 0.8
    assert abs(found.linear - 0.8) < 3.3 * found.linear_se


def test_predictions_are_of_folds_left_out():
    """By hand with scikit-learn's folds; one neighbour, had it seen its datum, would be perfect."""
    from sklearn.model_selection import StratifiedKFold

    y = torch.arange(90) % 3
    z = normals(90, 2)
    found = probes(z, y, folds=3, k=1, seed=7)
    expected = torch.zeros(90).long()
    for train, test in StratifiedKFold(3, shuffle=True, random_state=7).split(z, y):
        fitted = KNeighborsClassifier(1).fit(z[train].numpy(), y[train].numpy())
        expected[test] = torch.as_tensor(fitted.predict(z[test].numpy()))
    assert torch.equal(found.predictions[1], expected)
    assert found.nearest == (expected == y).double().mean() < 0.6
    assert probes(z, y, folds=3, k=1, seed=7).linear == found.linear
    assert not torch.equal(probes(z, y, folds=3, k=1, seed=8).predictions, found.predictions)


def test_scale_moves_neighbours_and_not_the_line():
    y = torch.arange(300) % 2
    z = torch.stack([y + 0.5 * normals(300), normals(300, seed=5)], 1)
    found, scaled = probes(z, y), probes(z * torch.tensor([1.0, 1000.0]), y)
    assert torch.equal(found.predictions[0], scaled.predictions[0])
    assert found.nearest - scaled.nearest > 0.1


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (torch.zeros(8), {}, r"labels \(9,\), a whole number for each row.*got \(8,\)"),
        (torch.full((9,), 0.5), {}, "a whole number for each row"),
        (torch.zeros(9), {"folds": 2}, r"at least two labels.*got counts \{0.0: 9\}"),
        (
            torch.arange(9) % 3,
            {},
            r"of at least folds=5 data each; got counts \{0: 3, 1: 3, 2: 3\}",
        ),
        (torch.arange(9) % 3, {"folds": 1}, "folds to be a whole number >= 2; got 1"),
        (torch.arange(9) % 3, {"folds": 3, "k": 7}, "k to be a whole number from 1 to 6, the data"),
    ],
)
def test_bad_labels_are_refused(labels, options, message):
    with pytest.raises(ValueError, match=message):
        probes(normals(9, 2), labels, **options)


def test_bad_latents_are_refused():
    with pytest.raises(ValueError, match="latents to be finite"):
        probes(torch.tensor([[math.inf]]), torch.zeros(1))


# means


def model(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(a.sum(-1), 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Normal(x, 1.0))
        pyro.sample("a", dist.Normal(torch.stack([b, b.square()], -1), 1.0).to_event(1))


def test_the_mean_of_one_site_is_its_own():
    vae, x = build(data_shape=(4,), latent_dim=2), torch.ones(3, 4)
    found = latent_means(vae.model, vae.guide, x)
    with torch.no_grad():
        torch.testing.assert_close(found, vae.encode(x).mean, rtol=0, atol=0)
    few = latent_means(vae.model, vae.guide, x, num_draws=1, seed=5)
    assert torch.equal(found, few) and not found.requires_grad and vae.training


def test_means_of_several_sites_are_of_draws():
    """E a = (x, x^2 + 1), E b = x: of one draw of b the second would be x^2 + noise, of sd 3."""
    x = torch.linspace(-1, 1, 5, dtype=F64)
    found = latent_means(model, guide, x, num_draws=2000)
    exact = torch.stack([x, x.square() + 1, x], 1)
    # sd of a draw: sqrt 2; sqrt(4 x^2 + 2 + 1) <= 2.65; 1; 15 checks of 4.5 standard errors
    assert ((found - exact).abs() < 4.5 * torch.tensor([2**0.5, 7**0.5, 1.0]) / 2000**0.5).all()
    other = latent_means(model, guide, x, num_draws=1)
    assert ((other - exact).abs() > 0.2).any()
    assert torch.equal(other, latent_means(model, guide, x, num_draws=1))
    assert not torch.equal(other, latent_means(model, guide, x, num_draws=1, seed=1))


def test_means_of_a_flow_are_of_draws():
    vae, x = build(data_shape=(4,), latent_dim=2, posterior="flow-posterior"), torch.ones(3, 4)
    found = latent_means(vae.model, vae.guide, x, num_draws=400)
    with torch.no_grad():
        torch.manual_seed(99)
        z = vae.encode(x).sample((4000,))
    error = z.std(0) * (1 / 400 + 1 / 4000) ** 0.5
    assert ((found - z.mean(0)).abs() < 4.5 * error).all()
    assert found.dtype == x.dtype


def test_means_of_whole_numbers():
    vae = build(
        data_shape=(4,), latent_dim=3, prior="categorical", posterior="categorical",
    ).double()  # fmt: skip
    x = torch.ones(2, 4, dtype=F64)
    with torch.no_grad():
        q = vae.encode(x)
        expected = q.probs @ torch.arange(q.probs.shape[-1], dtype=F64)
    torch.testing.assert_close(latent_means(vae.model, vae.guide, x), expected)


def nan_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
        pyro.sample("x", dist.Normal(z.float(), 1.0), obs=x)


def nan_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.8])))


def test_a_mean_that_is_nan_is_drawn():
    found = latent_means(nan_model, nan_guide, torch.zeros(50), num_draws=200)
    assert abs(found.mean().item() - 0.8) < 4 * math.sqrt(0.16 / 10_000)


def test_num_draws_is_checked():
    with pytest.raises(ValueError, match="num_draws to be a whole number >= 1; got 0"):
        latent_means(model, guide, torch.zeros(2), num_draws=0)
