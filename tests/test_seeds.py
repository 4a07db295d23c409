"""One training from several seeds: what is alike, and what an interruption costs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from pyrovae import plots
from pyrovae.cli import app
from pyrovae.training import experiment, rundir, seeds

QUICK = ["--epochs", 1, "--hidden", 8, "--latent-dim", 2]
KEYS = ("elbo", "reconstruction", "kl", "log_evidence", "bits_per_dim")


def invoke(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def train(*words, code=0):
    return invoke("train", *QUICK, *words, code=code)


def weights(run):
    return load_file(Path(run) / "model.safetensors")


def same(first, second):
    return set(first) == set(second) and all(torch.equal(first[k], second[k]) for k in first)


def everything(top):
    return {p: p.read_bytes() for p in Path(top).rglob("*") if p.is_file()}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in a folder of the test's own, and draw no pictures: they take longer than training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "save_all", lambda *args: [])


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Three seeds from 4 on, and what was printed."""
    where = tmp_path_factory.mktemp("kept") / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_all", lambda *args: [])
        return where, train("--seeds", 3, "--seed", 4, "--run", where)


@pytest.fixture
def done(kept):
    """A copy of these in the folder of the test."""
    shutil.copytree(kept[0], "a")
    return Path("a")


def interrupted_after(monkeypatch, runs, function="fit"):
    """Let a step of training be interrupted once so many runs are done."""
    plain, count = getattr(experiment, function), iter(range(99))

    def stop(*args, **options):
        if next(count) == runs:
            raise KeyboardInterrupt
        return plain(*args, **options)

    monkeypatch.setattr(experiment, function, stop)


# What is trained


def test_each_seed_is_a_run_of_its_own_on_the_same_split(done):
    configs = [rundir.read_config(done / f"seed-{k}") for k in (4, 5, 6)]
    assert [c["training"]["seed"] for c in configs] == [4, 5, 6]
    assert [c["build"]["seed"] for c in configs] == [4, 5, 6]
    assert [c["data"]["seed"] for c in configs] == [4, 4, 4]
    assert len({c["record"]["sha256"] for c in configs}) == 1
    assert not same(weights(done / "seed-4"), weights(done / "seed-5"))
    train("--seed", 5, "--split-seed", 4, "--run", "alone")
    train("--seed", 5, "--run", "other split")
    assert same(weights("alone"), weights(done / "seed-5"))
    assert not same(weights("other split"), weights(done / "seed-5"))
    assert rundir.read_config("alone") == configs[1]
    assert rundir.read_config("other split")["record"]["sha256"] != configs[0]["record"]["sha256"]
    names = {"config.json", "model.safetensors", "history.csv", "metrics.json"}
    assert names < {p.name for p in (done / "seed-5").iterdir()}
    assert {p.name for p in done.iterdir()} == {"seed-4", "seed-5", "seed-6", "seeds.json"}


def test_errors_are_across_the_seeds(done, kept):
    content = json.loads((done / "seeds.json").read_text())
    runs = [json.loads((done / f"seed-{k}" / "metrics.json").read_text()) for k in (4, 5, 6)]
    assert content["n"] == 3 and content["figures"] == dict(zip("456", runs, strict=True))
    for key in KEYS:
        values = np.array([run[key] for run in runs])
        assert content["mean"][key] == pytest.approx(values.mean(), rel=1e-12)
        se = values.std(ddof=1) / np.sqrt(3)
        assert content["se"][key] == pytest.approx(se, rel=1e-9)
        assert abs(content["se"][key] - values.std() / np.sqrt(3)) > 0.1 * se
    told = kept[1].stdout.splitlines()
    assert told[0].startswith("digits, 3 seeds, the same 179 test data; log p(x): 100 importance")
    assert [line.split()[0] for line in told[3:]] == ["seed", "4", "5", "6", "mean"]
    assert len({len(line) for line in told[3:]}) == 1
    mean, se = content["mean"], content["se"]
    assert f"{mean['elbo']:.3f} +- {se['elbo']:.3f}" in told[-1]
    assert told[-1].endswith(f"{mean['bits_per_dim']:.4f} +- {se['bits_per_dim']:.4f}")
    assert f"{runs[0]['elbo']:.3f} +- {runs[0]['elbo_se']:.3f}" in told[4]


def test_a_density_has_no_bits(kept):
    result = train("--seeds", 2, "--likelihood", "normal", "--run", "b")
    assert "bits/dim" in kept[1].stdout and "bits/dim" not in result.stdout
    assert "x in [0, 1]" in result.stdout
    content = json.loads(Path("b/seeds.json").read_text())
    assert content["mean"]["bits_per_dim"] is None and content["se"]["bits_per_dim"] is None


def test_pictures_are_in_each_run(monkeypatch):
    def draw(run, *args):
        (run / "picture.png").write_text("here")
        return []

    monkeypatch.setattr(plots, "save_all", draw)
    result = train("--seeds", 2, "--run", "b")
    assert all(Path(f"b/seed-{k}/picture.png").is_file() for k in (0, 1))
    assert "-> b/seed-0\n" in result.stderr and "/.seed" not in result.stderr


# Interrupted


@pytest.mark.parametrize("step", ["fit", "record"])
def test_work_goes_on_where_it_was_interrupted(done, monkeypatch, step):
    words = ["--seeds", 3, "--seed", 4, "--run", "b"]
    with monkeypatch.context() as patch:
        interrupted_after(patch, 2, step)
        told = train(*words, code=130).stderr
    assert "what is done is kept in b" in told and "interrupted" in told
    assert {p.name for p in Path("b").glob("s*")} == {"seed-4", "seed-5", "seeds.json"}
    assert json.loads(Path("b/seeds.json").read_text())["n"] == 2
    before = everything("b/seed-4") | everything("b/seed-5")
    trained = []
    plain = experiment.fit
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "fit", lambda *a, **o: trained.append(0) or plain(*a, **o))
        assert "b: 2 of 3 seeds done, 1 to go" in train(*words).stderr
    assert len(trained) == 1
    assert everything("b/seed-4") | everything("b/seed-5") == before
    assert same(weights("b/seed-6"), weights(done / "seed-6")) and not list(Path("b").glob(".*"))
    assert Path("b/seeds.json").read_text() == (done / "seeds.json").read_text()


def test_without_a_name_the_same_command_finds_its_own(monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(patch, 1)
        train("--seeds", 2, code=130)
    assert "-> runs/digits-2/seed-0" in train("--seeds", 2, "--lr", 0.1).stderr
    assert "runs/digits-1: 1 of 2 seeds done" in train("--seeds", 2).stderr
    assert "-> runs/digits-3/seed-0" in train("--seeds", 2).stderr, "nothing was left to do"


def test_more_seeds_are_added(done):
    before = everything(done / "seed-4")
    assert "3 of 4 seeds done" in train("--seeds", 4, "--seed", 4, "--run", "a").stderr
    assert everything(done / "seed-4") == before
    assert json.loads((done / "seeds.json").read_text())["n"] == 4


def test_what_is_done_is_what_is_there(done):
    """A run that was removed is trained again; one that is not on record yet is not."""
    record = (done / "seeds.json").read_text()
    first = weights(done / "seed-4")
    shutil.rmtree(done / "seed-4")
    content = json.loads(record)
    del content["figures"]["5"]
    (done / "seeds.json").write_text(json.dumps(content))
    words = ["--seeds", 3, "--seed", 4, "--run", "a"]
    assert "2 of 3 seeds done, 1 to go" in train(*words).stderr
    assert same(weights(done / "seed-4"), first) and (done / "seeds.json").read_text() == record
    invoke("evaluate", done / "seed-4", "--num-particles", 3)
    assert train(*words).stdout and (done / "seeds.json").read_text() == record
    config = rundir.read_config(done / "seed-5")
    config["training"]["lr"] = 0.5
    rundir.write_json(done / "seed-5" / "config.json", config)
    assert "training lr is 0.5, asked for 0.001" in train(*words, code=2).stderr


def test_nothing_is_left_of_what_did_not_begin(monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(patch, 0)
        train("--seeds", 2, "--run", "b", code=130)
    np.save("half.npy", np.full((30, 3), 0.5))
    words = ["--data", "half.npy", "--likelihood", "bernoulli", "--seeds", 2, "--run", "b"]
    assert "support of Bernoulli" in train(*words, code=2).stderr
    assert {p.name for p in Path().iterdir()} == {"half.npy"}


# Refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "0.1"], "training lr is 0.001, asked for 0.1"),
        (["--hidden", "9"], "build hidden is [8], asked for [9]"),
        (["--binarize", "static"], "data binarize is 'none', asked for 'static'"),
        (["--split-seed", "1"], "data seed is 4, asked for 1"),
        (["--seeds", "2"], "it has seed 6 too"),
    ],
)
def test_a_directory_of_another_request_is_refused(done, words, message):
    before = everything(done)
    told = train("--seeds", 3, "--seed", 4, "--run", "a", *words, code=2).stderr
    assert message in told and told.startswith("Error: ") and told.count("\n") == 1
    assert everything(done) == before


def test_nonsense_is_refused(done):
    def refused(message, *words):
        before = everything(".")
        result = train(*words, code=2)
        assert message in result.stderr and result.stderr.count("\n") == 1
        assert everything(".") == before and not Path("b").exists() and result.stdout == ""

    for number in (1, 0, -3):
        refused(f"--seeds to be a whole number of at least 2; got {number}", "--seeds", number)
    refused("expected seeds to fit in 64 bits", "--seeds", 2, "--seed", 2**63 - 1)
    refused("a/seed-4, which is in use", "--seeds", 2, "--run", "a/seed-4")
    refused("expected prior to be one of", "--seeds", 2, "--prior", "x", "--run", "b")
    refused("expected epochs to be a positive", "--seeds", 2, "--epochs", 0, "--run", "b")
    assert "a, which is in use" in train("--run", "a", code=2).stderr
    (done / "seeds.json").write_text("{")
    refused("what a holds of several seeds is damaged", "--seeds", 3, "--seed", 4, "--run", "a")


@pytest.mark.parametrize("command", ["evaluate", "encode", "sample", "info", "compare", "report"])
def test_where_one_run_is_meant_several_are_refused(done, command):
    before = everything(done)
    told = invoke(command, "a", code=2).stderr
    assert told == (
        "Error: expected one run; a holds several, one a seed: name one of a/seed-4, a/seed-5, "
        "a/seed-6\n"
    )
    assert everything(done) == before
    if command in ("info", "encode"):
        invoke(command, "a/seed-5")


def test_the_options_in_a_file():
    Path("c.toml").write_text('seeds = 2\nsplit-seed = 9\nrun = "b"\n')
    train("--config", "c.toml")
    assert rundir.read_config("b/seed-1")["data"]["seed"] == 9


def test_two_seeds_at_least_for_an_error(done):
    content = json.loads((done / "seeds.json").read_text())
    one = seeds.Seeds(done, content["config"], {4: content["figures"]["4"]})
    assert set(one.se.values()) == {None} and one.mean["elbo"] == content["figures"]["4"]["elbo"]
