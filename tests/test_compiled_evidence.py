"""The compiled passes of the evidence are Pyro's: the same draws, the same numbers."""

import gc
import logging
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae import build, evidence
from pyrovae.evidence import importance_weighted
from pyrovae.importance import CompiledPasses, log_terms, passes
from pyrovae.nets import compiling

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="Inductor needs a C++ compiler",
)
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative


def bits(n=40, d=6, dtype=torch.float32):
    return (torch.rand(n, d, generator=torch.Generator().manual_seed(1234)) > 0.5).to(dtype)


def small(**options):
    return build(**{"data_shape": (6,), "latent_dim": 2, "hidden": (5,), "seed": 3} | options)


def assert_same(pair, *data, **options):
    got, expected = (
        evidence.iwae(*pair, *data, num_particles=60, compile=mode, **options)
        for mode in ("always", "never")
    )
    torch.testing.assert_close(
        got.log_evidence, expected.log_evidence, rtol=CLOSE[data[0].dtype], atol=1e-12
    )
    assert not torch.equal(expected.log_evidence, evidence.iwae(*pair, *data).log_evidence)


@pytest.mark.parametrize("dtype", CLOSE)
def test_the_numbers_are_those_of_the_pass_as_it_is_written(dtype):
    vae = small().to(dtype)
    assert_same((vae.model, vae.guide), bits(dtype=dtype))


def test_a_users_pair_of_two_latents_with_context():
    weight = torch.nn.Linear(6, 2)

    def model(x, c):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(c.sum(-1), 1.0))
            v = pyro.sample("v", dist.Normal(u, 1.0))
            logits = torch.stack([u, v] * 3, -1)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x, c):
        with pyro.plate("data", len(x)):
            mean = weight(x)
            u = pyro.sample("u", dist.Normal(mean[:, 0], 0.5))
            pyro.sample("v", dist.Normal(mean[:, 1] + u, 0.5))

    context = torch.randn(40, 3, generator=torch.Generator().manual_seed(1234))
    assert_same((model, guide), bits(), context, modules=[weight])


def test_passes_of_two_shapes_and_the_terms(monkeypatch):
    """40 rows in blocks of 15, 15 and 10; the summary's terms are the eager ones too."""
    monkeypatch.setattr(importance_weighted, "CHUNK", 60 * 15)
    vae = small()
    assert_same((vae.model, vae.guide), bits())
    got, expected = (
        evidence.summarise(vae.model, vae.guide, bits(), num_particles=50, compile=mode)
        for mode in ("always", "never")
    )
    for name in ("reconstruction", "kl", "elbo"):
        one, other = getattr(got, name), getattr(expected, name)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_encoder_runs_once_a_block(monkeypatch):
    """Its products of matrices come before all draws; the decoder's do not."""
    found = []
    split = compiling._split
    monkeypatch.setattr(compiling, "_split", lambda graph: found.extend(split(graph)) or found)
    vae = small()
    evidence.iwae(vae.model, vae.guide, bits(), num_particles=60, compile="always")
    before, after = ([str(n.target) for n in g.graph.nodes] for g in found)
    assert [sum("addmm" in t for t in each) for each in (before, after)] == [2, 2]
    assert not any("normal" in t for t in before) and sum("normal_" in t for t in after) == 1


def test_what_is_compiled_is_kept_as_long_as_the_pair(monkeypatch):
    """Weights are read at each call; where others took their place, what was kept is not used."""
    made = []

    class Counted(passes.CompiledPass):
        def __init__(self, *args):
            made.append(1)
            super().__init__(*args)

    def run(mode="always"):
        options = {"num_particles": 60, "compile": mode}
        return evidence.iwae(pairs[0].model, pairs[0].guide, bits(), **options).log_evidence

    monkeypatch.setattr(passes, "CompiledPass", Counted)
    pairs = [small()]
    first = run()
    assert torch.equal(run(), first) and len(made) == 1
    with torch.no_grad():
        pairs[0].likelihood.net.output.bias.add_(1)
    assert not torch.allclose(run(), first) and len(made) == 1
    pairs[0].likelihood = small(seed=4).likelihood
    torch.testing.assert_close(run(), run("never"), rtol=1e-5, atol=1e-6)
    assert len(made) == 2
    before = len(passes.MEMORY)
    pairs.clear()
    gc.collect()
    assert len(passes.MEMORY) == before - 1


def test_a_pass_that_differs_is_refused(monkeypatch, caplog):
    """Negative control: a log-density that is off by a thousandth."""
    right = compiling.decompositions()

    def wrong(*args, **kwargs):
        return 1.001 * next(iter(right.values()))(*args, **kwargs)

    monkeypatch.setattr(compiling, "decompositions", lambda: dict.fromkeys(right, wrong))
    vae = small()
    with pytest.raises(ValueError, match="cannot be compiled: its log_likelihood differs from"):
        evidence.iwae(vae.model, vae.guide, bits(), num_particles=60, compile="always")
    monkeypatch.setattr(importance_weighted, "WORTH", 0.0)
    with caplog.at_level(logging.WARNING, logger="pyrovae"):
        got = evidence.iwae(vae.model, vae.guide, bits(), num_particles=60)
    told = [r.getMessage() for r in caplog.records if r.name.startswith("pyrovae")]
    assert len(told) == 1 and "not compiled, and take Pyro's time: its log_lik" in told[0]
    expected = evidence.iwae(vae.model, vae.guide, bits(), num_particles=60, compile="never")
    assert torch.equal(got.log_evidence, expected.log_evidence)


def test_what_cannot_be_traced_is_said():
    def guide(x):
        with pyro.plate("data", len(x)):
            scale = 1.0 if bool((x > 0).any()) else 2.0
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), scale).to_event(1))

    with pytest.raises(ValueError, match="cannot be compiled: .*looks at the value of a tensor"):
        evidence.iwae(small().model, guide, bits(), num_particles=60, compile="always")
    with pytest.raises(ValueError, match="expected compile to be auto, always or never; got 'no'"):
        evidence.iwae(small().model, guide, bits(), compile="no")


def test_little_work_is_not_compiled(monkeypatch):
    monkeypatch.setattr(passes, "CompiledPass", None)
    vae = small()
    evidence.iwae(vae.model, vae.guide, bits(), num_particles=60)


def test_data_off_the_support_are_refused_in_every_block(monkeypatch):
    monkeypatch.setattr(importance_weighted, "CHUNK", 60 * 20)
    vae, x = small(), bits()
    x[-1, 2] = 0.5
    with pytest.raises(ValueError, match="expected .*0.5"):
        evidence.iwae(vae.model, vae.guide, x, num_particles=60, compile="always")


def test_draws_are_those_of_the_seed_and_the_generator_is_left():
    vae, x = small(), bits()
    state = torch.get_rng_state()
    one, same, other = (
        log_terms(
            vae.model, vae.guide, x, num_particles=4, seed=seed,
            compiled=CompiledPasses(vae.model, vae.guide, must=True),
        ).log_weight
        for seed in (1, 1, 2)
    )  # fmt: skip
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
