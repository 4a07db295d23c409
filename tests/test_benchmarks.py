"""The benchmarks measure like with like: every implementation gives the same log p(x)."""

import json

import pytest
import torch
from benchmarks import evidence as benchmark
from benchmarks import step

IMAGES, PARTICLES = 6, 2000


def test_all_give_the_same_evidence():
    """Within 5 standard errors of one another for each image."""
    vae, x = benchmark.task(IMAGES)
    exact = benchmark.evidence.iwae(vae.model, vae.guide, x, num_particles=20_000)
    error = (exact.standard_error**2 * 11).sqrt()
    for name, make in benchmark.implementations().items():
        found = make(vae, x)(PARTICLES, 3).double()
        assert found.shape == (IMAGES,)
        assert bool(((found - exact.log_evidence).abs() < 5 * error).all()), name
    assert float(error.max()) < 0.15
    # negative control: logits moved by 0.05 are seen
    vae.likelihood.net.output.bias.data += 0.05
    other = benchmark.by_torch(vae, x)(PARTICLES, 3).double()
    assert not bool(((other - exact.log_evidence).abs() < 5 * error).any())


def test_it_prints_what_it_measured(capsys):
    benchmark.main(["--rounds", "1", "--images", "4", "--particles", "20", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["setting"]["particles"] == 20
    assert found["figures"]["torch"]["ratio_to_torch"] == [1.0, 1.0, 1.0]
    assert found["figures"]["pyrovae"]["image_samples_a_second"][0] > 0
    torch.set_num_threads(1)


def test_memory_is_measured():
    found = benchmark.memory(4, (50,), threads=1)[50]
    assert 0 < found["held_mb"] < 200 and 0 < found["growth_mb"] < 200 and found["seconds"] > 0


def test_all_train_the_same_model():
    """From starts of their own, on the same batches: the loss falls alike. The rest is compiled."""
    losses = {}
    for name in ("eager", "pyro", "torch", "pythae", "numpyro"):
        make = step.contenders().get(name)
        if make is not None:
            vae, batches = step.task(batch=32, steps=60)
            learner = make(vae, batches)
            losses[name] = learner.train(learner.data(batches))
            assert learner.test(batches[0]) == pytest.approx(losses[name], rel=0.1)
    assert max(losses.values()) < 1.05 * min(losses.values()) < 450, losses  # 543 at the start
    assert losses["eager"] == pytest.approx(losses["torch"], rel=0.03)


def test_the_loss_by_hand_is_that_of_the_pair():
    """Of each model; with the VampPrior's mixture written out."""
    for model in step.MODELS:
        vae, batches = step.task(batch=64, steps=1, model=model)
        losses = [
            torch.tensor([test(batches[0]) for _ in range(20)])
            for test in (step.by_elbo(vae), step.by_torch(vae, batches).test)
        ]
        error = (sum(t.var() for t in losses) / 20).sqrt()
        assert abs(losses[0].mean() - losses[1].mean()) < 4 * error + 1e-4, model
