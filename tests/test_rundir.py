"""The directory a run leaves behind, and the loop under it."""

import math

import pairs_of_users as users
import pyro
import pytest
import torch
from safetensors.torch import load_file
from test_training import X, closure_pair, fitted, sgd, weights

from pyrovae import build, fit, likelihoods, load
from pyrovae.optimise import descend


def test_a_run_is_written_and_loaded(tmp_path):
    run = tmp_path / "a"
    vae, history = fitted(run=run)
    left = {"checkpoints", "config.json", "history.csv", "model.safetensors"}
    assert {p.name for p in run.iterdir()} == left
    again = load(run)
    assert torch.equal(weights(again), weights(vae))
    before = weights(again)
    fit(again.model, again.guide, X, epochs=1)
    assert not torch.equal(weights(again), before)
    with pytest.raises(ValueError, match="new or empty directory; got .* which is in use"):
        fitted(run=run)
    with pytest.raises(ValueError, match="binarise"):
        fitted(X * 0.5, run=tmp_path / "wrong")
    assert [run] == list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="binarise"):
        fitted(X * 0.5, run=tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()


def test_float64_and_buffers_come_back(tmp_path):
    vae = build(data_shape=(4,), latent_dim=2, hidden=(8,)).double()
    vae.likelihood.register_buffer("seen", torch.tensor([7.0]))
    fit(vae.model, vae.guide, X, epochs=1, run=tmp_path / "a")
    saved = load_file(tmp_path / "a" / "model.safetensors")
    assert saved["likelihood.seen"].item() == 7
    del vae.likelihood.seen
    fit(vae.model, vae.guide, X, epochs=1, run=tmp_path / "b")
    assert torch.equal(weights(load(tmp_path / "b")), weights(vae))


def test_a_pair_of_closures_is_saved_and_loaded(tmp_path):
    model, guide, networks = closure_pair()
    x, c = users.batch(20)
    fit(model, guide, (x, c), epochs=2, run=tmp_path / "a")
    model, guide, fresh = closure_pair(seed=1)
    with pyro.get_param_store().scope():
        with pytest.raises(ValueError, match="call pyro.param or pyro.module"):
            load(tmp_path / "a", into=(model, guide))
        guide(x, c)
        model(x, c)
        load(tmp_path / "a", into=(model, guide))
    pairs = zip(networks.parameters(), fresh.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    fit(model, guide, (x, c), epochs=1, run=tmp_path / "b", modules=[fresh])
    model, guide, other = closure_pair(seed=2)
    load(tmp_path / "b", into=(model, guide), modules=[other])
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.parameters(), other.parameters(), strict=True)
    )


def test_a_config_that_json_cannot_hold_is_refused_before_training():
    for options in ({"variance": likelihoods.Fixed(0.1)}, {"variance": math.inf}):
        with pytest.raises(ValueError, match="options that JSON can hold"):
            build(data_shape=(4,), latent_dim=2, likelihood="normal", likelihood_options=options)


def test_load_into_a_pair_of_ones_own(tmp_path):
    x = torch.randn(20, users.D, generator=torch.Generator().manual_seed(0))
    pair = users.plain_model, users.plain_guide
    with pyro.get_param_store().scope():
        fit(*pair, x, epochs=3, run=tmp_path / "b")
        scale = pyro.param("scale").item()
    with pyro.get_param_store().scope():
        with pytest.raises(ValueError, match="run once on a batch where its functions call"):
            load(tmp_path / "b", into=pair)
        users.plain_guide(x)
        assert load(tmp_path / "b", into=pair) is None
        assert pyro.param("scale").item() == pytest.approx(scale)


def test_damaged_runs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="run directory with config.json"):
        load(tmp_path / "none")
    fitted(run=tmp_path / "c")
    weights_file = tmp_path / "c" / "model.safetensors"
    whole = weights_file.read_bytes()
    weights_file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        load(tmp_path / "c")
    weights_file.unlink()
    with pytest.raises(FileNotFoundError, match="the run did not finish"):
        load(tmp_path / "c")
    for text in ("{", '{"build": {}}', '{"build": {"latent_dim": 2, "wrong": 1}}', "[]"):
        (tmp_path / "c" / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json is damaged"):
            load(tmp_path / "c")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    fitted(run=tmp_path / "d")
    other = build(data_shape=(4,), latent_dim=3, hidden=(8,))
    with pytest.raises(ValueError, match="do not fit VAE"):
        load(tmp_path / "d", into=(other.model, other.guide))


# The loop


def test_descend_minimises_and_stops():
    p = torch.tensor([3.0, -2.0], requires_grad=True)

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss.item()

    seen = []
    descend(
        lambda epoch: [(closure, 1.0), (closure, 3.0)], [p], epochs=100, steps_per_epoch=2, lr=0.1,
        optimizer=sgd, after_epoch=lambda epoch, loss, lr: seen.append(loss) or loss < 1e-6,
    )  # fmt: skip
    assert p.abs().max() < 1e-3 and len(seen) < 100
    assert seen[0] == pytest.approx((13 + 3 * 13 * 0.64) / 4)


def test_a_schedule_scales_each_groups_own_rate():
    p, q = (torch.tensor([1.0], requires_grad=True) for _ in range(2))

    def closure():
        loss = (p + q).sum()
        loss.backward()
        return loss.item()

    def groups(parameters, lr):
        return torch.optim.SGD([{"params": [p], "lr": 0.0}, {"params": [q]}], lr=lr)

    descend(
        lambda epoch: [(closure, 1.0)], [p, q], epochs=2, steps_per_epoch=1, lr=0.1,
        optimizer=groups, schedule=lambda t: 1 - t,
    )  # fmt: skip
    assert p.item() == 1.0
    assert q.item() == pytest.approx(1 - 0.1 - 0.05)
