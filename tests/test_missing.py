"""Missing entries integrated out exactly, tables of several kinds, and imputation."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from cases import LATENT, NET
from cases.mixed import TABLE

from pyrovae import VAE, build, evidence, fit, likelihoods, log_weights, pairs, posteriors, priors
from pyrovae.distributions import seeded
from pyrovae.likelihoods import Fixed, Masked, Mixed, Normal
from pyrovae.testing import check_pair

NAN = math.nan


def holed(x, share=0.4, seed=3):
    """x with NaN where the mask is 0, and the mask."""
    with seeded(seed):
        mask = torch.rand(x.shape) > share
    mask[0] = False  # a datum of which nothing is seen
    mask[1] = True
    return torch.where(mask, x, NAN), mask


def linear(d=5, q=2, rank=0):
    """A linear pair whose p(x) is normal, and that normal's mean and covariance."""
    linear_net = pairs.linear.mlp(hidden=())
    with seeded(2):
        if rank:
            p_x = likelihoods.FullCovarianceNormal(q, (d,), linear_net, rank=rank)
            p_x.net.output.weight.data[d:] = 0  # a covariance that does not depend on z
        else:
            p_x = Normal(q, (d,), linear_net, variance=Fixed(0.4))
        q_z = posteriors.FullRankNormal((d,), q, linear_net, missing=True)
        vae = VAE(priors.StandardNormal(q), Masked(p_x), q_z).double()
    zero = vae.decode(torch.zeros(1, q)).base
    unit = vae.decode(torch.eye(q)).base.mean
    w = (unit - zero.mean).T.detach().numpy()
    noise = np.diag(zero.variance[0].detach().numpy())
    if rank:
        factor = zero.factor[0].detach().numpy()
        noise = factor @ factor.T + np.diag(zero.scale[0].detach().numpy() ** 2)
    return vae, zero.mean[0].detach().numpy(), w @ w.T + noise


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("how", ["nan", "mask"])
def test_masked_is_the_marginal_of_a_gaussian(rank, how):
    vae, mean, cov = linear(rank=rank)
    x, mask = holed(torch.randn(8, 5, dtype=torch.float64))
    given = (x,) if how == "nan" else (x.nan_to_num(nan=17.0), mask.double())
    found = evidence.linear_gaussian(vae.model, vae.guide, *given).log_evidence
    for i, m in enumerate(mask.numpy()):
        expected = 0.0
        if m.any():
            block = cov[np.ix_(m, m)]
            expected = scipy.stats.multivariate_normal.logpdf(x[i].numpy()[m], mean[m], block)
        assert found[i].item() == pytest.approx(expected, abs=1e-9)
    whole = evidence.linear_gaussian(vae.model, vae.guide, x.nan_to_num(nan=0.0)).log_evidence
    assert (whole - found)[2:].abs().min() > 1e-3  # zeros are not missing: the control


@pytest.mark.parametrize("rank", [0, 2])
def test_imputation_is_the_conditional_mean_of_a_gaussian(rank):
    vae, mean, cov = linear(rank=rank)
    x, mask = holed(torch.randn(8, 5, dtype=torch.float64))
    found = evidence.impute(vae.model, vae.guide, x, num_particles=30_000, num_samples=400)
    assert torch.equal(found.mean[mask], x[mask]) and torch.equal(found.missing, ~mask)
    assert torch.equal(found.samples[:, mask], x[mask].expand(400, -1))
    for i, m in enumerate(mask.numpy()):
        if m.all():
            continue
        gain = cov[np.ix_(~m, m)] @ np.linalg.inv(cov[np.ix_(m, m)]) if m.any() else 0
        expected = mean[~m] + (gain @ (x[i].numpy()[m] - mean[m]) if m.any() else 0)
        left = cov[np.ix_(~m, ~m)] - (gain @ cov[np.ix_(m, ~m)] if m.any() else 0)
        sd = np.sqrt(np.diag(left))
        ess = found.effective_sample_size[i].item()
        error, one = sd / math.sqrt(ess), math.sqrt(1 / 400 + 1 / ess)  # of the mean, of draws
        got, drawn = found.mean[i].numpy()[~m], found.samples[:, i].numpy()[:, ~m]
        assert (np.abs(got - expected) < 5 * error + 1e-3).all()
        assert (np.abs(drawn.mean(0) - expected) < 5 * sd * one).all()
        assert (np.abs(drawn.std(0) / sd - 1) < 5 * one).all()
    prior_mean = np.abs(found.mean.numpy() - mean)[2:][~mask.numpy()[2:]]
    assert prior_mean.max() > 0.1  # the column mean would not do: the control


def test_a_pair_of_x_and_mask_by_hand():
    """The same model as a user writes it, with the mask in the model."""
    vae, _, _ = linear()
    inner = vae.likelihood.likelihood

    def model(x, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior())
            p_x = dist.Normal(inner.net(z), 0.4)
            pyro.sample("x", dist.MaskedDistribution(p_x, mask != 0).to_event(1), obs=x)

    def guide(x, mask):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.posterior(x, mask))

    x, mask = holed(torch.randn(6, 5, dtype=torch.float64))
    zeros, m = x.nan_to_num(nan=0.0), mask.double()
    modules = [vae]
    ours = log_weights(vae.model, vae.guide, zeros, m, num_particles=7)
    theirs = log_weights(model, guide, zeros, m, num_particles=7, modules=modules)
    torch.testing.assert_close(ours, theirs)
    by_hand = evidence.impute(model, guide, zeros, m, num_particles=20_000, modules=modules)
    found = evidence.impute(vae.model, vae.guide, x, num_particles=20_000)
    torch.testing.assert_close(by_hand.mean, found.mean, atol=0.05, rtol=0)


def table(n=6):
    with seeded(4):
        part = Mixed(LATENT, (6,), NET, columns=TABLE).double()
        z = torch.randn(n, LATENT, dtype=torch.float64)
        return part, z, part(z).sample()


def test_mixed_and_masked_sum_to_one_over_what_is_missing():
    """The missing discrete columns enumerated, a missing real one by quadrature."""
    part, z, x = table()
    masked = Masked(part)
    holes = x.clone()
    holes[:, [0, 1, 3]] = NAN
    found = masked(z).log_prob(holes)
    axis = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    total = torch.full((len(x), 6001), -math.inf, dtype=torch.float64)
    for bit in (0.0, 1.0):
        for level in (0.0, 1.0, 2.0):
            whole = x.unsqueeze(1).repeat(1, 6001, 1)
            whole[..., 0], whole[..., 1], whole[..., 3] = axis, bit, level
            total = total.logaddexp(part(z.unsqueeze(1).expand(-1, 6001, -1)).log_prob(whole))
    expected = total.logsumexp(1) + (axis[1] - axis[0]).log()
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)
    nothing = masked(z).log_prob(torch.full_like(x, NAN))
    assert torch.equal(nothing, torch.zeros(len(x), dtype=torch.float64))
    assert torch.equal(masked(z).log_prob(x), part(z).log_prob(x))


def test_gradients_stop_at_what_is_missing():
    vae, _, _ = linear()
    x, _ = holed(torch.randn(8, 5, dtype=torch.float64))
    x[:, 2] = NAN
    z = torch.randn(8, 2, dtype=torch.float64)
    vae.likelihood(z).log_prob(x).sum().backward()
    bias = vae.likelihood.net.output.bias.grad
    assert bias.isfinite().all() and bias[2] == 0 and bias[0] != 0


def test_masked_pairs_pass_every_check_and_train():
    for name in ("masked:normal", "masked:full-covariance-normal"):
        vae = build(data_shape=(5,), latent_dim=2, hidden=(8,), likelihood=name)
        x, mask = holed(torch.randn(40, 5))
        assert check_pair(vae.model, vae.guide, x).ok
        report = check_pair(vae.model, vae.guide, x.nan_to_num(nan=0.0), mask.float())
        assert report.ok, str(report)
        losses = fit(vae.model, vae.guide, x, epochs=20, lr=1e-2, batch_size=8)["loss"]
        assert losses[-1] < losses[0]
        fit(vae.model, vae.guide, (x.nan_to_num(nan=0.0), mask), epochs=1)
    plain = build(data_shape=(5,), latent_dim=2, hidden=(8,), likelihood="normal")
    with pytest.raises(ValueError, match=r"expected x to be finite; got .*likelihoods\.Masked"):
        fit(plain.model, plain.guide, x, epochs=1)


def test_nan_and_mask_are_one():
    vae = build(data_shape=(5,), latent_dim=2, hidden=(8,), likelihood="masked:normal")
    x, mask = holed(torch.randn(9, 5))
    by_nan = log_weights(vae.model, vae.guide, x, num_particles=3)
    by_mask = log_weights(vae.model, vae.guide, x.nan_to_num(nan=5.0), mask, num_particles=3)
    torch.testing.assert_close(by_nan, by_mask)


def impute_nothing():
    vae, _, _ = linear()
    return evidence.impute(vae.model, vae.guide, torch.zeros(2, 5), num_particles=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixed(2, (3, 2), columns=[]), r"data_shape \(D,\) of a table"),
        (lambda: Mixed(2, (3,)), "name each of the 3 columns 0, ..., 2 once"),
        (lambda: Mixed(2, (2,), columns=[("normal", [0]), ("normal", [0])]), "columns"),
        (lambda: Mixed(2, (1,), columns=[("gauss", [0])]), "one of bernoulli, .*got 'gauss'"),
        (lambda: Mixed(2, (2,), columns=[("normal", [0.7, 1])]), "its columns whole numbers"),
        (lambda: Mixed(2, (2,), columns=[("normal", 3)]), "its columns whole numbers"),
        (
            lambda: Mixed(2, (1,), columns=[("normal", [0], {"context_dim": 2})]),
            "options of likelihood normal among variance; got 'context_dim'",
        ),
        (
            lambda: Masked(Normal(2, (3,)))(torch.zeros(4, 2), torch.ones(4, 3), torch.ones(4)),
            "got 4 from shapes",
        ),
        (
            lambda: Masked(likelihoods.Poisson(2, (3,), offset=True))(
                torch.zeros(4, 2), torch.ones(4, 3), torch.ones(4, 1)
            ),
            r"the mask, of shape \(N, 3\), as the last",
        ),
        (
            lambda: VAE(
                priors.StandardNormal(2),
                Masked(Normal(2, (3,))),
                posteriors.MeanFieldNormal((3,), 2),
            ),
            "build it with missing=True",
        ),
        (lambda: Mixed(2, (1,), columns=[("levels", [0])]), "got 'levels'"),
        (lambda: Mixed(2, (1,), columns=[("normal",)]), "each group of columns as"),
        (
            lambda: Mixed(2, (1,), columns=[("poisson", [0], {"offset": True})]),
            "without offset=True",
        ),
        (lambda: Masked(likelihoods.PixelCNN(2, (4, 4))), "integrated out.*got PixelCNN"),
        (lambda: Masked(torch.nn.Linear(2, 3)), "integrated out.*got Linear"),
        (lambda: build(data_shape=(3,), likelihood="masked"), "masked:"),
        (lambda: build(data_shape=(3,), likelihood="masked:gauss"), "got 'gauss'"),
        (lambda: impute_nothing(), "nothing is missing"),
        (
            lambda: evidence.impute(None, None, torch.zeros(2, 5), num_particles=0),
            "num_particles to be a positive whole number; got 0",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("variance", ["shared", "per-dimension"])
@pytest.mark.parametrize("masked", ["", "nan", "mask"])
def test_fit_variance_is_the_optimum(variance, masked):
    vae = build(
        data_shape=(5,), latent_dim=2, hidden=(8,), likelihood=f"{'masked:' * bool(masked)}normal",
        likelihood_options={"variance": variance},
    ).double()  # fmt: skip
    x = 0.3 * torch.randn(60, 5, dtype=torch.float64) * torch.arange(1, 6)
    c = ()
    if masked:
        x, mask = holed(x)
    if masked == "mask":
        x, c = x.nan_to_num(nan=100.0), (mask.double(),)
    sigma = pairs.fit_variance(vae, x, *c, num_particles=50)
    part = vae.likelihood.likelihood if masked else vae.likelihood
    assert sigma.shape == part.s.shape
    with seeded(0):
        z = vae.encode(x, *c).sample((50,))
    vae.likelihood(z, *c).log_prob(x).mean().backward()
    assert part.s.grad.abs().max() < 1e-9  # the same draws: exactly at the maximum
    with torch.no_grad():
        part.s += 0.01
    part.s.grad = None
    vae.likelihood(z, *c).log_prob(x).mean().backward()
    assert part.s.grad.abs().max() > 1e-3
    with torch.no_grad():
        for p in vae.likelihood.net.parameters():
            p.zero_()
    constant = pairs.fit_variance(vae, torch.zeros(3, 5, dtype=torch.float64))
    torch.testing.assert_close(constant, torch.full_like(constant, 0.5 / 255))  # the floor
    for name, options in (("bernoulli", {}), ("normal", {"variance": "predicted"})):
        other = build(data_shape=(5,), latent_dim=2, likelihood=name, likelihood_options=options)
        with pytest.raises(ValueError, match=r"variance Shared\(\) or PerDimension\(\); got"):
            pairs.fit_variance(other, x)


def test_what_a_mask_hides_need_not_be_on_the_support():
    vae = build(data_shape=(5,), latent_dim=2, hidden=(8,), likelihood="masked:bernoulli")
    x, mask = holed((torch.rand(9, 5) > 0.5).float())
    garbage = x.nan_to_num(nan=17.3)
    by_mask = log_weights(vae.model, vae.guide, garbage, mask, num_particles=3)
    torch.testing.assert_close(by_mask, log_weights(vae.model, vae.guide, x, num_particles=3))
    fit(vae.model, vae.guide, (garbage, mask), epochs=1)
    with pytest.raises(ValueError, match="support"):
        fit(vae.model, vae.guide, (garbage, torch.ones_like(garbage)), epochs=1)


def test_imputation_in_passes_is_that_in_one(monkeypatch):
    """The mean exactly but for the draws; the samples' choice over all passes; log p(x_obs)."""
    from pyrovae.importance import weights

    vae, mean, cov = linear()
    x, mask = holed(torch.randn(8, 5, dtype=torch.float64))
    exact = evidence.linear_gaussian(vae.model, vae.guide, x).log_evidence
    monkeypatch.setattr(weights, "MAX_ROWS", 8 * 50)
    found = evidence.impute(vae.model, vae.guide, x, num_particles=20_000, num_samples=300)
    error = (1 / found.effective_sample_size).sqrt()
    assert ((found.log_evidence - exact).abs() < 5 * error).all()
    row = 0  # nothing is seen of it: the draws are the prior's
    few = (1 / 300 + 1 / found.effective_sample_size[row].item()) ** 0.5
    sd = np.sqrt(np.diag(cov))
    assert (np.abs(found.samples[:, row].numpy().mean(0) - mean) < 5 * sd * few).all()
    kinds = len(found.samples[:, row].unique(dim=0))
    assert kinds > 100  # more than one pass of 50 draws holds: the choice is over all of them


def test_context_of_the_data_shape_is_no_mask_where_the_part_takes_it_as_context():
    q = posteriors.MeanFieldNormal((4,), 2, NET, context_dim=4, missing=True)
    vae = VAE(priors.StandardNormal(2), Masked(Normal(2, (4,), NET, context_dim=4)), q)
    x, mask = holed(torch.randn(9, 4))
    c = (torch.rand(9, 4) > 0.5).float()
    found = evidence.impute(vae.model, vae.guide, x, c, num_particles=20)
    assert torch.equal(found.missing, ~mask)


def test_whole_numbers_with_a_mask_are_imputed():
    vae = build(data_shape=(5,), latent_dim=2, hidden=(8,), likelihood="masked:bernoulli")
    x, mask = torch.ones(6, 5, dtype=torch.long), torch.rand(6, 5) > 0.5
    assert evidence.impute(
        vae.model, vae.guide, x, mask, num_particles=9
    ).mean.dtype.is_floating_point


def test_draws_of_what_is_missing_have_the_conditional_covariance():
    vae, mean, cov = linear(rank=2)
    d = vae.decode(torch.zeros(20_000, 2)).base
    x = torch.zeros(20_000, 5, dtype=torch.float64)
    seen = torch.tensor([True, False, True, False, False]).expand_as(x)
    drawn = vae.likelihood(torch.zeros(20_000, 2, dtype=torch.float64)).completed(
        torch.where(seen, x, NAN), draw=True
    )
    factor, scale = d.factor[0].detach().numpy(), d.scale[0].detach().numpy()
    noise = factor @ factor.T + np.diag(scale**2)
    m = seen[0].numpy()
    gain = noise[np.ix_(~m, m)] @ np.linalg.inv(noise[np.ix_(m, m)])
    expected = noise[np.ix_(~m, ~m)] - gain @ noise[np.ix_(m, ~m)]
    assert torch.equal(drawn[:, m], x[:, m])
    got = np.cov(drawn.detach().numpy()[:, ~m].T)
    assert np.abs(got - expected).max() < 0.06 * np.abs(expected).max()  # 6 sd of 20,000 draws'


def test_a_group_of_columns_names_its_options():
    part = Mixed(2, (2,), columns=[("normal", [0, 1], {"variance": "per-dimension"})])
    assert part.groups[0].s.shape == (2,)
