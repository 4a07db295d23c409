"""Scores of outliers and the AUROC, against brute force, scipy and sklearn."""

import math

import pytest
import scipy.stats
import torch
from sklearn.metrics import roc_auc_score

from pyrovae import diagnostics
from pyrovae.diagnostics import auroc, outlier_scores

F64 = torch.float64


def normals(*shape, seed=1234):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def log_density(x):
    return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)


def test_scores_are_those_of_brute_force():
    reference, asked = normals(40), normals(15, seed=5) * 2
    reference[3], asked[2] = reference[7], reference[9]  # ties
    found = outlier_scores(asked, reference)
    known = -reference
    for i, s in enumerate((-asked).tolist()):
        assert found.score[i] == s
        assert found.p_value[i] == (1 + sum(r >= s for r in known.tolist())) / 41
        assert found.typicality[i] == pytest.approx(abs(s - known.mean().item()))
        centre = (known.sum().item() + s) / 41
        far = sum(abs(r - centre) >= abs(s - centre) for r in known.tolist())
        assert found.typicality_p_value[i] == (1 + far) / 41
    assert found.ranking.tolist() == sorted(range(15), key=lambda i: float(asked[i]))
    assert found.entropy == pytest.approx(known.mean().item()) and found.n == 40


def test_p_values_are_uniform_under_the_null():
    """19 reference data and one more, 4,000 times: p is uniform on 1/20 ... 20/20, by chi-square.

    Each fails by chance with probability 1e-3.
    """
    x = log_density(normals(4000, 20, 3))
    counts = torch.zeros(2, 20)
    for row in x:
        found = outlier_scores(row[:1], row[1:])
        for i, p in enumerate((found.p_value, found.typicality_p_value)):
            counts[i, round(float(p) * 20) - 1] += 1
    assert all(scipy.stats.chisquare(c.numpy()).pvalue > 1e-3 for c in counts)
    few = x.reshape(-1, 5)  # 4 reference data
    ours = torch.cat([outlier_scores(row[:1], row[1:]).typicality_p_value for row in few])
    assert scipy.stats.chisquare((5 * ours).round().int().bincount()[1:].numpy()).pvalue > 1e-3
    far = (few - few[:, 1:].mean(1, keepdim=True)).abs()
    naive = (far[:, 1:] >= far[:, :1]).sum(1)  # x left out of the mean: the control
    assert scipy.stats.chisquare(naive.bincount().numpy()).pvalue < 1e-6


def test_typicality_sees_a_density_too_high_where_the_density_does_not():
    """N(0, I) in 200 dimensions: near 0 the density is highest, and no draw ever lies there."""
    reference = log_density(normals(999, 200))
    middle, shell = (
        log_density(normals(50, 200, seed=6) * 0.7),
        log_density(normals(50, 200, seed=7)),
    )
    found = outlier_scores(middle, reference)
    assert (found.typicality_p_value == 1 / 1000).all()
    assert (found.p_value == 1.0).all()  # the contrast
    typical = outlier_scores(shell, reference)
    assert (typical.typicality_p_value < 0.01).sum() <= 5  # 50 x 0.01: > 5 has probability 2e-5
    assert auroc(typical.typicality, found.typicality).value > 0.99
    assert auroc(typical.score, found.score).value < 0.01


def test_outliers_of_low_density_are_seen_by_both():
    reference = log_density(normals(999, 20))
    found = outlier_scores(log_density(normals(20, 20, seed=8) * 3), reference)
    assert (found.p_value <= 0.002).all() and (found.typicality_p_value <= 0.002).all()


def test_a_score_at_the_centre_is_as_typical_as_can_be():
    assert outlier_scores([0.0], [1.0, -1.0, 0.0]).typicality_p_value == 1.0


def test_auroc_is_sklearns():
    low, high = normals(30).round(), normals(20, seed=5).round() + 0.5
    high[:5] = high[:5].floor()  # ties
    y = [0] * 30 + [1] * 20
    expected = roc_auc_score(y, torch.cat([low, high]).numpy())
    found = auroc(low, high)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert auroc(high, low).value == pytest.approx(1 - expected, abs=1e-12)
    # DeLong by its definition: a kernel of 1, 1/2, 0 for each pair
    kernel = (high[:, None] > low).double() + 0.5 * (high[:, None] == low).double()
    variance = kernel.mean(1).var() / 20 + kernel.mean(0).var() / 30
    assert found.standard_error == pytest.approx(math.sqrt(variance), abs=1e-12)


def test_the_standard_error_is_the_spread_of_many_samples():
    """N(0, 1) against N(1, 2^2): AUROC = Phi(1 / sqrt 5); 400 samples, sd of a sd 3.5 %."""
    low, high = normals(400, 40), 1 + 2 * normals(400, 60, seed=5)
    found = [auroc(a, b) for a, b in zip(low, high, strict=True)]
    values = torch.tensor([f.value for f in found])
    stated = torch.tensor([f.standard_error for f in found]).square().mean().sqrt()
    exact = scipy.stats.norm.cdf(1 / math.sqrt(5))
    assert abs(values.mean() - exact) < 3.3 * values.std() / 20
    assert 0.85 < values.std() / stated < 1.15
    as_if_even = math.sqrt(exact * (1 - exact) / 100)  # a proportion of 100 data: the control
    assert not 0.85 < values.std() / as_if_even < 1.15


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match=r"log_evidence to be of shape \(N,\).*got \(2, 1\)"):
        outlier_scores(torch.zeros(2, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="reference to have at least 2 rows; got shape"):
        outlier_scores([0.0], [0.0])
    with pytest.raises(
        ValueError, match="reference to be finite; got 1 bad values, the first in r"
    ):
        outlier_scores([0.0], [0.0, math.nan])
    with pytest.raises(ValueError, match="log_evidence to be an array of numbers"):
        outlier_scores(["a"], [0.0, 1.0])
    with pytest.raises(ValueError, match="outliers to have at least 2 rows"):
        auroc([0.0, 1.0], [])
    assert diagnostics.AUROC(0.5, 0.1).value == 0.5
