import math

import pairs_of_users as users
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import LIKELIHOODS, POSTERIORS, PRIORS
from cases.pairing import shipped

from pyrovae import VAE, build, likelihoods, log_weights, posteriors, priors
from pyrovae.importance import (
    batched,
    check_support,
    find_modules,
    inspect,
    log_joint,
    log_terms,
    simulate,
)

F64 = torch.float64


def linear_gaussian(d=3, dims=6, sigma=0.4, n=5):
    """p(x) = N(mu, W W' + sigma^2 I), with the exact posterior set by hand as the guide.

    Bishop (2006), eq. 12.42: q(z|x) = N(M^-1 W' (x - mu), sigma^2 M^-1), M = W'W + sigma^2 I.
    """
    torch.manual_seed(1)
    w, mu = torch.randn(dims, d, dtype=F64), torch.randn(dims, dtype=F64)
    decoder = torch.nn.Linear(d, dims).double()
    decoder.weight.data, decoder.bias.data = w, mu
    m_inverse = torch.linalg.inv(w.T @ w + sigma**2 * torch.eye(d, dtype=F64))
    tril = torch.linalg.cholesky(sigma**2 * m_inverse)
    below = tril[tuple(torch.tril_indices(d, d, -1))]
    encoder = torch.nn.Linear(dims, d + d * (d + 1) // 2).double()
    encoder.weight.data = torch.zeros_like(encoder.weight)
    encoder.weight.data[:d] = m_inverse @ w.T
    encoder.bias.data = torch.cat([-m_inverse @ w.T @ mu, tril.diagonal().log(), below])
    vae = VAE(
        priors.StandardNormal(d),
        likelihoods.Normal(d, (dims,), decoder, variance=likelihoods.Fixed(sigma)),
        posteriors.FullRankNormal((dims,), d, encoder),
    ).double()
    evidence = dist.MultivariateNormal(mu, w @ w.T + sigma**2 * torch.eye(dims, dtype=F64))
    x = torch.randn(n, dims, dtype=F64)
    return vae, x, evidence.log_prob(x)


def test_every_weight_of_the_exact_posterior_is_the_evidence():
    vae, x, log_evidence = linear_gaussian()
    log_w = log_weights(vae.model, vae.guide, x, num_particles=50)
    assert log_w.shape == (50, 5)
    torch.testing.assert_close(log_w, log_evidence.expand(50, 5), rtol=0, atol=1e-10)


def test_a_guide_that_is_off_is_seen():
    vae, x, log_evidence = linear_gaussian()
    vae.posterior.net.bias.data[0] += 0.01
    log_w = log_weights(vae.model, vae.guide, x, num_particles=50)
    assert (log_w - log_evidence).abs().max() > 1e-3


def test_chunks_cover_every_row_and_particle():
    vae, x, log_evidence = linear_gaussian(n=7)
    for max_rows in (1, 3, 7, 20, 1000):
        log_w = log_weights(vae.model, vae.guide, x, num_particles=9, max_rows=max_rows)
        torch.testing.assert_close(log_w, log_evidence.expand(9, 7), rtol=0, atol=1e-10)


def test_chunks_share_no_noise():
    vae = build(data_shape=(4,), latent_dim=2, hidden=(3,))
    x = torch.ones(5, 4)  # alike rows: only the noise tells them apart
    log_w = log_weights(vae.model, vae.guide, x, num_particles=6, max_rows=1)
    assert len(log_w.unique()) == 30


def test_rows_of_few_numbers_are_bounded_too():
    seen = []
    vae = build(data_shape=(2,), latent_dim=2, hidden=(3,))
    vae.posterior.register_forward_hook(lambda module, inputs, q: seen.append(len(inputs[0])))
    log_weights(vae.model, vae.guide, torch.ones(400, 2), num_particles=400)
    assert max(seen) <= 2**16


def test_passes_are_bounded():
    seen = []
    vae, x, _ = linear_gaussian(n=7)
    vae.posterior.register_forward_hook(lambda module, inputs, q: seen.append(len(inputs[0])))
    log_weights(vae.model, vae.guide, x, num_particles=9, max_rows=20)
    assert max(seen) <= 20


def test_a_pair_of_two_functions_with_context():
    """Against the same figures, computed row by row and particle by particle."""
    decoder, encoder = users.networks()
    x, c = users.batch()
    for size in (None, 1000):  # 1,000: the plate's scale is no business of a weight
        pair = users.conditional(decoder, encoder, size)
        terms = log_terms(*pair, x, c, num_particles=40, seed=2, max_rows=10**6)
        torch.manual_seed(2)
        loc, log_scale = encoder(torch.cat([x, c], -1)).chunk(2, -1)
        q = dist.Normal(loc, log_scale.exp()).to_event(1)
        z = loc + log_scale.exp() * torch.randn(40 * 6, users.LATENT).reshape(40, 6, -1)
        logits = decoder(torch.cat([z, c.expand(40, 6, 1)], -1))
        likelihood = dist.Bernoulli(logits=logits).to_event(1).log_prob(x)
        prior = dist.Normal(torch.zeros(users.LATENT), 1.0).to_event(1).log_prob(z)
        torch.testing.assert_close(terms.log_likelihood, likelihood)
        torch.testing.assert_close(terms.log_prior, prior)
        torch.testing.assert_close(terms.log_guide, q.log_prob(z))
        torch.testing.assert_close(terms.log_weight, likelihood + prior - q.log_prob(z))


def test_weights_have_gradients():
    decoder, encoder = users.networks()
    x, c = users.batch()
    log_weights(*users.conditional(decoder, encoder), x, c, num_particles=3).sum().backward()
    assert all(p.grad.any() for p in (*decoder.parameters(), *encoder.parameters()))


def test_masks_are_honoured():
    x = torch.tensor([[1.0] * 5, [-1.0] * 5])
    with pyro.poutine.block():
        terms = log_terms(users.masked_model, users.plain_guide, x)
    assert terms.log_likelihood[0, 1] == terms.log_prior[0, 1] == 0
    assert terms.log_likelihood[0, 0] != 0

    def masked_guide(x):
        with pyro.poutine.mask(mask=x[:, 0] > 0):
            users.plain_guide(x)

    with pyro.get_param_store().scope():
        both = log_terms(users.masked_model, masked_guide, x)
    assert both.log_guide[0, 1] == 0 and both.log_guide[0, 0] != 0
    assert both.log_weight[0, 1] == 0


def test_a_seed_gives_the_same_draws_and_leaves_the_global_ones():
    vae = build(data_shape=(4,), latent_dim=2, hidden=(3,))
    x = torch.ones(3, 4)
    torch.manual_seed(0)
    first = log_weights(vae.model, vae.guide, x, num_particles=4)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(first, log_weights(vae.model, vae.guide, x, num_particles=4))
    assert not torch.equal(first, log_weights(vae.model, vae.guide, x, num_particles=4, seed=1))


def test_modules_are_evaluated_and_set_back():
    vae = build(data_shape=(4,), latent_dim=2, hidden=(3,))
    vae.likelihood.net.hidden.append(torch.nn.Dropout(0.5))
    modes = []
    vae.likelihood.net.register_forward_hook(lambda m, i, o: modes.append(m.training))
    log_weights(vae.model, vae.guide, torch.ones(3, 4), num_particles=2)
    assert modes and not any(modes)
    assert vae.training and vae.likelihood.net.hidden[-1].training


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (users.no_event, users.plain_guide, r"site 'z'.*to_event"),
        (
            users.plain_model, users.empty_guide,
            "site 'z': it is latent in the model but the guide does not sample it",
        ),
        (
            users.plain_model, users.extra_guide,
            "site 'u': the guide samples it but the model does not",
        ),
        (
            users.outside_model, users.outside_guide,
            "site 'z': in the model it stands outside the data's plate, so it has no value a datum",
        ),
        (
            users.plain_model, users.scalar_guide,
            r"site 'z': event shape \(2,\) in the model, \(\) in the guide: declare",
        ),
    ],
)  # fmt: skip
def test_invalid_pairs_are_refused(model, guide, message):
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match=message):
        log_weights(model, guide, torch.ones(2, users.D))


def test_no_event_is_refused_whatever_the_number_of_rows():
    for n in (1, 2, 3, 5):
        with pyro.get_param_store().scope(), pytest.raises(ValueError, match="to_event"):
            log_weights(users.no_event, users.plain_guide, torch.ones(n, users.D))


def test_inspect_tells_what_a_pair_is_made_of():
    decoder, encoder = users.networks()
    x, c = users.batch()
    structure = inspect(*users.conditional(decoder, encoder, size=60), x, c)
    structure.check()
    assert list(structure.sites) == ["z", "x"]
    z, datum = structure.sites["z"], structure.datum
    assert structure.latents == (z,)
    assert (z.observed, z.in_guide, z.reparameterised) == (False, True, True)
    assert (z.batch_shape, z.event_shape, z.plates) == ((6,), (2,), ("data",))
    assert (datum.name, datum.distribution, datum.event_shape) == ("x", "Bernoulli", (5,))
    plate = structure.data_plate
    assert (plate.name, plate.dim, plate.size, plate.subsample_size) == ("data", -1, 60, 6)


def test_log_joint_and_simulate():
    vae, x, _ = linear_gaussian()
    drawn = simulate(vae.model, x)
    assert drawn["z"].shape == (5, 3)
    assert drawn["x"].shape == x.shape and not torch.equal(drawn["x"], x)
    assert torch.equal(simulate(vae.model, x)["x"], drawn["x"])
    z = torch.randn(4, 5, 3, dtype=F64)
    expected = vae.prior().log_prob(z) + vae.likelihood(z).log_prob(x)
    torch.testing.assert_close(log_joint(vae.model, {"z": z}, x), expected)
    with pytest.raises(ValueError, match="site 'z': it is latent in the model but no value"):
        log_joint(vae.model, {}, x)
    with pytest.raises(ValueError, match=r"site 'z': expected values of shape \(4, 5"):
        log_joint(vae.model, {"z": z[:, :2]}, x)


def test_simulate_leaves_deterministic_sites_out():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = pyro.deterministic("loc", z)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    drawn = simulate(model, torch.zeros(5, 2))
    assert {name: tuple(v.shape) for name, v in drawn.items()} == {"z": (5, 2), "x": (5, 2)}


def test_grey_data_are_named_by_log_weights():
    vae = build(data_shape=(4,), latent_dim=2, hidden=(3,))
    with pytest.raises(ValueError, match="site 'x'.*Bernoulli.*binarise them"):
        log_weights(vae.model, vae.guide, torch.full((3, 4), 0.5))


def test_simulated_data_have_the_models_moments():
    vae, x, _ = linear_gaussian(dims=2, n=40_000)
    drawn = simulate(vae.model, x)["x"]
    w = vae.likelihood.net.weight.detach()
    cov = w @ w.T + 0.4**2 * torch.eye(2, dtype=F64)
    error = (cov.diagonal() / len(x)).sqrt()
    assert bool(((drawn.mean(0) - vae.likelihood.net.bias).abs() < 4.5 * error).all())


def test_batched():
    module = torch.nn.Linear(2, 2).double()
    x, (c,) = batched([[1, 2]], [torch.tensor([3])], [module])
    assert (x.dtype, c.dtype) == (F64, torch.int64)
    assert batched(torch.tensor([[1]]))[0].dtype == torch.get_default_dtype()
    for bad, message in [
        ((torch.zeros(0, 2),), "at least one row"),
        ((torch.tensor(1.0),), "at least one row"),
        ((torch.tensor([[1.0], [math.nan]]),), r"1 bad values, the first nan at index \(1, 0\)"),
        ((["a"],), "array of numbers"),
        ((torch.ones(2, 1), [torch.ones(3, 1)]), "context 1 to have as many rows as x; got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            batched(*bad)


def test_find_modules():
    import functools

    vae = build(data_shape=(4,), latent_dim=2, hidden=(3,))
    net = torch.nn.Linear(1, 1)
    assert find_modules(vae.model, vae.guide) == [vae]
    assert find_modules(functools.partial(vae.model), net, modules=[net]) == [vae, net]
    assert find_modules(users.plain_model, users.plain_guide) == []


@pytest.mark.parametrize(
    ("likelihood", "bad", "message"),
    [
        (
            "bernoulli",
            0.5,
            r"Bernoulli \(Boolean\); got 1 of 12 .* 0.5 at index \(1, 2, 1\): binar",
        ),
        ("binomial", 17.0, r"Binomial \(IntegerInterval in \[0, 16\]\).*whole numbers"),
        ("continuous-bernoulli", 1.5, r"\(Interval in \[0, 1\]\).*rescale"),
    ],
)
def test_data_off_the_support_are_counted(likelihood, bad, message):
    vae = build(data_shape=(3, 2), latent_dim=2, hidden=(3,), likelihood=likelihood)
    x = torch.zeros(2, 3, 2)
    site = inspect(vae.model, vae.guide, x).datum
    check_support(site, x)
    x[1, 2, 1] = bad
    with pytest.raises(ValueError, match=message):
        check_support(site, x)


def test_nan_of_a_rare_draw_is_refused():
    """Values are validated in the first pass alone; one NaN in 10^5 draws is seen all the same."""

    def rare(z):
        logits = torch.where(z > 4.0, torch.nan, z).expand(-1, 3)
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(1)

    def model(x, law=rare):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", law(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    x = torch.ones(2, 3)
    log_weights(model, guide, x, num_particles=10)
    with pytest.raises(ValueError, match=r"NaN or \+inf at \d+ of \d+ draws, of [12] data"):
        log_weights(model, guide, x, num_particles=200_000)


def test_num_particles_is_checked():
    vae = build(data_shape=(4,), latent_dim=2, hidden=(3,))
    with pytest.raises(ValueError, match="num_particles to be a positive whole number; got 0"):
        log_weights(vae.model, vae.guide, torch.ones(3, 4), num_particles=0)


@pytest.mark.parametrize("case", LIKELIHOODS, ids=lambda c: c.id)
def test_every_likelihood_in_a_pair(case):
    vae = shipped(PRIORS[0], POSTERIORS[0], case).double()
    x = vae.sample(3)
    assert x.shape == (3, *vae.likelihood.data_shape)
    assert log_weights(vae.model, vae.guide, x, num_particles=4).isfinite().all()


def test_data_too_large_for_the_first_weights_are_told_so():
    """And what the message names, an input_scale, is the remedy."""
    x = torch.full((4, 6), 3e5)
    options = {"data_shape": (6,), "latent_dim": 2, "likelihood": "poisson", "hidden": (8,)}
    vae = build(**options)
    with pytest.raises(ValueError, match=r"as large as 3e\+05: scale them.*an input_scale"):
        log_weights(vae.model, vae.guide, x)
    scaled = build(**options, posterior_options={"input_scale": 1e-5})
    assert bool(log_weights(scaled.model, scaled.guide, x).isfinite().all())
    with torch.no_grad():
        vae.posterior.net.output.bias.fill_(math.nan)
    with pytest.raises(ValueError) as refused:  # another cause, with data that are small
        log_weights(vae.model, vae.guide, torch.ones(4, 6))
    assert "input_scale" not in str(refused.value)
