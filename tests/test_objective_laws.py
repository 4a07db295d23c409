"""Every objective goes through the same laws; one without a case fails the suite."""

import pyro
import pytest
import torch
from cases.objectives import OBJECTIVES, ObjectiveCase
from fixed_noise import N, Noisy, batch, evaluated
from pyro.infer import SVI, RenyiELBO, Trace_ELBO

from pyrovae import build, evidence, fit, objectives
from pyrovae.distributions import seeded

every = pytest.mark.parametrize("case", OBJECTIVES, ids=lambda c: c.id)
any_pair = pytest.mark.parametrize(
    "case", [c for c in OBJECTIVES if not c.parts_only], ids=lambda c: c.id
)
LEVELS = 4.0  # standard errors; each a failure with probability 6e-5


def without_case(names):
    return set(names) - {c.id for c in OBJECTIVES}


def test_every_objective_has_a_case():
    assert not without_case(objectives.__all__)


def test_an_objective_without_a_case_is_seen():
    """Negative control."""
    assert without_case([*objectives.__all__, "NewELBO"]) == {"NewELBO"}


def small(latent_dim=2, **options):
    vae = build(data_shape=(4,), latent_dim=latent_dim, hidden=(5,), seed=3, **options).double()
    generator = torch.Generator().manual_seed(1234)
    return vae, (torch.rand(9, 4, generator=generator) > 0.4).double()


def gradients(vae):
    return {n: None if p.grad is None else p.grad.clone() for n, p in vae.named_parameters()}


@every
@pytest.mark.parametrize("prior", ["standard-normal", "vamp-prior"])
def test_svi_elbo_module_and_loss_agree(case: ObjectiveCase, prior):
    vae, x = small(prior=prior)
    with seeded(5):
        loss = case.make().loss_and_grads(vae.model, vae.guide, x)
    expected = gradients(vae)
    vae.zero_grad(set_to_none=True)
    with seeded(5):
        case.make()(vae.model, vae.guide)(x).backward()
    for name, gradient in gradients(vae).items():
        assert (gradient is None) == (expected[name] is None)
        assert gradient is None or torch.equal(gradient, expected[name]), name
    with seeded(5):
        assert case.make().loss(vae.model, vae.guide, x) == pytest.approx(loss, rel=1e-12)
    before = [p.detach().clone() for p in vae.parameters()]
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), case.make())
    with seeded(5):
        assert svi.step(x) == pytest.approx(loss, rel=1e-12)
    assert any(not torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


@every
def test_fit_trains_with_it(case: ObjectiveCase):
    """The evidence rises; where the guide alone is trained, its forward KL falls."""
    vae, x = small(latent_dim=1)
    x = torch.cat([x, 1 - x[:2]]).float()
    vae.float()
    decoder = [p.detach().clone() for p in vae.likelihood.parameters()]

    def measured():
        exact = evidence.exact(vae.model, vae.guide, x).log_evidence.mean()
        return float(exact if case.trains_model else -case.make().loss(vae.model, vae.guide, x))

    with seeded(4):
        before = measured()
    fit(vae.model, vae.guide, x, objective=case.make(), epochs=50, lr=0.03)
    with seeded(4):
        assert measured() > before + (0.1 if case.trains_model else 0.02)
    now = vae.likelihood.parameters()
    moved = any(not torch.equal(a, b) for a, b in zip(decoder, now, strict=True))
    assert moved == case.trains_model


@every
def test_a_bound_is_below_the_exact_evidence(case: ObjectiveCase):
    if not case.bounds:
        return
    vae, x = small()
    exact = evidence.exact(vae.model, vae.guide, x).log_evidence.sum()
    losses = torch.tensor([case.make().loss(vae.model, vae.guide, x) for _ in range(200)])
    assert -losses.mean() - LEVELS * losses.std() / 200**0.5 < exact


@every
def test_at_its_elbo_it_is_the_elbo(case: ObjectiveCase):
    """In value and gradient, a mean over 3,000 draws of each datum."""
    if case.at_elbo is None:
        return
    vae, x = small(prior="vamp-prior", prior_options={"num_components": 3})
    rows = x.repeat(30, 1)

    def draws(make):
        found = []
        for seed in range(100):
            vae.zero_grad(set_to_none=True)
            with seeded(1000 + seed):
                loss = make().loss_and_grads(vae.model, vae.guide, rows)
            flat = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
                    for p in vae.parameters()]  # fmt: skip
            found.append(torch.cat([torch.tensor([loss], dtype=torch.float64), *flat]))
        return torch.stack(found)

    ours, theirs = draws(case.at_elbo), draws(Trace_ELBO)
    error = ((ours.var(0) + theirs.var(0)) / 100).sqrt()
    z = (ours.mean(0) - theirs.mean(0)).abs() / (error + 1e-9)
    assert z.max() < 5, z.max()  # of 100 numbers: p < 1e-4
    wrong = (1.02 * ours.mean(0) - theirs.mean(0)).abs() / (error + 1e-9)
    assert wrong.max() > 5  # negative control: 2% too large is seen


SUMS = [c for c in OBJECTIVES if c.sums and not c.parts_only and c.trains_model]


@pytest.mark.parametrize("case", SUMS, ids=lambda c: c.id)
@pytest.mark.parametrize("k", [None, 10])
def test_minibatches_keep_the_sum(case: ObjectiveCase, k):
    """Tenths of the data, by the plate or by poutine.scale: in the mean the full data's."""
    objective = case.make()
    if k is not None:  # 2 rows x 10 particles are as many as the plate's 20 data
        if not hasattr(objective, "bound") and not isinstance(objective, objectives.DReG):
            return
        objective.num_particles = k
    x, noise = batch()
    full = evaluated(Noisy(), objective, x, noise)
    for pair in (Noisy(size=N), Noisy(scale=10.0)):
        parts = [evaluated(pair, objective, x[i : i + 2], noise[i : i + 2])
                 for i in range(0, N, 2)]  # fmt: skip
        assert sum(p[0] for p in parts) / 10 == pytest.approx(full[0], rel=1e-12)
        mean = torch.stack([p[1] for p in parts]).mean(0)
        torch.testing.assert_close(mean, full[1], rtol=1e-9, atol=1e-10)


def test_a_scale_in_the_wrong_place_is_caught():
    """Negative controls: no scale at all, and Pyro's RenyiELBO, which has it in the logarithm."""
    x, noise = batch()
    full = evaluated(Noisy(), objectives.IWAE(5), x, noise)[0]
    unscaled = [evaluated(Noisy(), objectives.IWAE(5), x[i : i + 2], noise[i : i + 2])[0]
                for i in range(0, N, 2)]  # fmt: skip
    assert sum(unscaled) / 10 != pytest.approx(full, rel=0.1)
    theirs = RenyiELBO(alpha=0.0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    whole = theirs.loss(Noisy().model, Noisy().guide, x, noise)
    pair = Noisy(size=N)
    parts = [theirs.loss(pair.model, pair.guide, x[i : i + 2], noise[i : i + 2])
             for i in range(0, N, 2)]  # fmt: skip
    assert sum(parts) / 10 != pytest.approx(whole, rel=1e-3)


@any_pair
def test_a_whole_scale_multiplies_the_loss(case: ObjectiveCase):
    x, noise = batch()
    pairs = Noisy(), Noisy(scale=10.0)
    found = []
    for pair in pairs:
        with seeded(3):
            found.append(evaluated(pair, case.make(), x, noise))
    assert found[1][0] == pytest.approx(10 * found[0][0], rel=1e-9)
    torch.testing.assert_close(found[1][1], 10 * found[0][1], rtol=1e-9, atol=1e-9)


@any_pair
def test_a_datum_sees_its_batch_only_where_the_objective_says_so(case: ObjectiveCase):
    x, noise = batch()
    pair, objective = Noisy(), case.make()
    if not hasattr(objective, "estimate"):  # Pyro's own sums
        return

    def first(rows):
        with seeded(3):
            return objective.estimate(pair.model, pair.guide, rows, noise).value[0].item()

    other = torch.cat([x[:1], 1 - x[1:]])
    if case.trains_model:
        assert (first(x) != pytest.approx(first(other), rel=1e-9)) == objective.couples_batch


@any_pair
def test_masked_data_count_nothing(case: ObjectiveCase):
    x, noise = batch()
    x[:, 0] = (torch.arange(N) < 12).double()
    masked = Noisy(mask=lambda x: x[:, 0] > 0)
    if case.sums and case.trains_model:
        whole = evaluated(masked, case.make(), x, noise)
        kept = evaluated(Noisy(), case.make(), x[:12], noise[:12])
        assert whole[0] == pytest.approx(kept[0], rel=1e-12)
        torch.testing.assert_close(whole[1], kept[1], rtol=1e-9, atol=1e-10)


def no_plate(x):
    z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        law = pyro.distributions.Normal(z.sum().expand(len(x), 4), 1.0)
        pyro.sample("x", law.to_event(1), obs=x)


def global_guide(x):
    loc = pyro.param("loc", torch.zeros(2))
    pyro.sample("z", pyro.distributions.Normal(loc, 1.0).to_event(1))


@any_pair
def test_global_latents_are_refused_where_a_value_a_datum_is_needed(case: ObjectiveCase):
    objective = case.make()
    if not hasattr(objective, "estimate"):
        objective.loss(no_plate, global_guide, torch.zeros(3, 4))
        return
    with pytest.raises(ValueError, match="site 'z': .*outside the data's plate"):
        objective.loss(no_plate, global_guide, torch.zeros(3, 4))


@any_pair
def test_a_latent_that_the_guide_lacks_is_refused(case: ObjectiveCase):
    vae, x = small()
    objective = case.make()
    if hasattr(objective, "estimate"):
        with pytest.raises(ValueError, match="site 'z': it is latent in the model but the guide"):
            objective.loss(vae.model, lambda x: None, x)


@any_pair
def test_draws_without_a_gradient(case: ObjectiveCase):
    """Served, or refused with the remedy."""
    vae = build(data_shape=(4,), latent_dim=3, prior="one-hot-categorical", hidden=(5,),
                posterior="one-hot-categorical")  # fmt: skip
    x = small()[1].float()
    if case.discrete:
        fit(vae.model, vae.guide, x, epochs=1, objective=case.make())
        return
    with pytest.raises(ValueError, match="gradient|product"):
        fit(vae.model, vae.guide, x, epochs=1, objective=case.make())
