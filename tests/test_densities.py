"""Laws of the densities themselves: they integrate to 1, match their draws, and can be fitted."""

import math

import cases
import pytest
import scipy.stats
import torch

from pyrovae import likelihoods
from pyrovae.distributions import seeded
from pyrovae.optimise import adam

by_id = pytest.mark.parametrize("case", cases.PARTS, ids=lambda case: case.id)
DRAWS = 2000
LEVEL = 1e-4  # of each goodness-of-fit test: seeds are fixed, so a pass stays one


def unit(case, rows=3, seed=5):
    """The part on its smallest data, and what it is called on."""
    shape = case.unit if issubclass(case.cls, likelihoods.Likelihood) else cases.SHAPE
    part = case.build(seed, shape).double().eval()
    return part, cases.inputs(part, rows)


def on_domain(case, d):
    """Points (M, *event_shape), and the probability that each stands for, (M, N) or (M, 1)."""
    points, weights = case.domain()
    rows = max(1, len(d.log_prob(d.sample())) if d.batch_shape else 1)
    lifted = points.unsqueeze(1).expand(-1, rows, *points.shape[1:])
    log_p = d.log_prob(lifted if d.batch_shape else points).reshape(len(points), -1)
    return points, log_p, log_p.exp() * weights[:, None]


@by_id
def test_it_integrates_to_one(case):
    part, inputs = unit(case)
    with torch.no_grad():
        _, _, mass = on_domain(case, part(*inputs))
    torch.testing.assert_close(
        mass.sum(0), torch.ones_like(mass[0]), atol=case.integral_tolerance, rtol=0
    )


def discrepancy(case, d, draws):
    """The smallest p-value that the draws of the first row follow the density.

    Kolmogorov-Smirnov, of each coordinate and of the log-density, against the law that the domain's
    points give; ties, of discrete data, are broken at random on both sides.
    """
    points, log_p, mass = on_domain(case, d)
    mass = mass[:, 0] / mass[:, 0].sum()
    with seeded(2):
        chosen = torch.multinomial(mass, 200_000, replacement=True)
    pairs = [(log_p[chosen, 0], d.log_prob(draws).reshape(DRAWS, -1)[:, 0])]
    first = draws.reshape(DRAWS, max(1, log_p.shape[1]), *points.shape[1:])[:, 0].flatten(1)
    pairs += zip(points[chosen].flatten(1).T, first.T, strict=True)
    step = 1e-7 + 2 * float(case.domain()[1].max()) ** (1 / points[0].numel()) * bool(
        not d.support.is_discrete
    )
    found = []
    for known, drawn in pairs:
        blur = [step * torch.rand(len(t), dtype=torch.float64) for t in (known, drawn)]
        both = [(t + b).numpy() for t, b in zip((known, drawn), blur, strict=True)]
        found.append(scipy.stats.ks_2samp(*both).pvalue)
    return min(found)


@by_id
def test_draws_follow_the_density(case):
    part, inputs = unit(case)
    with torch.no_grad(), seeded(1):
        d = part(*inputs)
        draws = d.sample((DRAWS,))
        assert discrepancy(case, d, draws) > LEVEL


def test_draws_of_another_density_are_caught():
    """Negative control."""
    for case in (cases.PRIORS[0], cases.LIKELIHOODS[0]):
        part, inputs = unit(case)
        with torch.no_grad(), seeded(1):
            d = part(*inputs)
            draws = d.sample((DRAWS,))
            wrong = (
                0.9 * draws
                if draws.unique().numel() > 2
                else draws * (torch.rand(DRAWS, 1, 1) < 0.8)
            )
            assert discrepancy(case, d, wrong) < LEVEL


@by_id
def test_it_fits_its_own_draws(case):
    """Maximum likelihood from another start: as good as the truth on fresh draws, to `fit_gap`."""
    (truth, inputs), (other, _) = unit(case, rows=4), unit(case, rows=4, seed=6)
    with torch.no_grad(), seeded(1):
        d = truth(*inputs)
        draws = DRAWS // math.prod(case.unit)  # as many numbers, whatever the shape of a datum
        train, test = d.sample((draws,)), d.sample((draws,))
    parameters = [p for p in other.parameters() if p.requires_grad]
    if parameters:
        optim = adam(parameters, lr=0.02)
        for step in range(400):
            for group in optim.param_groups:
                group["lr"] = 0.02 * (1 - step / 400)
            optim.zero_grad()
            batch = train[step % 4 :: 4]  # a quarter of the draws a step: as good a fit, sooner
            (-other(*inputs).log_prob(batch).mean()).backward()
            optim.step()
    with torch.no_grad():
        gap = (d.log_prob(test) - other(*inputs).log_prob(test)).mean().item()
    assert gap < case.fit_gap
