import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyrovae.evidence import pareto

S, N = 4000, 200
TAIL = int(3 * S**0.5)


def generalized_pareto(k, n=N):
    """Weights of scale 1 and shape k: any tail of theirs is generalized Pareto of the same k."""
    u = torch.rand(S, n, dtype=torch.float64)
    return ((u**-k - 1) / k).log()


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.5, 0.7, 0.9])
def test_a_known_tail(k):
    """A fit to M tail weights has error (1 + k) / sqrt M, and its prior adds ten of shape 1/2."""
    found = pareto.khat(generalized_pareto(k))
    expected = (TAIL * k + 10 * 0.5) / (TAIL + 10)
    error = (1 + k) / TAIL**0.5
    assert abs(float(found.mean()) - expected) < 4.5 * error / N**0.5
    assert abs(float(found.std()) - error) < 4.5 * error / (2 * N) ** 0.5


def test_a_heavier_tail_is_told_apart():
    """Negative control: 0.7 is not 0.5, by the same error."""
    found = pareto.khat(generalized_pareto(0.7))
    assert float(found.mean()) - 0.5 > 4.5 * 1.5 / (TAIL * N) ** 0.5


def test_scale_and_order_of_the_data_do_not_matter():
    log_w = generalized_pareto(0.5, n=3)
    found = pareto.khat(log_w)
    shifted = pareto.khat(log_w.flip(0) + torch.tensor([0.0, 500.0, -3000.0]))
    torch.testing.assert_close(found, shifted)
    torch.testing.assert_close(pareto.khat(log_w[:, 1:2]), found[1:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_without_a_tail(dtype):
    equal = torch.full((1000,), -105.3, dtype=dtype)
    rounded = equal + 2 * torch.finfo(dtype).eps * 105 * torch.randn(1000, dtype=dtype)
    two_values = (torch.rand(1000) > 0.5).to(dtype)  # half of them share the largest value
    found = pareto.khat(torch.stack([equal, rounded, two_values], 1))
    assert found.dtype == dtype
    assert found.tolist() == [-math.inf] * 3


def test_weights_that_cannot_be_fitted_are_not_trusted():
    nothing = torch.full((1000,), -math.inf)
    three = nothing.clone()
    three[:3] = torch.tensor([0.0, 1.0, 2.0])
    assert pareto.khat(torch.stack([nothing, three], 1)).tolist() == [math.inf] * 2


def test_some_weights_may_be_zero():
    log_w = generalized_pareto(0.5, n=1)
    zeros = log_w.clone()
    zeros[log_w < log_w.median()] = -math.inf
    torch.testing.assert_close(pareto.khat(zeros), pareto.khat(log_w))


@pytest.mark.parametrize(
    ("log_w", "message"),
    [
        (torch.zeros(100), r"shape \(draws, data\) with at least 30 draws; got \(100,\)"),
        (torch.zeros(29, 2), r"at least 30 draws; got \(29, 2\): raise num_particles"),
        (torch.tensor([[math.nan, 0.0]] * 40), r"got 40 that are NaN or \+inf.*index \(0, 0\)"),
        (torch.tensor([[0.0, math.inf]] * 40), r"got 40 that are NaN or \+inf.*index \(0, 1\)"),
    ],
)
def test_bad_weights_are_refused(log_w, message):
    with pytest.raises(ValueError, match=message):
        pareto.khat(log_w)


@pytest.mark.parametrize(("version", "sign"), [("0.23.4", 1), ("1.3.0", -1)])
def test_both_series_of_arviz(version, sign, monkeypatch):
    """0.x takes log weights, 1.x minus log weights, elsewhere; their warnings are kept back."""
    seen = []

    def psislw(values):
        seen.append(np.array(values))
        return values, np.array([0.25, math.nan])

    def import_module(name):
        warnings.warn("something new is coming", FutureWarning, stacklevel=2)
        return {
            "arviz": SimpleNamespace(psislw=psislw),
            "arviz_stats.base": SimpleNamespace(array_stats=SimpleNamespace(psislw=psislw)),
        }[name if (name == "arviz") == (sign == 1) else "the other series' place"]

    monkeypatch.setattr(pareto, "version", lambda name: version)
    monkeypatch.setattr(pareto, "importlib", SimpleNamespace(import_module=import_module))
    log_w = torch.randn(50, 2)
    assert pareto.khat(log_w).tolist() == [0.25, math.inf]
    np.testing.assert_array_equal(seen[0], sign * log_w.T.double().numpy())
