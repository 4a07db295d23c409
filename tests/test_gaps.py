"""The two gaps of inference, against exact posteriors and the best normals in closed form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs_of_users import plain_model
from test_importance import linear_gaussian
from torch.distributions import MultivariateNormal, kl_divergence

from pyrovae import build, evidence, fit
from pyrovae.evidence import families, inference


def off(scale=0.3):
    """A linear pair whose full-rank guide is off its place and too wide."""
    vae, x, log_evidence = linear_gaussian()
    vae.posterior.net.bias.data[:3] += 0.1
    vae.posterior.net.bias.data[3:6] += scale
    return vae, x, log_evidence


def diagonal(x):
    """A guide of independent normals at 0 for the linear pair, as a user writes one."""
    with pyro.plate("data", len(x)):
        loc = torch.zeros(len(x), 3, dtype=x.dtype)
        pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))


def test_with_the_exact_guide_both_are_nothing():
    vae, x, log_evidence = linear_gaussian()
    found = evidence.gaps(vae.model, vae.guide, x)
    assert float(found.approximation.abs().max()) < 1e-6
    assert float(found.amortization.abs().max()) < 1e-6
    torch.testing.assert_close(found.log_evidence, log_evidence, rtol=0, atol=1e-6)


def test_a_guide_of_the_right_family_has_an_amortization_gap_alone():
    """It is KL(q || p(z|x)), in closed form; negative control: the family's is not."""
    vae, x, log_evidence = off()
    found = evidence.gaps(vae.model, vae.guide, x, log_evidence=log_evidence)
    exact = evidence.exact(vae.model, vae.guide, x)
    q = vae.encode(x)
    kl = kl_divergence(
        MultivariateNormal(q.mean, scale_tril=q.scale_tril),
        MultivariateNormal(exact.mean, exact.covariance),
    ).detach()
    assert bool((found.approximation.abs() < 0.01).all())
    assert bool(((found.amortization - kl).abs() < 4.5 * found.amortization_se + 0.01).all())
    assert bool((found.approximation - kl < -0.1).all())
    torch.testing.assert_close(
        found.approximation + found.amortization, log_evidence - found.elbo, rtol=0, atol=1e-9
    )


def test_a_diagonal_family_has_the_approximation_gap_of_its_best_member():
    """min_q KL(q || p) over diagonal normals: (log |diag(P)| - log |P|) / 2, P the precision."""
    vae, x, log_evidence = linear_gaussian()
    exact = evidence.exact(vae.model, vae.guide, x)
    precision = exact.covariance.inverse()
    best = 0.5 * (precision.diagonal(dim1=1, dim2=2).log().sum(-1) - torch.logdet(precision))
    own = evidence.gaps(vae.model, diagonal, x, log_evidence=exact, modules=[vae])
    assert float(best.min()) > 0.1
    assert bool(((own.approximation - best).abs() < 4.5 * own.best_elbo_se + 0.01).all())
    assert bool((own.amortization > 1).all())
    full = evidence.gaps(
        vae.model, diagonal, x, family="full-rank", log_evidence=exact, modules=[vae]
    )
    assert bool((full.approximation.abs() < 0.02).all())
    assert bool((full.approximation < own.approximation - 0.1).all())
    torch.testing.assert_close(full.elbo, own.elbo)  # the guide is the same, and so its noise


def banana(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
        bent = z[..., 1:] - z[..., :1].square() + 1
        pyro.sample("x", dist.Normal(bent, 0.3).to_event(1), obs=x)


def straight(x):
    with pyro.plate("data", len(x)):
        loc = torch.zeros(len(x), 2, dtype=x.dtype)
        pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))


def test_a_flow_bends_where_normals_cannot():
    x = torch.tensor([[0.0], [1.0]]).double()
    exact = evidence.exact(banana, straight, x)
    found = {
        family: evidence.gaps(banana, straight, x, family=family, log_evidence=exact)
        for family in inference.FAMILIES
    }
    for one in found.values():
        assert bool((one.approximation > -3.5 * one.approximation_se).all())
        assert bool((one.amortization > -3.5 * one.amortization_se).all())
    assert bool((found["full-rank"].approximation > 0.3).all())
    assert bool((found["flow"].approximation < 0.5 * found["full-rank"].approximation).all())


def test_the_density_of_the_flow_is_that_of_its_draws():
    """E_q[w] = p(x) whatever the maps, within 4.5 standard errors; without their Jacobian not."""
    x = torch.tensor([[0.0], [1.0]]).double()
    exact = evidence.exact(banana, straight, x).log_evidence
    ((_, each),) = inference.families(banana, straight, x, (), "flow", ())
    each.bend()
    generator = torch.Generator().manual_seed(1234)
    with torch.no_grad():
        for p in each.parameters:
            p += 0.15 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        log_w = each.log_weights(40_000, 3)
        ratio = (log_w - exact).exp()
        assert bool(((ratio.mean(0) - 1).abs() < 4.5 * ratio.std(0) / 200).all())
        assert ratio.std(0).max() < 12
        move, *maps = each.parameters
        noise = torch.randn(1000, 2, 2, dtype=x.dtype)
        _, log_det = each._mapped(each.family.points(move, noise), *maps)
        assert float(log_det.std()) > 0.05


def test_the_default_evidence_is_a_bound_by_the_best_q():
    vae, x, log_evidence = off(scale=0.8)
    found = evidence.gaps(vae.model, vae.guide, x)
    error = (found.log_evidence - log_evidence).abs()
    assert bool((error < 4.5 * found.log_evidence_se + 1e-6).all())
    assert bool((found.approximation > -3.5 * found.approximation_se).all())
    worse = evidence.iwae(vae.model, vae.guide, x, num_particles=1000).standard_error
    assert float(found.log_evidence_se.max()) < 0.2 * float(worse.min())


def test_any_guide_of_a_module_is_trained_as_a_copy():
    """A flow posterior: its gaps are what they should be, and it stays as it was."""
    vae = build(
        data_shape=(4,), latent_dim=2, likelihood="normal", hidden=(8,), seed=1,
        likelihood_options={"variance": "fixed:0.5"}, net_options={"activation": "tanh"},
        posterior="flow-posterior", posterior_options={"flow": "planar"},
    ).double()  # fmt: skip
    x = vae.sample(2, seed=1234)
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    names = set(pyro.get_param_store().keys())
    exact = evidence.exact(vae.model, vae.guide, x)
    found = evidence.gaps(vae.model, vae.guide, x, log_evidence=exact)
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())
    new = set(pyro.get_param_store().keys()) - names
    assert all(name.startswith("VAE-") for name in new) and len(new) <= len(before)
    assert bool((found.amortization > -3.5 * found.amortization_se).all())
    assert float(found.amortization.max()) > 0.1
    assert bool((found.approximation > -3.5 * found.approximation_se).all())
    assert bool((found.approximation < 0.3).all())


def test_a_copy_takes_steps_that_its_weights_bear(monkeypatch):
    """With a normal guide's rate, counted in its standard deviations, the second is NaN."""
    vae = build(
        pair="hierarchical-vae", data_shape=(64,), latent_dim=4, likelihood="binomial", seed=0,
        likelihood_options={"total_count": 16},
    )  # fmt: skip
    x = vae.sample(200, seed=1)
    fit(vae.model, vae.guide, x, epochs=3, seed=0)
    monkeypatch.setattr(inference, "LOOKS", 3)
    found = evidence.gaps(vae.model, vae.guide, x[:2], num_particles=200)
    assert bool((found.amortization > 3 * found.amortization_se).all())
    monkeypatch.setattr(families.Copied, "unit", 1.0)
    with pytest.raises((FloatingPointError, ValueError), match="finite|invalid values"):
        evidence.gaps(vae.model, vae.guide, x[:2], num_particles=200)


def test_what_generalises_less_has_a_larger_gap():
    vae, x, log_evidence = linear_gaussian()
    good = evidence.gaps(vae.model, vae.guide, x)
    vae, x, _ = off()
    bad = evidence.gaps(vae.model, vae.guide, x)
    difference, error = evidence.generalisation(good, bad)
    means = bad.means()
    assert difference == pytest.approx(means["amortization"][0], abs=1e-6) and difference > 0.1
    assert error == pytest.approx(float(bad.amortization.std()) / math.sqrt(5), abs=1e-6)
    assert evidence.generalisation(bad, bad)[0] == 0


def test_it_is_repeatable_and_kept(tmp_path, capsys, monkeypatch):
    vae, x, _ = off()
    monkeypatch.setattr(inference, "ROWS", 3)
    monkeypatch.setattr(inference, "LOOKS", 2)
    state = torch.random.get_rng_state()
    one = evidence.gaps(vae.model, vae.guide, x, num_particles=50)
    assert torch.equal(torch.random.get_rng_state(), state)
    path = tmp_path / "gaps.safetensors"
    options = {"num_particles": 50, "resume": path, "progress": True}
    two = evidence.gaps(vae.model, vae.guide, x, **options)
    three = evidence.gaps(vae.model, vae.guide, x, **options)
    assert torch.equal(one.best_elbo, two.best_elbo)
    assert torch.equal(two.best_elbo, three.best_elbo)
    assert "gaps: 5 data x 16 draws or more" in capsys.readouterr().err


def test_bad_requests_are_refused():
    vae, x, _ = off()
    for options, message in (
        ({"family": "best"}, "family to be one of own, full-rank, flow; got 'best'"),
        ({"num_particles": 1}, "num_particles to be a whole number >= 2; got 1"),
        ({"lr": 0.0}, "lr to be positive and finite; got 0.0"),
        ({"log_evidence": torch.zeros(4)}, r"log_evidence of shape \(5,\); got \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            evidence.gaps(vae.model, vae.guide, x, **options)
    discrete = build(data_shape=(4,), latent_dim=2, prior="categorical", posterior="categorical")
    with pytest.raises(ValueError, match="expected a guide with `rsample`"):
        evidence.gaps(discrete.model, discrete.guide, torch.ones(1, 4))
    laplace = build(data_shape=(4,), latent_dim=2, posterior="mixture-of-normals")
    with pytest.raises(ValueError, match="expected a normal guide of one site, to start .*'flow'"):
        evidence.gaps(laplace.model, laplace.guide, torch.ones(1, 4), family="flow")

    def heavy(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Laplace(torch.zeros(len(x), 2), 1.0).to_event(1))

    with pytest.raises(ValueError, match="of which a copy can be trained .*heavy"):
        evidence.gaps(plain_model, heavy, torch.ones(2, 5))
