import math
import warnings

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


def arviz_psislw(log_w):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ArviZ's coming 1.0, on import
        from arviz import psislw
    return psislw(log_w)


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


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.7, 1.5])
@pytest.mark.parametrize("draws", [30, 100, 1000, 4000])
def test_shape_and_smoothing_are_those_of_arviz(k, draws):
    """An independent implementation, weight by weight."""
    log_w = generalized_pareto(k, n=5)[:draws]
    smoothed, khats = arviz_psislw(log_w.T.numpy())
    found = pareto.khat(log_w)
    np.testing.assert_allclose(found, khats, rtol=1e-9, atol=1e-9)
    size = pareto.tail_size(draws)
    largest = log_w.topk(size + 1, 0).values
    fitted = pareto.fit_tail(largest)
    tail = fitted.smoothed
    torch.testing.assert_close(fitted.khat, found)
    theirs = torch.as_tensor(smoothed).T.sort(0, descending=True).values[:size]
    torch.testing.assert_close(tail - tail[0], theirs - theirs[0], rtol=1e-9, atol=1e-9)


def test_other_weights_have_another_shape():
    """Negative control: the same tails, one weight of each doubled, are told apart."""
    log_w = generalized_pareto(0.2, n=5)
    changed = log_w.clone()
    changed[0] = log_w.amax(0) + math.log(2)
    assert (np.abs(pareto.khat(changed).numpy() - arviz_psislw(log_w.T.numpy())[1]) > 1e-3).all()


def test_ties_at_the_threshold_are_left_out():
    log_w = generalized_pareto(0.5, n=3)
    log_w = torch.where(log_w < log_w.topk(TAIL - 5, 0).values[-1], 0.0, log_w.clamp(min=0.01))
    np.testing.assert_allclose(pareto.khat(log_w), arviz_psislw(log_w.T.numpy())[1], rtol=1e-9)


def test_the_square_that_the_law_expects():
    """Of w = u + y, by scipy's generalized Pareto; above k = 1/2 there is none: it stays."""
    from scipy.stats import genpareto

    log_w = generalized_pareto(0.2, n=6)
    largest = log_w.topk(TAIL + 2, 0).values
    fitted = pareto.fit_tail(largest)
    cut = largest[-1].exp()
    k, scale = pareto.generalized_pareto((largest[:-1].exp() - cut).flip(0))
    for n in range(6):
        law = genpareto(float(k[n]), loc=float(cut[n]), scale=float(scale[n]))
        expected = (TAIL + 1) * (law.var() + law.mean() ** 2)
        assert float(fitted.log_square[n].exp()) == pytest.approx(expected, rel=1e-9)
    heavy = generalized_pareto(1.5, n=6).topk(TAIL + 2, 0).values
    own = (2 * heavy[:-1]).logsumexp(0)
    torch.testing.assert_close(pareto.fit_tail(heavy).log_square, own)
