"""The streamed estimate: its tail, early stops, smoothing, intervals, and work kept on disk."""

import math

import pyro
import pytest
import torch
from pairs_of_users import batch, conditional, networks, plain_guide, plain_model
from test_evidence import wide
from test_importance import linear_gaussian

from pyrovae import evidence, log_weights
from pyrovae.distributions import mixed
from pyrovae.evidence import importance_weighted, pareto


def test_the_tail_is_that_of_all_the_weights(monkeypatch):
    vae, x, _ = wide()
    monkeypatch.setattr(importance_weighted, "BLOCK", 300)
    found = evidence.iwae(vae.model, vae.guide, x, num_particles=1000)
    seed = mixed(0, 0)
    blocks = [
        log_weights(vae.model, vae.guide, x, num_particles=k, seed=mixed(seed, i))
        for i, k in enumerate((300, 300, 300, 100))
    ]
    every = torch.cat(blocks).detach()
    torch.testing.assert_close(found.khat, pareto.khat(every))
    torch.testing.assert_close(found.log_evidence, every.logsumexp(0) - math.log(1000))
    assert not torch.allclose(found.khat, pareto.khat(every[:900]))  # negative control


def test_few_draws_have_no_khat_and_no_interval():
    vae, x, log_evidence = wide()
    found = evidence.iwae(vae.model, vae.guide, x, num_particles=29)
    assert found.khat is None and not bool(found.trusted.any())
    low, high = found.interval(0.9)
    torch.testing.assert_close(low, found.log_evidence + math.log(0.1))
    assert bool(high.isinf().all())


def test_intervals_cover_at_their_nominal_rate():
    """800 intervals of level 0.8: a binomial of sd 0.014; and those of half the width do not."""
    vae, x, log_evidence = wide()
    runs = [evidence.iwae(vae.model, vae.guide, x, num_particles=400, seed=s) for s in range(160)]
    trusted = torch.cat([r.trusted for r in runs])
    low, high = (torch.cat(t) for t in zip(*(r.interval(0.8) for r in runs), strict=True))
    exact = log_evidence.repeat(160)
    inside = ((low < exact) & (exact < high))[trusted].double()
    assert len(inside) > 500
    error = math.sqrt(0.8 * 0.2 / len(inside))
    assert abs(float(inside.mean()) - 0.8) < 3.5 * error + 0.02  # the log of a mean is skewed
    middle, half = (low + high) / 2, (high - low) / 4
    narrow = ((exact - middle).abs() < half)[trusted].double()
    assert 0.8 - float(narrow.mean()) > 10 * error


def test_the_one_sided_bound_holds_of_a_bad_guide():
    """Markov: it fails at most once in ten, whatever the weights; log p-hat itself fails more."""
    vae, x, log_evidence = linear_gaussian()
    vae.posterior.net.bias.data[3:6] -= 0.4  # k = 0.55: the weights have no variance
    runs = [evidence.iwae(vae.model, vae.guide, x, num_particles=20, seed=s) for s in range(200)]
    low = torch.cat([r.interval(0.9)[0] for r in runs])
    exact = log_evidence.repeat(200)
    assert float((low > exact).double().mean()) <= 0.1
    estimate = torch.cat([r.log_evidence for r in runs])
    assert float((estimate > exact).double().mean()) > 0.1


def test_a_datum_stops_at_the_error_that_was_asked_for():
    vae, x, log_evidence = wide()
    found = evidence.iwae(vae.model, vae.guide, x, num_particles=50_000, target_error=0.02)
    stopped = found.num_particles < 50_000
    assert bool(stopped.all()) and bool((found.num_particles % 1000 == 0).all())
    assert bool((found.standard_error <= 0.02).all())
    assert bool(((found.log_evidence - log_evidence).abs() < 4.5 * found.standard_error).all())
    whole = evidence.iwae(vae.model, vae.guide, x, num_particles=2000, target_error=1e-9)
    assert whole.num_particles.tolist() == [2000] * 5


def test_data_that_need_more_draws_get_them():
    vae, x, _ = linear_gaussian()
    x = torch.cat([x, 4 * x])  # the guide is the posterior of all of them: none needs more
    vae.posterior.net.weight.data[3:6, 0] += 0.1  # its width now depends on x
    found = evidence.iwae(vae.model, vae.guide, x, num_particles=20_000, target_error=0.01)
    assert len(found.num_particles.unique()) > 1
    done = found.num_particles < 20_000
    assert bool((found.standard_error[done] <= 0.01).all())


def test_smoothed_weights_have_less_spread_and_are_nearly_unbiased():
    vae, x, log_evidence = linear_gaussian()
    vae.posterior.net.bias.data[3:6] -= 0.4  # k = 0.55: the weights have no variance
    plain, smooth = (
        torch.stack([
            evidence.iwae(
                vae.model, vae.guide, x, num_particles=200, seed=s, smooth=some
            ).log_evidence
            for s in range(200)
        ])
        for some in (False, True)
    )  # fmt: skip
    rms = [float((t - log_evidence).square().mean().sqrt()) for t in (plain, smooth)]
    assert rms[1] < 0.9 * rms[0]
    once = evidence.iwae(vae.model, vae.guide, x, num_particles=200, smooth=True)
    assert bool((once.lower == -math.inf).all())
    exact_vae, x, log_evidence = linear_gaussian()
    exact = evidence.iwae(exact_vae.model, exact_vae.guide, x, num_particles=200, smooth=True)
    torch.testing.assert_close(exact.log_evidence, log_evidence, rtol=0, atol=1e-10)


def test_smoothing_is_that_of_arviz():
    from test_pareto import arviz_psislw

    vae, x, _ = wide()
    found = evidence.iwae(vae.model, vae.guide, x, num_particles=900, smooth=True)
    log_w = log_weights(
        vae.model, vae.guide, x, num_particles=900, seed=mixed(mixed(0, 0), 0)
    ).detach()
    normalised, _ = arviz_psislw(log_w.T.numpy())
    # ArviZ normalises: undo it with a weight below the tail, which smoothing leaves alone
    smallest = log_w.argmin(0)
    columns = torch.arange(5)
    theirs = torch.as_tensor(normalised).T
    total = log_w[smallest, columns] - theirs[smallest, columns]
    torch.testing.assert_close(found.log_evidence, total - math.log(900), rtol=0, atol=1e-9)


@pytest.mark.parametrize("pair", ["conditional", "bare parameters"])
def test_work_goes_on_from_where_it_stopped(pair, tmp_path, monkeypatch):
    x, c = batch()
    context, modules = ((c,), networks()) if pair == "conditional" else ((), ())
    model, guide = conditional(*modules) if modules else (plain_model, plain_guide)
    pyro.clear_param_store()
    options = {"num_particles": 100, "modules": modules}
    monkeypatch.setattr(importance_weighted, "CHUNK", 200)  # two rows at once
    whole = evidence.iwae(model, guide, x, *context, **options)
    path, calls = tmp_path / "kept.safetensors", []
    log_terms = importance_weighted.log_terms

    def interrupted(*args, **kwargs):
        calls.append(len(args[2]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return log_terms(*args, **kwargs)

    monkeypatch.setattr(importance_weighted, "log_terms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evidence.iwae(model, guide, x, *context, resume=path, **options)
    found = evidence.iwae(model, guide, x, *context, resume=path, **options)
    assert calls == [2] * 4  # four chunks tried, of which one twice; two were not done again
    assert torch.equal(found.log_evidence, whole.log_evidence)
    assert torch.equal(found.khat, whole.khat)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.safetensors"]
    evidence.iwae(model, guide, x, *context, resume=path, **options)
    assert calls == [2] * 4  # all of it was there

    with pytest.raises(ValueError, match="it is of other data, weights or options"):
        evidence.iwae(model, guide, x, *context, resume=path, **options | {"num_particles": 99})
    if modules:
        modules[0].bias.data += 1.0
    else:
        pyro.get_param_store()["scale"] = torch.tensor(1.7)
    with pytest.raises(ValueError, match="it is of other data, weights or options"):
        evidence.iwae(model, guide, x, *context, resume=path, **options)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="kept.safetensors is damaged"):
        evidence.iwae(model, guide, x, *context, resume=path, **options)


def test_it_tells_what_there_is_to_do(capsys):
    vae, x, _ = wide()
    evidence.iwae(vae.model, vae.guide, x, num_particles=100, progress=True)
    seen = capsys.readouterr()
    assert "iwae: 5 data x 100 draws = 500 passes through the model" in seen.err
    assert seen.out == ""
    evidence.iwae(vae.model, vae.guide, x, num_particles=100)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_error": 0.0}, "target_error to be positive and finite; got 0.0"),
        ({"num_particles": 10, "smooth": True}, "at least 30, for the tail .* got 10"),
        ({"resume": "nowhere/a.safetensors"}, "in a folder that exists; got nowhere"),
        ({"resume": "a.pt"}, "expected resume to name a .safetensors file"),
    ],
)
def test_bad_requests_are_refused(options, message):
    vae, x, _ = wide()
    with pytest.raises(ValueError, match=message):
        evidence.iwae(vae.model, vae.guide, x, **options)
    with pytest.raises(ValueError, match="level to lie between 0 and 1; got 1.0"):
        evidence.iwae(vae.model, vae.guide, x, num_particles=2).interval(1.0)


def test_a_guide_runs_once_for_all_its_draws():
    """The rows the guide sees do not grow with the draws, and the draws are those of repeats."""
    decoder, encoder = networks()
    x, c = batch()
    model, guide = conditional(decoder, encoder)
    rows = []
    encoder.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    found = log_weights(model, guide, x, c, num_particles=50, modules=[decoder, encoder])
    assert max(rows) == len(x)
    many = x.repeat(50, 1), c.repeat(50, 1)
    one = log_weights(model, guide, *many, num_particles=1, modules=[decoder, encoder])
    torch.testing.assert_close(found, one.reshape(50, len(x)))


def heavy(width):
    """3-d normals, a guide `width` times as wide: k = 1 - width^2, variance finite above 0.71."""
    from test_widths import pair

    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(1234)).double()
    exact = torch.distributions.Normal(0.0, math.sqrt(2.0)).log_prob(x).sum(-1)
    return *pair(width, 3), x, exact


def test_the_error_of_heavy_weights_takes_the_tail_in():
    """Near k = 1/2 draws alone say too little: their interval misses, with the fit it covers."""
    model, guide, x, exact = heavy(0.77)
    found = evidence.iwae(model, guide, x, num_particles=2000)
    some = found.trusted
    assert int(some.sum()) > 200
    k, size = found.num_particles, found.effective_sample_size
    plain = ((k / size - 1) / (k - 1)).sqrt()
    off = (found.log_evidence - exact).abs()
    covers = [float((off < 1.645 * e)[some].double().mean()) for e in (found.standard_error, plain)]
    error = math.sqrt(0.9 * 0.1 / int(some.sum()))
    assert covers[0] > 0.9 - 3 * error
    assert covers[1] < covers[0] - 0.02
