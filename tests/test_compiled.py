"""The compiled step is the eager one: the same noise, the same weights, at every batch."""

import logging
import shutil
from types import SimpleNamespace

import pyro
import pytest
import torch
from cases import LIKELIHOODS, POSTERIORS, PRIORS
from cases.objectives import OBJECTIVES
from cases.pairing import compatible, shipped
from cases.pairs import PAIRS
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyrovae import build, fit, objectives
from pyrovae.distributions import seeded
from pyrovae.nets import compiling
from pyrovae.objectives.schedules import Linear
from pyrovae.training import compiled

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="Inductor needs a C++ compiler",
)
AGREE = 1e-5  # relative by norm, of each tensor, after 100 steps


def bits(n=650, d=6):
    return (torch.rand(n, d, generator=torch.Generator().manual_seed(1234)) > 0.5).float()


def small(**options):
    return build(**{"data_shape": (6,), "latent_dim": 2, "hidden": (5,), "seed": 3} | options)


def trained(pair, batch, mode, **options):
    """Weights after 20 epochs of 5 batches of 128 and a short one of 10, and the last loss."""
    history = fit(pair.model, pair.guide, batch, compile=mode, **({"epochs": 20} | options))
    return {n: p.detach().clone() for n, p in pair.named_parameters()}, history["loss"][-1]


def assert_same(make, batch, **options):
    got, expected = (trained(make(), batch, mode, **options) for mode in ("always", "never"))
    assert got[1] == pytest.approx(expected[1], rel=1e-5)
    for name, tensor in expected[0].items():
        assert (got[0][name] - tensor).norm() <= AGREE * tensor.norm() + 1e-7, name


def test_weights_and_losses_are_the_eager_steps():
    """A schedule moves without another compilation; short batches run eagerly."""
    objective = objectives.BetaELBO(2.0, Linear(10))
    assert_same(small, bits(), objective=objective)


def test_so_are_those_of_products_by_onednn():
    assert_same(lambda: small(data_shape=(40,), hidden=(128,)), bits(d=40))


def test_a_bound_of_several_draws_and_a_prior_of_the_guide():
    make = lambda: small(prior="vamp-prior", prior_options={"num_components": 5})  # noqa: E731
    assert_same(make, bits(), objective=objectives.DReG(3), epochs=4)


def test_the_score_functions_gradient():
    make = lambda: small(  # noqa: E731
        prior="one-hot-categorical", posterior="one-hot-categorical", latent_dim=3
    )
    assert_same(make, bits(), objective=Trace_ELBO(), epochs=4)


def test_float32_products_are_onednns_and_the_weights_may_be_views():
    """Small products, those of float64, and vectors are left as they are."""
    generator = torch.Generator().manual_seed(1234)
    x, w = (torch.randn(200, 100, generator=generator) for _ in range(2))

    def products(x, w):
        return x @ w.T, x.T @ w, torch.nn.functional.linear(x, w, w[:, 0]), x[:3] @ w[:3].T

    for dtype, expected in ((torch.float32, 3), (torch.float64, 0)):
        graph = compiling._traced(products, [x.to(dtype), w.to(dtype)])
        compiling._through_onednn(graph)
        used = [n for n in graph.graph.nodes if n.target is compiling._linear()]
        assert len(used) == expected * torch.backends.mkldnn.is_available()
        for got, usual in zip(
            compiling.Compiled(products, [x.to(dtype), w.to(dtype)])(x.to(dtype), w.to(dtype)),
            products(x.double(), w.double()), strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(got.double(), usual, rtol=1e-5, atol=1e-4)


def test_a_weight_that_is_a_slice_is_copied():
    """oneDNN takes a product by a slice two thousand times as long."""
    x, w = (torch.randn(200, 300, generator=torch.Generator().manual_seed(1234)) for _ in range(2))

    def product(x, w):
        return (x[:, :100] @ w[:, 50:150].T,)

    graph = compiling._traced(product, [x, w])
    compiling._through_onednn(graph)
    if torch.backends.mkldnn.is_available():
        (node,) = (n for n in graph.graph.nodes if n.target is compiling._linear())
        with torch.no_grad():
            weight = torch.fx.Interpreter(graph, garbage_collect_values=False)
            weight.run(x, w)
        assert weight.env[node.args[1]].t().is_contiguous()
    (got,) = compiling.Compiled(product, [x, w])(x, w)
    torch.testing.assert_close(got, product(x, w)[0], rtol=1e-5, atol=1e-4)


def test_shapes_that_depend_on_values_are_refused():
    """Or another batch would meet those of the first: rejection sampling, masks as indices."""
    x = torch.linspace(-1, 1, 10)
    for function in (lambda x: (x[x > 0].sum(),), lambda x: (x.nonzero(),)):
        with pytest.raises(compiling.NotCompiled, match="shapes depend on values"):
            compiling.Compiled(function, [x])
    rows = torch.tensor([3, 1])
    (got,) = compiling.Compiled(lambda x: (x[rows].masked_fill(x[rows] > 0, 0.0),), [x])(x)
    assert torch.equal(got, x[rows].clamp(max=0))
    sphere = small(prior="von-mises-fisher", posterior="von-mises-fisher", latent_dim=3)
    with pytest.raises(ValueError, match="as those of rejection sampling do"):
        trained(sphere, bits(), "always")


def test_a_step_that_differs_is_refused(monkeypatch):
    """Negative control: a log-density that is off by a thousandth."""
    right = compiling.decompositions()

    def wrong(*args, **kwargs):
        return 1.001 * next(iter(right.values()))(*args, **kwargs)

    monkeypatch.setattr(compiling, "decompositions", lambda: dict.fromkeys(right, wrong))
    with pytest.raises(ValueError, match="differs from the eager step's by .* of"):
        trained(small(), bits(), "always", objective=TraceMeanField_ELBO())


def test_what_cannot_be_compiled_is_left_to_pyro(caplog, monkeypatch):
    vae = small()

    def guide(x):
        return vae.guide(x if bool((x > 0).any()) else x + 1)

    pair = SimpleNamespace(model=vae.model, guide=guide, named_parameters=vae.named_parameters)
    with pytest.raises(ValueError, match="cannot be compiled: .*looks at the value of a tensor"):
        trained(pair, bits(), "always")
    monkeypatch.setattr(compiled, "WORTH", 0.0)
    with caplog.at_level(logging.WARNING, logger="pyrovae"):
        trained(pair, bits(), "auto", epochs=1)
    told = [r.getMessage() for r in caplog.records if r.name.startswith("pyrovae")]
    assert len(told) == 1 and "takes Pyro's time: it cannot be traced" in told[0]


@pytest.mark.slow  # half a minute of the compiler
def test_a_compiler_older_than_the_processor(tmp_path, monkeypatch):
    from torch._inductor import config

    log, old = tmp_path / "log", tmp_path / "g++"
    old.write_text(
        f'#!/bin/sh\ncase "$*" in *-mavx512*) echo 512 >> {log}; exit 1;; esac\nexec g++ "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with config.patch({"cpp.cxx": (str(old),), "force_disable_caches": True}):
        assert_same(small, bits())
    assert log.exists() == ("AVX512" in torch.backends.cpu.get_cpu_capability())


def test_short_trainings_are_not_worth_it():
    """The digits of the first command; MNIST's 20 epochs are."""
    digits = [torch.zeros(64_084)]
    assert not compiled.is_worth_it(digits, 100 * 1_439)
    assert compiled.is_worth_it([torch.zeros(652_824)], 20 * 60_000)


def test_a_schedule_read_in_python_is_not_compiled():
    capacity = objectives.Capacity(schedule=Linear(3))
    with pytest.raises(ValueError, match="Capacity reads its schedule in Python"):
        trained(small(), bits(), "always", objective=capacity)


def test_the_log_density_of_pixels_is_close_enough():
    """log(1 + exp(-|l|)) for log1p(exp(-|l|)) is off by less than 1e-7 nats a pixel, in float32."""
    (density,) = compiling.decompositions().values()
    logits = -torch.linspace(0, 40, 400_001)
    exact = torch.log1p(logits.double().exp())
    error = density(logits, torch.zeros_like(logits), reduction=0).double() - exact
    assert error.abs().max() < 1e-7 and error.mean().abs() < 1e-8
    double = density(logits.double(), torch.zeros_like(logits), reduction=0)
    assert (double - exact).abs().max() < 2e-16
    logits, targets = torch.tensor([[3.0, 3.0, -3.0, 0.0], [1.0, 0.2, 0.7, 0.0]])
    usual = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(density(logits, targets, reduction=0), usual)
    assert density(logits, targets, reduction=1) is NotImplemented  # densities have elements alone


def test_no_setting_is_left_changed():
    from torch._inductor import config

    before = config.fallback_random
    item = pyro.infer.trace_elbo.torch_item
    trained(small(), bits(), "always", epochs=1)
    assert config.fallback_random == before and pyro.infer.trace_elbo.torch_item is item


def once(kind):
    """A row for each prior, or posterior, with the first of the other kind that it goes with."""
    found = {}
    for p, q in compatible(tuple(PRIORS), tuple(POSTERIORS), LIKELIHOODS[0]):
        name = (p if kind == "prior" else q).id
        found.setdefault(name, (kind, name, None, (p, q, LIKELIHOODS[0])))
    return found.values()


SLOW = [
    *[("likelihood", like.id, None, (PRIORS[0], POSTERIORS[0], like)) for like in LIKELIHOODS],
    *once("prior"), *once("posterior"),
    *[("objective", o.id, o, None) for o in OBJECTIVES],
    *[("pair", p.id, None, p) for p in PAIRS],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "objective", "case"), SLOW)
def test_everything_that_compiles_agrees(kind, name, objective, case):
    """100 steps; what does not compile says why: `pytest -n 0 -m slow -s -k everything`.

    In float64: a gradient of 0 but for rounding, as where the signs of a Laplace's errors cancel,
    is a step of Adam's in float32.
    """
    chosen = TraceMeanField_ELBO() if objective is None else objective.make()

    def make():
        with seeded(1):
            if kind == "objective":
                return small().double()
            return (case.build() if kind == "pair" else shipped(*case)).double()

    if kind == "objective":
        batch = (bits(128),)
    elif kind == "pair":
        batch, chosen = case.batch(), case.objective()
    else:
        with seeded(2), torch.no_grad():
            vae = make().eval()
            batch = (vae.likelihood(torch.randn(16, vae.likelihood.latent_dim).double()).sample(),)
        if not vae.posterior(*batch).has_rsample:
            chosen = Trace_ELBO()
        if getattr(vae.prior, "indexed", False):
            batch = *batch, torch.arange(len(batch[0]))
    try:
        assert_same(make, batch, objective=chosen, epochs=100)
    except ValueError as reason:
        print(f"\n{kind} {name}: {reason}")
    else:
        print(f"\n{kind} {name}: compiles")
