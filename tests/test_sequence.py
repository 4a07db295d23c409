"""SequenceVAE: against the Kalman filter, and series of several lengths against each alone."""

import copy

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy.stats import multivariate_normal
from state_space import (
    LATENT,
    OBSERVED,
    SMALL,
    TRUTH,
    A,
    Smoother,
    exact_pair,
    filtered,
    joint,
    kalman,
    parameters_of,
    simulate,
)
from torch import nn

from pyrovae import build, evidence, fit, likelihoods, log_weights, nets, posteriors, priors
from pyrovae.importance import log_joint, site_log_probs
from pyrovae.importance import simulate as drawn_from
from pyrovae.optimise import cosine
from pyrovae.pairs import (
    Combiner,
    GatedTransition,
    LinearTransition,
    RecurrentEncoder,
    SequenceVAE,
)
from pyrovae.testing import check_pair

STEPS, N = 5, 6
LENGTHS = torch.tensor([5, 1, 2, 3, 4, 5])


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1234), dtype=torch.float64)


def small(bidirectional=False, likelihood="normal", **options):
    """A pair by names, in float64."""
    return build(
        data_shape=(STEPS, OBSERVED), latent_dim=LATENT, hidden=(6,), pair="sequence-vae",
        likelihood=likelihood, pair_options={"bidirectional": bidirectional, "width": 7}, **options,
    ).double()  # fmt: skip


both = pytest.mark.parametrize("bidirectional", [False, True])


def by_series(x):
    """log p of the steps before each series' end."""
    return torch.tensor([kalman(row[:n])[0] for row, n in zip(x, LENGTHS, strict=True)])


# The reference


def test_the_filter_is_the_density_of_one_large_normal():
    x = simulate(N, STEPS)
    dense = multivariate_normal(*joint(STEPS)).logpdf(x.flatten(1).numpy())
    np.testing.assert_allclose(filtered(x).numpy(), dense, rtol=1e-12)
    turned = (A.T, *TRUTH[1:])
    assert np.abs(filtered(x, turned).numpy() - dense).max() > 0.1  # negative control


# The exact posterior as the guide


def test_with_the_exact_guide_every_weight_is_the_filters_evidence():
    x, pair = simulate(N, STEPS), exact_pair(STEPS)
    log_w = log_weights(pair.model, pair.guide, x, num_particles=20)
    torch.testing.assert_close(log_w, filtered(x).expand(20, N), rtol=0, atol=1e-10)
    closed = evidence.linear_gaussian(pair.model, pair.guide, x).log_evidence
    torch.testing.assert_close(closed, filtered(x), rtol=0, atol=1e-9)


def test_the_identity_holds_and_the_exact_guide_has_no_kl():
    x = simulate(N, STEPS)
    exact, late = (
        evidence.identity(pair.model, pair.guide, x, num_particles=2)
        for pair in (exact_pair(STEPS), exact_pair(STEPS, Late(STEPS)))
    )
    assert (exact.residual.abs() < 1e-8).all() and (exact.kl.abs() < 1e-8).all()
    assert (late.residual.abs() < 1e-8).all() and (late.kl > 1).all()  # negative control


def test_series_of_several_lengths_have_the_filters_evidence_each():
    x, pair = simulate(N, STEPS), exact_pair(STEPS)
    log_w = log_weights(pair.model, pair.guide, x, LENGTHS, num_particles=20)
    torch.testing.assert_close(log_w, by_series(x).expand(20, N), rtol=0, atol=1e-10)


def test_missing_entries_are_left_out_as_the_filter_leaves_them_out():
    x = simulate(N, STEPS)
    x = torch.where(numbers(*x.shape) > 0.8, torch.nan, x)
    assert x.isnan().any()
    pair = exact_pair(STEPS, wrap=likelihoods.Masked)
    for lengths, expected in (((), filtered(x)), ((LENGTHS,), by_series(x))):
        log_w = log_weights(pair.model, pair.guide, x, *lengths, num_particles=5)
        torch.testing.assert_close(log_w, expected.expand(5, N), rtol=0, atol=1e-10)


class Late(Smoother):
    """h_{t+1} in the place of h_t: what is seen from the next step on alone."""

    def forward(self, x, *lengths):
        h = super().forward(x, *lengths)
        return torch.cat([h[:, 1:], torch.zeros_like(h[:, :1])], 1)


class Twice(nn.Module):
    """z_{t+1} given z_{t-1}, in the place of z_t."""

    def __init__(self, transition):
        super().__init__()
        self.transition, self.latent_dim = transition, transition.latent_dim

    def forward(self, z):
        return self.transition(self.transition(z).mean)


def test_a_shift_in_time_is_seen():
    """Negative controls: of the guide, a bound below the evidence; of the model, another model."""
    x, expected = simulate(N, STEPS), filtered(simulate(N, STEPS))
    late, shifted = exact_pair(STEPS, Late(STEPS)), exact_pair(STEPS)
    shifted.transition = Twice(shifted.transition)
    log_w = log_weights(late.model, late.guide, x, num_particles=200)
    assert (log_w.std(0) > 0.3).all() and (log_w.mean(0) < expected - 0.1).all()
    closed = evidence.linear_gaussian(shifted.model, shifted.guide, x).log_evidence
    assert (closed - expected).abs().max() > 0.1


def test_without_the_mask_other_series_are_scored():
    """Negative control."""
    x, pair = simulate(N, STEPS), exact_pair(STEPS)
    log_w = log_weights(pair.model, pair.guide, x)[0]
    ended = LENGTHS < STEPS
    assert ((log_w - by_series(x)).abs()[ended] > 0.1).all()


# Padding and lengths, of a pair that learns


@both
@pytest.mark.parametrize("likelihood", ["normal", "bernoulli", "binomial"])
def test_padding_has_no_influence(bidirectional, likelihood):
    pair = small(bidirectional, likelihood)
    x = (numbers(N, STEPS, OBSERVED) > 0).double()
    other = x.clone()
    for i, n in enumerate(LENGTHS):
        other[i, n:] = -1e30  # off the support too, of some
    weights, gradients = [], []
    for data in (x, other):
        weights.append(log_weights(pair.model, pair.guide, data, LENGTHS, num_particles=9))
        pair.zero_grad()
        torch.manual_seed(3)
        TraceMeanField_ELBO().loss_and_grads(pair.model, pair.guide, data, LENGTHS)
        gradients.append([p.grad.clone() for p in pair.parameters()])
    assert torch.equal(*weights) and all(map(torch.equal, *gradients))
    assert torch.equal(pair.reconstruct(x, LENGTHS), pair.reconstruct(other, LENGTHS))
    ones = torch.ones_like(x)
    full = log_weights(pair.model, pair.guide, ones), log_weights(pair.model, pair.guide, x)
    assert not torch.isclose(*full).any()  # without lengths it has: the control


@both
def test_a_series_in_a_batch_is_the_series_alone(bidirectional):
    pair, x = small(bidirectional), simulate(N, STEPS)
    z = {f"z_{t + 1}": numbers(3, N, STEPS, LATENT)[:, :, t] for t in range(STEPS)}
    for i, n in enumerate(LENGTHS.tolist()):
        encoder = copy.copy(pair.encoder)
        encoder.data_shape = (n, OBSERVED)
        alone = SequenceVAE(
            pair.prior, pair.transition, pair.likelihood.likelihood, encoder, pair.posterior
        )
        few = {f"z_{t + 1}": z[f"z_{t + 1}"][:, i : i + 1] for t in range(n)}
        for side in ("model", "guide"):
            together = log_joint(getattr(pair, side), z, x, LENGTHS)[:, i]
            apart = log_joint(getattr(alone, side), few, x[i : i + 1, :n])[:, 0]
            torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)
            unmasked = log_joint(getattr(pair, side), z, x)[:, i]
            assert n == STEPS or not torch.isclose(unmasked, apart).any()  # negative control


def test_the_guide_of_z_t_sees_the_series_from_t_on():
    x, z = simulate(N, STEPS), {f"z_{t + 1}": numbers(1, N, LATENT) for t in range(STEPS)}
    first, last = x.clone(), x.clone()
    first[:, 0] += 1
    last[:, -1] += 1
    for bidirectional in (False, True):
        pair = small(bidirectional)
        q, q_first, q_last = (site_log_probs(pair.guide, z, data) for data in (x, first, last))
        for t in range(STEPS):
            same = torch.equal(q[f"z_{t + 1}"], q_first[f"z_{t + 1}"])
            assert same == (t > 0 and not bidirectional)
            assert not torch.isclose(q[f"z_{t + 1}"], q_last[f"z_{t + 1}"]).any()


def test_check_pair_passes_with_lengths():
    pair = build(data_shape=(2, 3), latent_dim=2, hidden=(4,), pair="sequence-vae",
                 pair_options={"width": 3})  # fmt: skip
    x = (numbers(8, 2, 3) > 0).float()
    report = check_pair(pair.model, pair.guide, x, torch.arange(8) % 2 + 1)
    assert report.ok, str(report)


# The parts


def test_the_gated_transition_is_the_papers():
    transition, z = GatedTransition(2, width=3).double(), numbers(4, 2)
    state = {name: p.detach().numpy() for name, p in transition.named_parameters()}

    def mlp(name, x):
        h = x @ state[f"{name}.hidden.0.weight"].T + state[f"{name}.hidden.0.bias"]
        return np.maximum(h, 0) @ state[f"{name}.output.weight"].T + state[f"{name}.output.bias"]

    gate, proposal = 1 / (1 + np.exp(-mlp("gate", z.numpy()))), mlp("proposal", z.numpy())
    mean = (1 - gate) * z.numpy() + gate * proposal  # W starts at the identity
    rectified = np.maximum(proposal, 0)
    variance = np.log1p(np.exp(rectified @ state["variance.weight"].T + state["variance.bias"]))
    found = transition(z)
    np.testing.assert_allclose(found.mean.detach().numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(found.variance.detach().numpy(), variance, rtol=1e-12)


@both
def test_the_combiner_takes_the_mean_of_the_states(bidirectional):
    directions = 2 if bidirectional else 1
    part = posteriors.MeanFieldNormal((4,), 2, nets.mlp(hidden=()))
    combiner = Combiner(part, directions).double()
    z, h = numbers(3, 2), numbers(3, 4)
    combined = (torch.tanh(z @ combiner.of_z.weight.T + combiner.of_z.bias) + h) / (1 + directions)
    torch.testing.assert_close(combiner(z, h).mean, part(combined).mean)


def test_the_scale_of_pixel_levels_is_the_encoders():
    pair, plain = (
        build(data_shape=(8, 8), latent_dim=2, pair="sequence-vae", posterior_options=options)
        for options in ({"input_scale": 0.5}, {})
    )
    x = torch.full((2, 8, 8), 4.0)
    assert torch.equal(pair.encoder(x), plain.encoder(x / 2))
    assert not torch.isclose(pair.encoder(x), plain.encoder(x)).all()
    h = torch.ones(2, 128)
    assert torch.equal(pair.posterior(x[:, 0, :2], h).mean, plain.posterior(x[:, 0, :2], h).mean)


def test_decoding_starts_at_the_mean_of_all_steps():
    pair, x = small(), simulate(200, STEPS)
    with torch.no_grad():
        pair.likelihood.likelihood.net.output.weight.zero_()
    pair.likelihood.start_at_mean(x)
    z = torch.zeros(1, STEPS * LATENT)
    expected = x.mean((0, 1)).expand(1, STEPS, OBSERVED)
    torch.testing.assert_close(pair.decode(z).mean, expected)


def test_a_prior_made_of_the_posterior_of_the_first_state():
    pair = small(prior="vamp-prior", prior_options={"num_components": 3})
    pseudo = pair.prior.pseudo_inputs.detach()
    q = pair.posterior(torch.zeros(3, LATENT).double(), pair.encoder(pseudo)[:, 0])
    z = numbers(4, LATENT)
    mixture = q.log_prob(z.unsqueeze(1)).logsumexp(-1) - np.log(3)
    torch.testing.assert_close(pair.prior().log_prob(z), mixture)


# Draws


def test_samples_have_the_mean_and_covariance_of_the_model():
    """Each within 5 standard errors: failure probability below 15 (15 + 3) / 2 * 6e-7 = 1e-4."""
    n, pair = 20_000, exact_pair(STEPS)
    mean, covariance = joint(STEPS)
    x = pair.sample(n).flatten(1).numpy()
    error = np.sqrt(np.diag(covariance) / n)
    assert (np.abs(x.mean(0) - mean) < 5 * error).all()
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    assert (np.abs(products.mean(0) - covariance) < 5 * products.std(0) / np.sqrt(n)).all()
    assert (np.abs(x.mean(0) - mean[::-1]) > 5 * error).any()  # negative control


def test_padding_of_samples_is_zero():
    pair = small()
    for x in (pair.sample(N, LENGTHS), pair.sample(N, LENGTHS, mean=True)):
        inside = torch.arange(STEPS) < LENGTHS[:, None]
        assert (x[~inside] == 0).all() and (x[inside] != 0).all()
    drawn = drawn_from(pair.model, simulate(N, STEPS), LENGTHS)["x"]
    assert (drawn[~inside] == 0).all() and (drawn[inside] != 0).all()


def test_a_forecast_is_the_filters_prediction():
    """E[x_{T+1} | x] = C (A m + b) + d, m the filtered mean, within 5 standard errors."""
    pair, n = exact_pair(STEPS), 4000
    for row, length in ((0, 5), (3, 3)):
        x = simulate(N, STEPS)[row : row + 1].expand(n, -1, -1)
        lengths = torch.full((n,), length)
        found = pair.forecast(x, lengths, steps=2)
        a, b, _, c, shift, _ = TRUTH
        m = kalman(x[0, :length])[1]
        for step in range(2):
            m = a @ m + b
            error = found[:, step].std(0).numpy() / np.sqrt(n)
            assert (np.abs(found[:, step].mean(0).numpy() - c @ m - shift) < 5 * error).all()
    assert pair.forecast(x, lengths, steps=2, mean=True).std(0).min() < found.std(0).min()
    if_whole = pair.forecast(x, steps=1)[:, 0].mean(0)  # negative control: no lengths
    assert ((if_whole - found[:, 0].mean(0)).abs().numpy() > 5 * error).any()


# Training


def test_training_comes_within_one_per_cent_of_the_filter():
    """On held-out series; in two dimensions and longer, tests/test_slow_pairs_sequence.py."""
    x, held_out = simulate(2000, 4, parameters=SMALL), simulate(200, 4, 99, SMALL)
    expected = filtered(held_out, SMALL).mean()
    pair = build(
        data_shape=(4, 2), latent_dim=1, likelihood="normal", hidden=(), pair="sequence-vae",
        pair_options={"linear": True, "width": 16},
    )  # fmt: skip
    before = evidence.iwae(pair.model, pair.guide, held_out, num_particles=100)
    assert before.log_evidence.mean() < 1.1 * expected  # negative control: untrained
    fit(pair.model, pair.guide, x.float(), epochs=10, batch_size=100, lr=0.1, schedule=cosine)
    found = evidence.iwae(pair.model, pair.guide, held_out, num_particles=100).log_evidence.mean()
    assert abs(found / expected - 1) < 0.01
    own = filtered(held_out, parameters_of(pair)).mean()  # the estimate is of this
    assert abs(found - own) < 0.02


def test_the_elbos_of_pyro_honour_the_lengths():
    """Trace_ELBO at one draw; TraceMeanField_ELBO by 60, within 5 standard errors."""
    pair, x, expected = exact_pair(STEPS), simulate(N, STEPS), by_series(simulate(N, STEPS)).sum()
    loss = Trace_ELBO().loss(pair.model, pair.guide, x, LENGTHS)
    assert loss == pytest.approx(-float(expected), rel=1e-10)
    elbo = TraceMeanField_ELBO()
    found = torch.tensor([-elbo.loss(pair.model, pair.guide, x, LENGTHS) for _ in range(60)])
    error = found.std() / 60**0.5
    assert abs(found.mean() - expected) < 5 * error
    assert abs(filtered(x).sum() - expected) > 50 * error  # negative control: all steps


# Refusals


def parts(**others):
    made = {
        "prior": priors.StandardNormal(2), "transition": LinearTransition(2),
        "likelihood": likelihoods.Normal(2, (3,)), "encoder": RecurrentEncoder((5, 3), 4),
        "posterior": Combiner(posteriors.MeanFieldNormal((4,), 2)),
    }  # fmt: skip
    return made | others


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"prior": priors.StandardNormal(3)}, "parts of one latent_dim"),
        ({"likelihood": likelihoods.Normal(2, (4,))}, r"one step of the encoder's \(5, 3\)"),
        ({"likelihood": likelihoods.Masked(likelihoods.Normal(2, (3,)))}, "missing=True"),
        ({"prior": priors.ConditionalNormal(2)}, "takes no context"),
        ({"prior": priors.VonMisesFisher(2)}, "all of R"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(others, message):
    SequenceVAE(**parts())
    with pytest.raises(ValueError, match=message):
        SequenceVAE(**parts(**others))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([1.0, 2.0]), r"whole numbers \(N,\)"),
        (torch.tensor([[1], [2]]), r"whole numbers \(N,\)"),
        (torch.tensor([True, True]), r"whole numbers \(N,\)"),
        (torch.tensor([1, 0]), "from 1 to 5, the steps of x; got 0 in row 1"),
        (torch.tensor([6, 1]), "got 6 in row 0"),
    ],
)
def test_lengths_that_are_none_are_refused(lengths, message):
    pair, x = SequenceVAE(**parts()), torch.zeros(2, 5, 3)
    for function in (pair.model, pair.guide, pair.reconstruct, lambda x, c: pair.sample(2, c)):
        with pytest.raises(ValueError, match=message):
            function(x, lengths)


def test_other_refusals():
    pair, x = SequenceVAE(**parts()), torch.zeros(2, 5, 3)
    c = torch.tensor([1, 2])
    with pytest.raises(ValueError, match="no context but the lengths"):
        pair.guide(x, c, c)
    with pytest.raises(ValueError, match="n = 3 lengths; got"):
        pair.sample(3, c)
    with pytest.raises(ValueError, match="steps to be a positive whole number; got 0"):
        pair.forecast(x, steps=0)
    with pytest.raises(ValueError, match=r"series of shape \(N, 5, 3\); got \(2, 4, 3\)"):
        pair.guide(x[:, :4])
    with pytest.raises(ValueError, match="where a step is one number"):
        build(data_shape=(5,), latent_dim=2, pair="sequence-vae")
    with pytest.raises(ValueError, match="width to be a positive whole number; got 0"):
        RecurrentEncoder((5, 3), width=0)
