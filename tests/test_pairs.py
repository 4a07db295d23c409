"""Every pair that ships goes through the same laws; one without a case fails the suite."""

import copy

import pyro
import pytest
import torch
from cases.pairs import PAIRS, PairCase
from pyro.infer import SVI
from typer.testing import CliRunner

from pyrovae import fit, load, pairs
from pyrovae.cli import app
from pyrovae.distributions import seeded
from pyrovae.pairs.base import Pair
from pyrovae.pairs.names import PAIRS as NAMED
from pyrovae.pairs.names import hyphenated
from pyrovae.testing import check_pair

every_pair = pytest.mark.parametrize("case", PAIRS, ids=lambda c: c.id)


def shipped():
    found = (getattr(pairs, name) for name in pairs.__all__)
    return {c for c in found if isinstance(c, type) and issubclass(c, Pair)}


def without_case(classes):
    return {c.__name__ for c in classes} - {c.cls.__name__ for c in PAIRS}


def test_every_pair_has_a_case_and_a_name():
    assert not without_case(shipped())
    assert shipped() == set(NAMED.values())


def test_a_pair_without_a_case_is_seen():
    """Negative control."""

    class New(pairs.VAE):
        pass

    assert without_case({*shipped(), New}) == {"New"}


@every_pair
def test_check_pair_passes(case: PairCase):
    pair, (x, *c) = case.build(), case.batch()
    report = check_pair(pair.model, pair.guide, x, *c)
    assert report.ok, str(report)


@every_pair
def test_it_trains_and_its_run_loads_again(case: PairCase, tmp_path):
    pair, batch = case.build(), case.batch()
    history = fit(pair.model, pair.guide, batch, objective=case.objective(), epochs=40, lr=0.02,
                  run=tmp_path / "run")  # fmt: skip
    loss = history["loss"]
    assert sum(loss[-5:]) < sum(loss[:5])
    loaded = load(tmp_path / "run")
    assert type(loaded) is case.cls and loaded.config == pair.config
    with seeded(5):
        before = case.objective().loss(pair.model, pair.guide, *batch)
    with seeded(5):
        assert case.objective().loss(loaded.model, loaded.guide, *batch) == before


@every_pair
def test_a_copy_trains_apart_from_its_original(case: PairCase):
    pair, batch = case.build(), case.batch()
    SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), case.objective()).step(*batch)
    kept = {k: p.detach().clone() for k, p in pair.named_parameters()}
    other = copy.deepcopy(pair)
    SVI(other.model, other.guide, pyro.optim.Adam({"lr": 0.01}), case.objective()).step(*batch)
    assert any(not torch.equal(p, kept[k]) for k, p in other.named_parameters())
    for k, p in pair.named_parameters():
        torch.testing.assert_close(p, kept[k], rtol=0, atol=0)


@every_pair
def test_samples_and_reconstructions_have_the_shape_of_data(case: PairCase):
    pair, (x, *c) = case.build(), case.batch()
    drawn = pair.sample(len(x), *c, seed=3)
    assert drawn.shape == x.shape and pair.reconstruct(x, *c).shape == x.shape
    assert torch.equal(drawn, pair.sample(len(x), *c, seed=3))
    assert not torch.equal(drawn, pair.sample(len(x), *c, seed=4))
    assert pair.sample(len(x), *c, mean=True).shape == x.shape
    with pytest.raises(ValueError, match="n to be a whole number"):
        pair.sample(-1)


@pytest.mark.parametrize("case", [*{c.cls: c for c in PAIRS}.values()], ids=lambda c: c.id)
def test_the_command_line_trains_evaluates_and_samples(case: PairCase, tmp_path):
    run = str(tmp_path / "run")
    name = hyphenated(case.cls.__name__)
    commands = (
        ["train", "--pair", name, "--epochs", "2", "--run", run, *case.command],
        ["evaluate", run, "--num-particles", "20", "--limit", "30", "--json"],
        ["sample", run],
        ["info", run],
    )
    for command in commands:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, f"{command}: {result.output}"
