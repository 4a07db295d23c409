"""Every command takes every pair: those of several sites, and those with global latents."""

import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file
from test_labels import FEW, QUICK, gathered, invoke
from torch import nn

from pyrovae import data, evidence, load
from pyrovae.evidence import inference
from pyrovae.pairs import VAE
from pyrovae.pairs import names as pair_names
from pyrovae.pairs.base import Pair
from pyrovae.report import drawing, gathering

DIGITS = data.load("digits", values="levels")


@pytest.fixture(scope="module", autouse=True)
def _short_search():
    """The search for the best q has tests of its own; here a few steps of it will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "LOOKS", 2)
        patch.setattr(inference, "RATES", (1.0,))
        yield


class Stacked(Pair):
    """z2 ~ N(0, I), z1 ~ N(W z2, I), x ~ p(x|z1): two sites, nothing that encodes or decodes."""

    def __init__(self, vae):
        super().__init__()
        self.prior, self.likelihood, self.q = vae.prior, vae.likelihood, vae.posterior
        d = vae.prior.latent_dim
        self.down, self.up = nn.Linear(d, d), nn.Linear(d, d)

    @classmethod
    def of_names(cls, parts):
        return cls(VAE.of_names(parts))

    def model(self, x):
        self.register()
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.prior())
            z1 = pyro.sample("z1", dist.Normal(self.down(z2), 1.0).to_event(1))
            pyro.sample("x", self.likelihood(z1), obs=x)

    def guide(self, x):
        self.register()
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", self.q(x))
            pyro.sample("z2", dist.Normal(self.up(z1), 1.0).to_event(1))

    def sample(self, n, *, seed=0, mean=False):
        with torch.no_grad(), pyro.plate("data", n):
            torch.manual_seed(seed)
            x = self.likelihood(self.down(self.prior().sample((n,))))
            return x.mean if mean else x.sample()

    def reconstruct(self, x, *, seed=0):
        with torch.no_grad():
            torch.manual_seed(seed)
            return self.likelihood(self.q(x).sample()).mean


class Shifted(Pair):
    """A shift w ~ N(0, I) of all z alike, outside the plate: x ~ p(x | z + w)."""

    def __init__(self, vae, fixed=None):
        super().__init__()
        self.prior, self.likelihood, self.posterior = vae.prior, vae.likelihood, vae.posterior
        start = torch.full((vae.prior.latent_dim,), 0.5)
        self.loc = nn.Parameter(start) if fixed is None else fixed
        self.fixed = fixed is not None

    @classmethod
    def of_names(cls, parts):
        return cls(VAE.of_names(parts))

    @property
    def local(self):
        return Shifted(self, fixed=self.loc)

    def model(self, x):
        self.register()
        w = self.loc
        if not self.fixed:
            w = pyro.sample("w", dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z + w), obs=x)

    def guide(self, x):
        self.register()
        if not self.fixed:
            pyro.sample("w", dist.Normal(self.loc, 0.1).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))

    sample, reconstruct = Stacked.sample, Stacked.reconstruct
    down = staticmethod(lambda z: z)
    q = property(lambda self: self.posterior)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Runs of both, by name."""
    folder = tmp_path_factory.mktemp("others")
    with pytest.MonkeyPatch.context() as patch:
        for cls in (Stacked, Shifted):
            patch.setitem(pair_names.PAIRS, cls.__name__, cls)
            invoke("train", "--pair", cls.__name__.lower(), *QUICK, "--objective", "trace", "--run",
                   folder / cls.__name__.lower())  # fmt: skip
        yield folder


@pytest.mark.parametrize("name", ["stacked", "shifted"])
def test_every_command_takes_every_pair(others, tmp_path, name):
    run = others / name
    assert {"samples.png", "reconstructions.png", "elbo.png", "latent.png"} <= {
        path.name for path in run.iterdir()
    }
    assert not (run / "manifold.png").exists()
    figures = json.loads(invoke("evaluate", run, *FEW, "--json").stdout)
    assert figures["elbo"] == pytest.approx(figures["reconstruction"] - figures["kl"], rel=1e-5)
    invoke("sample", run)
    invoke("sample", run, "--out", tmp_path / "x.npy", "--n", 3)
    invoke("info", run)
    invoke("encode", run, "--num-draws", 2, "--out", tmp_path / "z.npz")
    with np.load(tmp_path / "z.npz") as file:
        found = dict(file)
    assert found["mean"].shape == (179, {"stacked": 4, "shifted": 2}[name])
    assert found["draws"].shape == (2, *found["mean"].shape)
    assert ("sd" in found) == (name == "shifted")  # known of one site alone
    _, shown = gathered(run)
    why = f"{name.capitalize()} has no one function that decodes all its latents"
    assert shown.traversal.reason == shown.interpolated.reason == why
    for section in ("bounds", "gaps", "units", "map", "copies"):
        assert not isinstance(getattr(shown, section), gathering.Missing), section
    assert len(drawing.sections(shown, "")) == 8


def test_figures_of_a_datum_are_those_of_the_local_pair(others):
    """Global latents at the guide's mean; without `local` there are none."""
    invoke("evaluate", others / "shifted", *FEW)
    found = load_file(others / "shifted/evaluation.safetensors")["log_evidence"]
    pair = load(others / "shifted")
    local = evidence.summarise(
        pair.local.model, pair.local.guide, DIGITS.test[:100], num_particles=6, seed=0
    )
    torch.testing.assert_close(found[:100], local.evidence.log_evidence.double())
    with pytest.raises(ValueError, match="outside|plate"):
        evidence.summarise(pair.model, pair.guide, DIGITS.test, num_particles=6)
    vae = load(others / "stacked")
    assert vae.local is vae
