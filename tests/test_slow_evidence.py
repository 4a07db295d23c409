"""Evidence beside exact values, by hand: `PYROVAE_DATA=FOLDER pytest -n 0 -m slow -s -k KEY`.

KEY is `intervals` or `annealing`. The figures are printed; README holds those of the last run.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae import build, data, evidence, fit, pairs

pytestmark = pytest.mark.slow
N, LEVEL, CHAINS = 200, 0.9, 64


def covered(name, found, exact):
    """Print, and check, how often intervals cover: two-sided where trusted, one-sided elsewhere."""
    low, high = found.interval(LEVEL)
    trusted = found.trusted
    inside = ((low <= exact) & (exact <= high))[trusted].double()
    below = (low <= exact)[~trusted].double()
    print(f"\n{name}: {len(inside)} of {len(exact)} trusted, {float(inside.sum()):.0f} covered")
    print(f"  the one-sided bound holds for {float(below.sum()):.0f} of the {len(below)} others")
    slack = 3.3 * math.sqrt(LEVEL * (1 - LEVEL) / max(1, len(inside)))  # a binomial's, p = 1e-3
    assert len(inside) and abs(float(inside.mean()) - LEVEL) < slack
    if len(below):
        assert float(below.mean()) > LEVEL - 3.3 * math.sqrt(LEVEL * (1 - LEVEL) / len(below))


def sided(name, found, exact):
    """Print, and check, that the two bounds lie on their sides of the exact value."""
    n = len(exact)
    below, above = exact - found.lower, found.upper - exact
    means = [(float(t.mean()), float(t.std()) / math.sqrt(n)) for t in (below, above)]
    beyond = [
        int((t < -4 * se).sum()) for t, se in ((below, found.lower_se), (above, found.upper_se))
    ]
    print(f"{name}: log p(x) - lower {means[0][0]:.4f} +- {means[0][1]:.4f}, ", end="")
    print(f"upper - log p(x) {means[1][0]:.4f} +- {means[1][1]:.4f}; ", end="")
    print(f"beyond 4 standard errors: {beyond[0]} and {beyond[1]} of {n}")
    assert all(mean > -3 * error for mean, error in means)
    assert all(count <= 1 for count in beyond)


def test_intervals_and_bounds_of_ppca(data_dir):
    """q = 10: a guide 1.2 times as wide as the posterior in every direction."""
    mnist = data.load("mnist", data_dir=data_dir, validation=0)
    x = mnist.train.flatten(1).double()
    vae = pairs.ppca(x, 10)
    x = mnist.test[:N].flatten(1).double()
    exact = evidence.exact(vae.model, vae.guide, x).log_evidence
    same = evidence.iwae(vae.model, vae.guide, x, num_particles=100)
    error = float((same.log_evidence - exact).abs().max())
    print(f"\nthe exact guide: largest error {error:.1e}")
    assert error < 1e-9 * float(exact.abs().max())

    def wide(x):
        with pyro.plate("data", len(x)):
            q = vae.encode(x)
            pyro.sample("z", dist.MultivariateNormal(q.mean, scale_tril=1.2 * q.scale_tril))

    found = evidence.iwae(vae.model, wide, x, num_particles=2000, modules=[vae])
    covered("pPCA, q = 10, wide guide", found, exact)
    both = evidence.bidirectional(
        vae.model, wide, x, num_chains=CHAINS, num_temperatures=20, modules=[vae]
    )
    simulated = evidence.exact(vae.model, vae.guide, both.x).log_evidence
    sided("pPCA, q = 10", both, simulated)


def test_intervals_and_bounds_of_a_vae_in_the_plane():
    """64-100-2, tanh, binarised digits: 200 of them, then 200 simulated; log p(x) by lattice."""
    digits = data.load("digits", binarize="threshold")
    vae = build(data_shape=(8, 8), latent_dim=2, hidden=(100,), net_options={"activation": "tanh"})
    fit(vae.model, vae.guide, digits.train, epochs=60)
    vae = vae.double()
    x = torch.cat([digits.test, digits.validation])[:N].double()
    exact = evidence.quadrature(vae.model, vae.guide, x).log_evidence
    covered("2-d VAE", evidence.iwae(vae.model, vae.guide, x, num_particles=20_000), exact)
    both = evidence.bidirectional(vae.model, vae.guide, x, num_chains=CHAINS, num_temperatures=50)
    exact = evidence.quadrature(vae.model, vae.guide, both.x).log_evidence
    sided("2-d VAE", both, exact)


def test_annealing_on_mnist(data_dir, tmp_path):
    """784-400-20, 20 epochs: AIS, importance samples, and the gap of BDMC, 100 images."""
    import time

    mnist = data.load("mnist", data_dir=data_dir, binarize="dynamic", validation=0)
    vae = build(data_shape=(28, 28), latent_dim=20, hidden=(400,))
    vae.likelihood.start_at_mean(mnist.train)
    fit(vae.model, vae.guide, mnist.train, transform=mnist.transform, epochs=20)
    x = mnist.test[:100]
    plain = evidence.iwae(vae.model, vae.guide, x, num_particles=5000)
    print(f"\n5,000 importance samples: {float(plain.log_evidence.mean()):.3f}; ", end="")
    print(f"{int((plain.khat > 0.7).sum())} of 100 images with k-hat > 0.7")
    began = time.time()
    found = evidence.ais(vae.model, vae.guide, x)
    seconds = time.time() - began
    more = found.log_evidence - plain.log_evidence
    mean, error = float(more.mean()), float(more.std()) / 10
    print(
        f"annealed from the guide, {seconds:.0f} s: {float(found.log_evidence.mean()):.3f}, ",
        end="",
    )
    print(f"{mean:.3f} +- {error:.3f} more")
    began = time.time()
    both = evidence.bidirectional(vae.model, vae.guide, x)
    gap, spread = float(both.gap.mean()), float(both.gap.std()) / 10
    print(
        f"BDMC of 100 simulated images, {time.time() - began:.0f} s: gap {gap:.3f} +- {spread:.3f}"
    )
    assert mean > -3 * error and gap < 0.5 and seconds < 600
