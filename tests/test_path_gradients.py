"""DReG and sticking the landing: IWAE's gradient in mean, by draws and by quadrature; its noise."""

import math

import numpy as np
import pyro
import pytest
import torch
from cases import LIKELIHOODS, POSTERIORS, PRIORS, inputs
from cases.pairing import compatible, shipped
from pyro import distributions as dist
from pyro.infer import Trace_ELBO

from pyrovae import VAE, build, diagnostics, fit, pairs, posteriors
from pyrovae.distributions import seeded
from pyrovae.objectives import IWAE, DReG, ReweightedWakeSleep, StickingTheLanding

D = 4


def bits(n, d=D):
    return (torch.rand(n, d, generator=torch.Generator().manual_seed(1234)) > 0.4).double()


def small(prior="vamp-prior", latent_dim=1, **options):
    own = {"num_components": 3} if prior == "vamp-prior" else {}
    return build(
        data_shape=(D,), latent_dim=latent_dim, hidden=(4,), seed=3, prior=prior, prior_options=own,
        net_options={"activation": "tanh"}, **options,
    ).double()  # fmt: skip


def draws(objective, vae, x, repeats, rounds, seed=100):
    """Gradients a datum, (rounds, P), each a mean over `repeats` draws of each row."""
    rows = x.repeat(repeats, 1)
    found = []
    for i in range(rounds):
        vae.zero_grad(set_to_none=True)
        with seeded(seed + i):
            objective.loss_and_grads(vae.model, vae.guide, rows)
        found.append(torch.cat([p.grad.flatten() for p in vae.parameters()]) / repeats)
    return torch.stack(found)


def by_quadrature(vae, x, k):
    """The gradient of L_k, a lattice of Gauss-Hermite nodes for e_1, ..., e_k in z = mu + s e."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40 if k == 2 else 60)
    e = torch.cartesian_prod(*[torch.from_numpy(nodes)] * k).reshape(-1, k).T  # (k, M)
    w = torch.from_numpy(weights / weights.sum())
    mass = torch.cartesian_prod(*[w] * k).reshape(-1, k).prod(1)
    total = 0
    for row in x:
        q = vae.posterior(row[None])
        z = q.mean + q.stddev * e.unsqueeze(-1)  # (k, M, 1)
        log_q = dist.Normal(q.mean, q.stddev).log_prob(z).sum(-1)
        log_p = vae.prior().log_prob(z) + vae.likelihood(z).log_prob(row)
        total = total + (mass * ((log_p - log_q).logsumexp(0) - math.log(k))).sum()
    gradients = torch.autograd.grad(-total, list(vae.parameters()))
    return torch.cat([g.flatten() for g in gradients])


def assert_mean(found, expected, levels=4.5):
    """Every number's mean over rounds is the expected one: 62 numbers, p < 5e-4 in all."""
    error = found.std(0) / len(found) ** 0.5
    z = (found.mean(0) - expected).abs() / (error + 1e-10)
    assert z.max() < levels, z.max()


@pytest.mark.parametrize("prior", ["standard-normal", "vamp-prior"])
@pytest.mark.parametrize(
    "objective", [IWAE(1), IWAE(2), DReG(1), DReG(2), StickingTheLanding()],
    ids=lambda o: f"{type(o).__name__}-{o.num_particles}",
)  # fmt: skip
def test_the_gradient_is_the_quadratures(objective, prior):
    """10^5 draws of each of 3 data."""
    vae, x = small(prior), bits(3)
    expected = by_quadrature(vae, x, objective.num_particles)
    assert_mean(draws(objective, vae, x, 2000, 50), expected)


class WeighedByParameter(IWAE):
    """DReG done wrong: w^2 for all that the encoder's parameters touch, the prior's too."""

    def estimate(self, model, guide, x, *c):
        from pyrovae.importance import particles
        from pyrovae.objectives.base import Estimate

        found = particles(model, guide, x, *c, num_particles=self.num_particles, draws="path")
        v = found.log_weight.detach().softmax(0)
        surrogate = (v.square() * found.log_weight).sum(0)
        return Estimate(surrogate, surrogate, found.scale)


def test_a_weight_by_parameter_is_caught():
    """Negative control: with a VampPrior the encoder's gradient is another then."""
    vae, x = small("vamp-prior"), bits(3)
    expected = by_quadrature(vae, x, 2)
    with pytest.raises(AssertionError):
        assert_mean(draws(WeighedByParameter(2), vae, x, 2000, 50), expected)


def differentiable():
    """Priors x posteriors whose draws carry a gradient, every posterior among them."""
    for p, q in compatible(tuple(PRIORS), tuple(POSTERIORS), LIKELIHOODS[0]):
        part = q.build()
        law = part(*inputs(part.float(), dtype=torch.float32))
        biased = getattr(law, "biased_gradient", False)
        # a prior that shares the guide's parameters, where the guide is simple
        shared = p.id == "VampPrior" and q.id == "MeanFieldNormal"
        if law.has_rsample and not biased and (shared or p.id in ("StandardNormal", q.id)):
            yield p, q


@pytest.mark.parametrize(("prior", "posterior"), [*differentiable()], ids=lambda v: v.id)
def test_every_posterior_has_the_path_gradient(prior, posterior):
    """DReG(3) and STL against IWAE's own: the density of a given z and its score are right."""
    with seeded(1):
        vae = shipped(prior, posterior, LIKELIHOODS[0]).double().eval()
        x = (torch.rand(2, *vae.likelihood.data_shape) > 0.5).double()
    head = vae.posterior.net.output.bias  # every number of q(z|x)'s parameters

    def found(objective, seed):
        rows = x.repeat(200, *[1] * (x.dim() - 1))
        rounds = []
        for i in range(20):
            vae.zero_grad(set_to_none=True)
            with seeded(seed + i):
                objective.loss_and_grads(vae.model, vae.guide, rows)
            rounds.append(head.grad.clone())
        return torch.stack(rounds)

    for ours, theirs in ((DReG(3), IWAE(3)), (StickingTheLanding(), IWAE(1))):
        a, b = found(ours, 100), found(theirs, 300)
        error = ((a.var(0) + b.var(0)) / 20).sqrt()
        z = (a.mean(0) - b.mean(0)).abs() / (error + 1e-9)
        # of 4 to 20 numbers, t with 38 degrees of freedom: 5 happens with p < 3e-4
        assert z.max() < 5, (type(ours).__name__, z)


def linear_gaussian():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(1234)).double()
    x = x @ torch.randn(5, 5, generator=torch.Generator().manual_seed(4)).double()
    return pairs.ppca(x, 2), x


def test_stl_has_no_variance_at_the_exact_posterior():
    """Below 1e-20 for each number of the guide; the plain ELBO's is not."""
    vae, x = linear_gaussian()

    def variance(objective):
        found = diagnostics.gradient_noise(
            vae.model, vae.guide, x[:20], objective=objective, num_draws=30
        )
        return max(float(s.square().max()) for n, s in found.standard_deviation.items()
                   if "posterior" in n)  # fmt: skip

    assert variance(StickingTheLanding()) < 1e-20
    assert variance(DReG(4)) < 1e-20
    assert variance(Trace_ELBO()) > 1e-2


@pytest.mark.parametrize(
    ("ks", "num_draws"),
    [((1, 8, 64), 250), pytest.param((1, 4, 16, 64), 2000, marks=pytest.mark.slow)],
)
def test_dreg_mends_the_signal_that_iwae_drowns(ks, num_draws, capsys):
    """Fitted slopes of log SNR over log K: about -1/2 for IWAE's guide, and 1/2 for DReG's."""
    vae = small("standard-normal", latent_dim=2).float()
    x = bits(64).float()
    fit(vae.model, vae.guide, x, epochs=30, lr=0.02)
    with torch.no_grad():  # near the optimum, not at it, as in the paper
        for p in vae.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(8)))

    def slope(objective, part):
        ratios = [
            diagnostics.gradient_noise(
                vae.model, vae.guide, x[:1], objective=objective(k), num_draws=num_draws
            ).signal_to_noise(part)
            for k in ks
        ]
        return float(np.polyfit(np.log(ks), np.log(ratios), 1)[0])

    slopes = {o.__name__: slope(o, "posterior") for o in (IWAE, DReG)}
    slopes["IWAE, model"] = slope(IWAE, "likelihood")
    with capsys.disabled():
        print("\nslopes of log SNR over log K:", {k: round(s, 2) for k, s in slopes.items()})
    assert slopes["IWAE"] < -0.15
    assert slopes["DReG"] > 0.1
    assert slopes["IWAE, model"] > 0.2


def wake_sleep_both(n):
    """Gradients of Pyro's wake-sleep and ours, by the same draws: k d < 16 numbers a row."""
    vae, x = small("standard-normal", latent_dim=2), bits(n)
    vae.zero_grad(set_to_none=True)
    with seeded(9):
        torch.randn(n, 2, dtype=torch.float64)  # ours runs the guide first
        pyro.infer.ReweightedWakeSleep(
            num_particles=5, insomnia=1.0, vectorize_particles=n > 1, max_plate_nesting=1
        ).loss_and_grads(vae.model, vae.guide, x)
    theirs = torch.cat([p.grad.flatten() for p in vae.parameters()])
    vae.zero_grad(set_to_none=True)
    with seeded(9):
        ReweightedWakeSleep(5).loss_and_grads(vae.model, vae.guide, x)
    return theirs, torch.cat([p.grad.flatten() for p in vae.parameters()])


def test_wake_sleep_is_pyros_at_a_batch_of_one():
    """Negative control: at 4 data Pyro has one weight for all of them, ours one for each."""
    torch.testing.assert_close(*wake_sleep_both(1), rtol=1e-9, atol=1e-12)
    theirs, ours = wake_sleep_both(4)
    assert (theirs - ours).norm() > 0.05 * ours.norm()


def test_the_wake_phase_of_many_particles_is_the_inclusive_kl():
    """Guide: grad E_p(z|x) log q(z|x); model: grad log p(x); by quadrature in one dimension."""
    vae, x = small("standard-normal"), bits(3)
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    total = 0
    for row in x:
        log_joint = vae.prior().log_prob(z) + vae.likelihood(z).log_prob(row)
        posterior = log_joint.detach().softmax(0)
        q = vae.posterior(row[None])
        total = total + log_joint.logsumexp(0) + (posterior * q.log_prob(z)).sum()
    gradients = torch.autograd.grad(-total, list(vae.parameters()))
    expected = torch.cat([g.flatten() for g in gradients])
    found = draws(ReweightedWakeSleep(2000), vae, x, 20, 30)
    error = found.std(0) / 30**0.5
    # self-normalised weights are biased by O(1/K)
    assert ((found.mean(0) - expected).abs() < 4.5 * error + 2e-3).all()
    elbo = draws(IWAE(1), vae, x, 500, 20).mean(0)
    assert (elbo - expected).abs().max() > 0.05  # negative control: the other KL's


def test_the_sleep_phase_is_the_models_own_draws():
    """grad E_p(x, z) log q(z|x) by enumeration of the 16 data and quadrature over z."""
    from pyrovae.objectives import InclusiveKL

    vae = small("standard-normal")
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * D)
    total = 0
    for row in every:
        mass = (vae.prior().log_prob(z) + vae.likelihood(z).log_prob(row)).exp().detach()
        total = total + (mass * vae.posterior(row[None]).log_prob(z)).sum() * (18 / 4000)
    expected = torch.autograd.grad(-total, list(vae.posterior.parameters()))
    expected = torch.cat([g.flatten() for g in expected])
    for objective in (InclusiveKL(), ReweightedWakeSleep(3, insomnia=0.0)):
        rounds = []
        for i in range(40):
            vae.zero_grad(set_to_none=True)
            with seeded(100 + i):
                objective.loss_and_grads(vae.model, vae.guide, torch.zeros(2000, D).double())
            rounds.append(torch.cat([p.grad.flatten() for p in vae.posterior.parameters()]) / 2000)
        assert_mean(torch.stack(rounds), expected)


def test_inclusive_covers_where_the_elbo_picks():
    """A posterior of two modes: the forward KL's normal is wide, the reverse KL's is narrow."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.abs(), 0.1).to_event(1), obs=x)

    with seeded(2):
        guide_part = posteriors.MeanFieldNormal((1,), 1, input_scale=1.0)

    def guide(x):
        pyro.module("guide", guide_part)
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide_part(x))

    from pyrovae.objectives import InclusiveKL

    x = torch.ones(512, 1)
    with pyro.get_param_store().scope():
        fit(model, guide, x, objective=InclusiveKL(), epochs=100, lr=0.03, modules=[guide_part])
        wide = guide_part(torch.ones(1, 1))
        assert wide.mean.abs() < 0.3 and 0.8 < wide.stddev < 1.2
        fit(model, guide, x, objective=IWAE(1), epochs=100, lr=0.03, modules=[guide_part])
        narrow = guide_part(torch.ones(1, 1))
        assert narrow.mean.abs() > 0.8 and narrow.stddev < 0.2


def test_gradient_noise_of_a_known_gradient():
    """z = m + e, loss = -z (linear): gradient -1 without noise for m; log q's cancel; errors."""
    vae, x = small("standard-normal"), bits(3)
    one = diagnostics.gradient_noise(vae.model, vae.guide, x, objective=IWAE(1), num_draws=300)
    name = next(n for n in one.mean if n.endswith("posterior.net.output.bias"))
    rounds = draws(IWAE(1), vae, x, 1, 500)
    index = 0
    for n, p in vae.named_parameters():
        if name.endswith(n):
            break
        index += p.numel()
    theirs = rounds[:, index : index + one.mean[name].numel()]
    error = theirs.std(0) * (1 / 300 + 1 / 500) ** 0.5
    assert ((one.mean[name] - theirs.mean(0)).abs() < 4 * error).all()
    torch.testing.assert_close(one.standard_deviation[name], theirs.std(0), rtol=0.25, atol=0)
    with pytest.raises(ValueError, match="num_draws"):
        diagnostics.gradient_noise(vae.model, vae.guide, x, objective=IWAE(1), num_draws=1)
    with pytest.raises(ValueError, match="gradient varies among .*; got none of"):
        one.signal_to_noise("nowhere")


def test_gradient_noise_leaves_gradients_alone():
    vae, x = small("standard-normal"), bits(3)
    kept = next(vae.parameters())
    kept.grad = torch.ones_like(kept)
    diagnostics.gradient_noise(vae.model, vae.guide, x, objective=IWAE(1), num_draws=3)
    assert (kept.grad == 1).all()


def test_path_gradients_refuse_discrete_draws():
    vae = VAE(
        *(getattr(build(data_shape=(D,), latent_dim=3, prior="one-hot-categorical",
                        posterior="one-hot-categorical"), part)
          for part in ("prior", "likelihood", "posterior"))
    )  # fmt: skip
    for objective in (DReG(2), StickingTheLanding()):
        with pytest.raises(ValueError, match="site 'z': expected draws with a gradient.*IWAE"):
            objective.loss(vae.model, vae.guide, bits(2).float())
