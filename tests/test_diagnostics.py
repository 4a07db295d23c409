import math
import time

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from test_importance import linear_gaussian

from pyrovae import build, diagnostics
from pyrovae.diagnostics import calibration, ranks
from pyrovae.plots import calibrating

N_01 = dist.Normal(0.0, 1.0)


def exact():
    vae, x, _ = linear_gaussian()
    return vae, x


def rescaled(log_scale):
    """Standard deviations of the guide times exp(log_scale)."""
    vae, x = exact()
    bias = vae.posterior.net.bias.data  # means, log diagonal and rest of the Cholesky factor
    bias[3:6] += log_scale
    bias[6:] *= math.exp(log_scale)
    return vae, x


def shifted():
    """Means of the guide off by 0.3 standard deviations."""
    vae, x = exact()
    bias = vae.posterior.net.bias.data
    bias[:3] += 0.3 * bias[3:6].exp()
    return vae, x


def prior():
    vae, x = exact()
    vae.posterior.net.weight.data.zero_()
    vae.posterior.net.bias.data.zero_()
    return vae, x


BROKEN = {
    "narrow": lambda: rescaled(-0.2),
    "wide": lambda: rescaled(0.2),
    "shifted": shifted,
    "prior": prior,
}


def test_the_exact_guide_passes_in_time():
    vae, x = exact()
    start = time.perf_counter()
    found = calibration(vae.model, vae.guide, x, num_simulations=1000)
    assert time.perf_counter() - start < 30
    assert found.ok and found.p_value > 1e-3
    assert found.names == ("z[0]", "z[1]", "z[2]", "log p(x, z)")
    assert found.ranks.shape == (1000, 4)
    assert (int(found.ranks.min()), int(found.ranks.max())) == (0, 63)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_guide_fails(kind):
    vae, x = BROKEN[kind]()
    found = calibration(vae.model, vae.guide, x, num_simulations=1000)
    assert not found.ok and found.p_value < 1e-6


def test_a_collapsed_guide_is_caught_by_the_joint_density_alone():
    vae, x = prior()
    *z, joint = calibration(vae.model, vae.guide, x).p_values.tolist()
    assert min(z) > 1e-3 and joint < 1e-6


def test_false_alarms_come_at_the_stated_rate():
    """200 exact guides, 160 simulations each: 5 % of them fail at level 0.05, and 0.1 % at 0.001.

    Four quantities, nearly independent, so that Bonferroni's bound is nearly reached. Each of the
    three checks fails by chance with probability 1e-3 at most.
    """
    vae, x = exact()
    results = [
        calibration(vae.model, vae.guide, x, num_simulations=160, seed=s) for s in range(200)
    ]
    alarms = sum(r.p_value <= 0.05 for r in results)
    low, high = scipy.stats.binom(200, 0.05).ppf([5e-4, 1 - 5e-4])
    assert low <= alarms <= high
    assert sum(not r.ok for r in results) <= scipy.stats.binom(200, 1e-3).ppf(1 - 1e-3)
    first = torch.stack([r.p_values[0] for r in results]).numpy()
    assert scipy.stats.kstest(first, "uniform").pvalue > 1e-3


def test_ranks_by_hand():
    values = torch.tensor([[2.0, 1.0, 9.0], [1.0, 3.0, 0.0], [3.0, 2.0, 5.0], [0.0, 7.0, 8.0]])
    assert ranks._rank(values).tolist() == [2, 0, 3]


def test_ties_are_broken_at_random():
    """Two draws of three equal the truth, one lies below: ranks 1, 2 and 3 alike."""
    values = torch.tensor([4.0, 4.0, 4.0, 0.0]).unsqueeze(-1).expand(4, 30_000)
    counts = ranks._rank(values).bincount(minlength=4)
    assert counts[0] == 0
    assert scipy.stats.chisquare(counts[1:].numpy()).pvalue > 1e-3


def normal_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", N_01)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def normal_guide(x, shift=0.0, factor=1.0):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x + shift, factor * 0.5**0.5))


def test_ranks_of_a_known_case():
    """Draws all above the truth: rank 0, and far off they are all less probable: rank L."""
    for shift, rank in ((100.0, 0), (-100.0, 15)):
        found = calibration(
            normal_model, lambda x, shift=shift: normal_guide(x, shift), torch.zeros(1),
            num_simulations=100, num_draws=15,
        )  # fmt: skip
        assert found.names == ("z", "log p(x, z)")
        assert bool((found.ranks == torch.tensor([rank, 15])).all())
        assert found.counts[0, rank] == found.counts[1, 15] == 100


@pytest.mark.parametrize(("factor", "ends"), [(0.7, "high"), (1.4, "low")])
def test_the_histogram_is_the_one_computed_by_hand(factor, ends):
    """P(rank = r): the truth stands at N(0, 1) among draws from N(0, factor^2), by quadrature."""
    found = calibration(
        normal_model, lambda x: normal_guide(x, factor=factor), torch.zeros(1),
        num_simulations=20_000, num_draws=15,
    )  # fmt: skip
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64).numpy()
    below = scipy.stats.norm.cdf(z / factor)
    density = scipy.stats.norm.pdf(z) * (z[1] - z[0])
    p = [float((scipy.stats.binom.pmf(r, 15, below) * density).sum()) for r in range(16)]
    assert (p[0] > 1 / 16) == (ends == "high")
    counts = found.counts[0].numpy()
    assert scipy.stats.chisquare(counts, [n / sum(p) * 20_000 for n in p]).pvalue > 1e-3


def test_p_values_are_those_of_scipy():
    counts = torch.randint(50, 80, (5, 16))
    counts[4] = torch.tensor([1000] + [0] * 15)
    expected = scipy.stats.chisquare(counts.numpy(), axis=1).pvalue
    torch.testing.assert_close(ranks._uniformity(counts), torch.as_tensor(expected))


def many_sites(off=0.0):
    """Two latent sites, of event shapes () and (2, 2), a context, a plate of another size."""

    def model(x, c):
        with pyro.plate("data", 400, subsample_size=len(x)):
            a = pyro.sample("a", N_01)
            b = pyro.sample("b", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
            loc = torch.cat([a.unsqueeze(-1), b.flatten(1) + c], -1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x, c):
        with pyro.plate("data", 400, subsample_size=len(x)):
            b = 0.5 * (x[:, 1:] - c).unflatten(1, (2, 2))
            pyro.sample("b", dist.Normal(b, 0.5**0.5).to_event(2))
            pyro.sample("a", dist.Normal(0.5 * x[:, 0] + off, 0.5**0.5))

    return model, guide


def test_several_sites_with_context():
    x, c = torch.zeros(3, 5), torch.tensor([[-5.0], [0.0], [7.0]])
    found = calibration(*many_sites(), x, c)
    assert found.names == ("a", "b[0, 0]", "b[0, 1]", "b[1, 0]", "b[1, 1]", "log p(x, z)")
    assert found.ok
    wrong = calibration(*many_sites(off=0.5), x, c)
    p = dict(zip(wrong.names, wrong.p_values.tolist(), strict=True))
    assert p["a"] < 1e-6 and min(p[name] for name in wrong.names[1:5]) > 1e-3


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (2.0, False)])
def test_a_discrete_latent(factor, ok):
    """log p(z = 1|x) - log p(z = 0|x) = log 0.3/0.7 + x - 1/2, or twice that in the control."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=factor * (math.log(0.3 / 0.7) + x - 0.5)))

    assert calibration(model, guide, torch.zeros(1)).ok is ok


def test_passes_are_bounded(monkeypatch):
    seen = []
    vae, x = exact()
    for part in (vae.posterior, vae.likelihood):
        part.register_forward_hook(lambda module, inputs, q: seen.append(len(inputs[0])))
    monkeypatch.setattr(ranks, "rows_of_a_pass", lambda x: 64 * 30)  # 30 simulations a pass
    found = calibration(vae.model, vae.guide, x, num_simulations=500)
    assert max(seen) == 30 * 64
    assert found.ok and len(found.ranks) == 500


def test_a_seed_gives_the_same_ranks_and_leaves_the_global_generator():
    vae, x = exact()
    state = torch.get_rng_state()
    first = calibration(vae.model, vae.guide, x, num_simulations=80)
    assert torch.equal(state, torch.get_rng_state())
    again = calibration(vae.model, vae.guide, x, num_simulations=80)
    other = calibration(vae.model, vae.guide, x, num_simulations=80, seed=1)
    assert torch.equal(first.ranks, again.ranks) and not torch.equal(first.ranks, other.ranks)


def test_modules_are_evaluated_and_set_back():
    vae = build(data_shape=(4,), latent_dim=2, hidden=(3,))
    vae.posterior.net.hidden.append(torch.nn.Dropout(0.5))
    modes = []
    vae.posterior.net.register_forward_hook(lambda m, i, o: modes.append(m.training))
    calibration(vae.model, vae.guide, torch.ones(3, 4), num_simulations=80)
    assert modes and not any(modes)
    assert vae.training and vae.posterior.net.hidden[-1].training


def test_draws_need_no_gradient():
    vae, x = exact()
    assert not calibration(vae.model, vae.guide, x, num_simulations=80).p_values.requires_grad


def two_observed(x, y):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", N_01)
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def transformed(x, y):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", N_01)
        pyro.sample("x", dist.Normal(z, 1.0), obs=2 * x)


def autoregressive(x, y):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", N_01)
        pyro.sample("x", dist.Normal(z + 0.5 * x, 1.0), obs=x)


def outside(x, y):
    pyro.sample("z", N_01)
    with pyro.plate("data", len(x)):
        pyro.sample("x", N_01, obs=x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (two_observed, r"one observed site.*got \['y', 'x'\], the datum 'x'"),
        (transformed, r"one observed site, whose value is the argument x.*got \['x'\].*None"),
        (
            autoregressive,
            "site 'x': expected a distribution that does not depend on the argument x",
        ),
        (outside, "site 'z': in the model it stands outside the data's plate"),
    ],
)
def test_models_that_cannot_be_simulated_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        calibration(model, lambda x, y: normal_guide(x), torch.zeros(3), torch.zeros(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_simulations": 79}, "whole number from 80 up, five for each of 16 bins; got 79"),
        ({"num_simulations": 1e3}, "got 1000.0"),
        ({"num_draws": 64}, r"num_draws \+ 1 to be a multiple of 16.*got num_draws=64: take 63"),
        ({"num_draws": -1}, "got num_draws=-1"),
        ({"level": 1.0}, r"level to be in \(0, 1\); got 1.0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        calibration(normal_model, normal_guide, torch.zeros(1), **options)


def test_the_table_tells_what_fails():
    vae, x = prior()
    lines = str(calibration(vae.model, vae.guide, x)).splitlines()
    assert lines[0] == "1,000 simulations, 63 draws of the guide each"
    assert lines[2].startswith("z[0]") and not lines[2].endswith("not uniform")
    assert lines[5].startswith("log p(x, z)") and lines[5].endswith("not uniform")
    assert lines[6].startswith("all, jointly") and lines[6].endswith("FAILS at level 0.001")
    vae, x = exact()
    assert str(calibration(vae.model, vae.guide, x)).endswith("ok")


def test_the_table_of_many_quantities_is_cut_to_the_worst():
    p = torch.linspace(0.1, 0.9, 40, dtype=torch.float64)
    names = tuple(f"z[{i}]" for i in range(40))
    found = diagnostics.Calibration(torch.zeros(100, 40).long(), names, p, 63, 1e-3)
    lines = str(found).splitlines()
    assert len(lines) == 2 + 12 + 2 and lines[-2] == "(28 more, of larger p-values)"
    assert lines[13].startswith("z[11]")
    assert len([a for a in calibrating.calibration(found).axes if a.axison]) == 24


def test_the_picture_shows_the_histograms():
    vae, x = prior()
    found = calibration(vae.model, vae.guide, x)
    figure = calibrating.calibration(found)
    figure.canvas.draw()
    assert len(figure.axes) == 4
    for axes, name, counts in zip(figure.axes, found.names, found.counts.tolist(), strict=True):
        assert axes.get_title().startswith(f"{name}   p = ")
        assert [bar.get_height() for bar in axes.containers[0]] == counts
    good, bad = (figure.axes[i].containers[0][0].get_facecolor() for i in (0, 3))
    assert good != bad


def test_khat_of_the_exact_guide_is_the_best_there_is():
    vae, x = exact()
    found = diagnostics.khat(vae.model, vae.guide, x)
    assert found.khat.tolist() == [-math.inf] * 5
    assert bool(found.ok.all())
    assert math.isclose(found.threshold, 1 - 1 / 3)
    assert diagnostics.khat(vae.model, vae.guide, x, num_particles=10_000).threshold == 0.7


@pytest.mark.parametrize(("factor", "ok"), [(0.8, True), (0.15, False)])
def test_khat_of_a_guide_too_narrow(factor, ok):
    """Weights of N(0, 1) over N(0, s^2) have k = 1 - s^2, but for a logarithm: 0.36 and 0.98."""
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    found = diagnostics.khat(
        normal_model, lambda x: normal_guide(x, factor=factor), x, num_particles=4000
    )
    # too narrow: k is about 1, k-hat's sd about 0.15, so 0.88 of them pass 0.7; 0.7 is 4 sd lower
    assert bool((found.ok == ok).float().mean() > 0.7)
    error = (2 - factor**2) / (3 * 4000**0.5 * 50) ** 0.5
    assert abs(float(found.khat.mean()) - (1 - factor**2)) < 4.5 * error + 0.1


def test_khat_needs_draws():
    with pytest.raises(ValueError, match="at least 30 draws; got .* raise num_particles"):
        diagnostics.khat(normal_model, normal_guide, torch.zeros(2), num_particles=20)
