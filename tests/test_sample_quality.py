"""Precision and recall, MMD, neighbours, copies: against loops, scikit-learn, closed forms."""

import math

import pytest
import scipy.stats
import torch
from sklearn.neighbors import NearestNeighbors

from pyrovae.diagnostics import (
    kernels,
    manifolds,
    memorisation,
    nearest_neighbours,
    precision_recall,
    two_sample,
)

F64 = torch.float64


def normals(*shape, seed=1234):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def by_sklearn(real, generated, k):
    """Each of the four as its paper defines it."""
    radius = [
        NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, -1]
        for x in (real, generated)
    ]
    distance = torch.as_tensor(
        NearestNeighbors(n_neighbors=len(real))
        .fit(real)
        .kneighbors_graph(generated, mode="distance")
        .toarray()
    )  # (M, N)
    inside = distance <= torch.as_tensor(radius[0])
    return (
        inside.any(1).double().mean().item(),
        (distance <= torch.as_tensor(radius[1])[:, None]).any(0).double().mean().item(),
        inside.sum().item() / (k * len(generated)),
        inside.any(0).double().mean().item(),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_are_sklearns(k, monkeypatch):
    monkeypatch.setattr(manifolds, "DISTANCES", 7 * 90)  # 7 or so rows a block
    real, generated = normals(90, 4), 0.8 * normals(70, 4, seed=5) + 0.3
    found = precision_recall(real.reshape(90, 2, 2), generated.reshape(70, 2, 2).numpy(), k)
    expected = by_sklearn(real.numpy(), generated.numpy(), k)
    ours = found.precision, found.recall, found.density, found.coverage
    assert ours == pytest.approx(expected, abs=1e-12)
    assert found.precision_se == pytest.approx(math.sqrt(ours[0] * (1 - ours[0]) / 70))
    assert found.recall_se == pytest.approx(math.sqrt(ours[1] * (1 - ours[1]) / 90))
    swapped = precision_recall(generated, real, k)
    assert (swapped.precision, swapped.recall) == (found.recall, found.precision)


def test_the_errors_are_those_of_other_generated_data():
    """The real data fixed, 200 generated samples: sd of a sd is 5 %."""
    real = normals(100, 2)
    found = [precision_recall(real, 1.2 * normals(60, 2, seed=s + 9)) for s in range(200)]
    for name in ("precision", "density"):
        spread = torch.tensor([getattr(f, name) for f in found]).std()
        stated = torch.tensor([getattr(f, f"{name}_se") for f in found]).square().mean().sqrt()
        assert 0.82 < spread / stated < 1.2


def test_samples_of_one_law_have_the_known_density_and_coverage():
    """E[density] = 1 and Naeem et al.'s E[coverage]; means of 200 within 3.3 standard errors."""
    found = [
        precision_recall(normals(40, 3, seed=2 * s), normals(60, 3, seed=2 * s + 1))
        for s in range(200)
    ]
    for name, expected in (("density", 1.0), ("coverage", found[0].equal_coverage)):
        values = torch.tensor([getattr(f, name) for f in found])
        assert abs(values.mean() - expected) < 3.3 * values.std() / math.sqrt(200)
    k3 = 1 - 39 * 38 * 37 / (99 * 98 * 97)
    assert found[0].equal_coverage == pytest.approx(k3)


def test_fidelity_and_variety_are_told_apart():
    real = normals(300, 2)
    narrow, wide = 0.1 * normals(300, 2, seed=5), 4 * normals(300, 2, seed=5)
    low_variety, low_fidelity = precision_recall(real, narrow), precision_recall(real, wide)
    assert low_variety.precision > 0.98 and low_variety.recall < 0.2
    assert low_fidelity.precision < 0.5 and low_fidelity.recall > 0.9
    assert precision_recall(real, real).precision == precision_recall(real, real).recall == 1.0
    far = precision_recall(real, real + 100)
    assert far.precision == far.recall == far.density == far.coverage == 0.0


def test_an_outlier_lifts_precision_more_than_density():
    """One real datum far off has a ball that holds all else: Naeem et al. against precision."""
    real, generated = normals(100, 2), 2 * normals(100, 2, seed=5) + 3
    outlier = torch.cat([real, torch.full((1, 2), 30.0, dtype=F64)])
    before, after = precision_recall(real, generated), precision_recall(outlier, generated)
    assert after.precision - before.precision > 0.3
    assert after.density - before.density <= 1 / 3 + 1e-12  # one ball more, over k


# two samples


def mmd2_by_loops(x, y, h):
    def k(a, b):
        return math.exp(-float((a - b).square().sum()) / (2 * h * h))

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_mmd_is_that_of_a_double_loop():
    x, y = normals(12, 3), normals(9, 3, seed=5) + 0.5
    found = two_sample(x, y, num_permutations=1, bandwidth=1.3)
    assert found.mmd2 == pytest.approx(mmd2_by_loops(x, y, 1.3), abs=1e-12)
    default = two_sample(x, y, num_permutations=1)
    distances = torch.nn.functional.pdist(torch.cat([x, y]))
    assert default.bandwidth == pytest.approx(float(distances.median()))
    assert default.mmd2 == pytest.approx(mmd2_by_loops(x, y, default.bandwidth), abs=1e-12)
    assert abs(default.mmd2 - found.mmd2) > 1e-3
    assert two_sample(y, x, num_permutations=1, bandwidth=1.3).mmd2 == pytest.approx(found.mmd2)


def test_mmd_of_gaussians_is_the_closed_form_on_average():
    """E k(x, x') = a^(d/2), E k(x, y) = a^(d/2) exp(-|u|^2 / (2 h^2 + 4)), a = h^2 / (h^2 + 2)."""
    h, shift, d = 1.5, 0.8, 2
    values = torch.tensor(
        [
            two_sample(
                normals(20, d, seed=2 * s), normals(30, d, seed=2 * s + 1) + shift,
                num_permutations=1, bandwidth=h,
            ).mmd2
            for s in range(400)
        ]
    )  # fmt: skip
    a = (h**2 / (h**2 + 2)) ** (d / 2)
    exact = 2 * a * (1 - math.exp(-d * shift**2 / (2 * (h**2 + 2))))
    error = values.std() / math.sqrt(400)
    assert abs(values.mean() - exact) < 3.3 * error
    biased = exact + (1 - a) * (1 / 20 + 1 / 30)  # with the diagonal: the control
    assert abs(values.mean() - biased) > 3.3 * error


def test_the_level_is_exact():
    """19 permutations: p is uniform on 1/20 ... 20/20; 1,000 tests, failing by chance 1e-3 each."""
    p = torch.tensor(
        [
            two_sample(
                normals(8, 2, seed=2 * s), normals(12, 2, seed=2 * s + 1),
                num_permutations=19, seed=s,
            ).p_value
            for s in range(1000)
        ]
    )  # fmt: skip
    counts = (20 * p).round().int().bincount(minlength=21)[1:]
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3
    low, high = scipy.stats.binom(1000, 0.05).ppf([5e-4, 1 - 5e-4])
    assert low <= (p <= 0.0501).sum() <= high


def test_a_shift_and_a_scale_are_found(monkeypatch):
    monkeypatch.setattr(kernels, "ELEMENTS", 100 * 30)  # 30 permutations a block
    x = normals(50, 3)
    for y in (normals(50, 3, seed=5) + 1.0, 3 * normals(50, 3, seed=5)):
        assert two_sample(x, y, num_permutations=199).p_value == 1 / 200
    same = two_sample(x, normals(50, 3, seed=5), num_permutations=199)
    assert same.p_value > 1e-2 and same.num_permutations == 199
    assert same == two_sample(x, normals(50, 3, seed=5), num_permutations=199)


def test_all_partitions_of_a_few_data():
    """Of 3 and 3 numbers 20 partitions, 2 of them as extreme as seen: p tends to 2 / 20."""
    x, y = torch.tensor([0.0, 0.1, 0.25]), torch.tensor([9.0, 9.15, 9.4])
    p = two_sample(x, y, num_permutations=20_000).p_value
    assert p == pytest.approx(0.1, abs=3.3 * math.sqrt(0.09 / 20_000))


# neighbours and copies


def test_neighbours_are_sklearns(monkeypatch):
    monkeypatch.setattr(manifolds, "DISTANCES", 200)
    training, generated = normals(60, 5), normals(25, 5, seed=5)
    found = nearest_neighbours(generated, training, k=4)
    distances, indices = NearestNeighbors(n_neighbors=4).fit(training).kneighbors(generated)
    assert found.indices.tolist() == indices.tolist()
    torch.testing.assert_close(found.distances, torch.as_tensor(distances))


def test_a_copy_is_at_distance_0():
    training = 1000 + torch.rand(100, 6, 6, generator=torch.Generator().manual_seed(3))
    found = nearest_neighbours(training[[7, 3]], training)
    assert found.indices.tolist() == [[7], [3]] and found.distances.tolist() == [[0.0], [0.0]]


def test_copies_are_found_and_fresh_data_are_not():
    data = normals(600, 3)
    training, held_out, fresh = data[:200], data[200:400], data[400:]
    copies = training + 0.02 * normals(200, 3, seed=5)
    found = memorisation(copies, training, held_out)
    assert found.closer > 0.95 and found.p_value < 1e-6 and found.ratio < 0.2
    honest = memorisation(fresh, training, held_out)
    assert abs(honest.closer - 0.5) < 3.3 * honest.closer_se and honest.p_value > 1e-3
    strayed = memorisation(3 * fresh, training, held_out)
    assert strayed.closer < 0.3 and strayed.p_value > 0.999 and strayed.ratio > 1.5
    nearest = NearestNeighbors(n_neighbors=1).fit(training)
    a, b = (torch.as_tensor(nearest.kneighbors(t)[0][:, 0]) for t in (fresh, held_out))
    torch.testing.assert_close(honest.generated, a)
    assert honest.ratio == pytest.approx(float(a.median() / b.median()))
    assert honest.closer == pytest.approx((a[:, None] < b).double().mean().item())
    assert honest.p_value == scipy.stats.mannwhitneyu(a, b, alternative="less").pvalue


def test_false_alarms_of_copies_come_at_their_rate():
    """500 fresh samples: p <= 0.05 in 5 % of them, failing by chance with probability 1e-3."""
    training = normals(50, 2)
    p = torch.tensor(
        [
            memorisation(
                normals(30, 2, seed=2 * s + 9), training, normals(40, 2, seed=2 * s + 10)
            ).p_value
            for s in range(500)
        ]
    )
    low, high = scipy.stats.binom(500, 0.05).ppf([5e-4, 1 - 5e-4])
    assert low <= (p <= 0.05).sum() <= high
    held_out_trained = torch.tensor(  # "held-out" data that took part in training: the control
        [
            memorisation(normals(30, 2, seed=s + 9), training, training[:40]).p_value
            for s in range(9)
        ]
    )
    assert (held_out_trained > 0.999).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: precision_recall(x, x[:3], k=3), "generated to have at least 4 rows; got shape"),
        (lambda x: precision_recall(x, x[:, :1]), r"data of one shape; .*\(9, 2\).*\(9, 1\)"),
        (lambda x: precision_recall(x, x, k=0), "k to be a whole number >= 1; got 0"),
        (lambda x: precision_recall(x * math.nan, x), "real to be finite; got 18 bad values"),
        (lambda x: two_sample(x, x[:1]), "y to have at least 2 rows"),
        (lambda x: two_sample(x, x, num_permutations=0), "num_permutations to be a whole number"),
        (lambda x: two_sample(x, x, bandwidth=0.0), "a positive bandwidth; got 0.0"),
        (
            lambda x: two_sample(x * 0, x * 0),
            "got 0.0: if it is the median distance, most of the d",
        ),
        (lambda x: nearest_neighbours(x, x, k=10), "training to have at least 10 rows"),
        (lambda x: nearest_neighbours([], x), "generated to have at least 1 row; got shape"),
        (lambda x: memorisation(x, x, x[:1]), "held_out to have at least 2 rows"),
        (lambda x: memorisation(x[:, :1], x, x), "data of one shape"),
    ],
)
def test_bad_arrays_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(normals(9, 2))
