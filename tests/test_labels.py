"""Labels as a pair's context, by the command line; and the options of pairs and objectives."""

import json
import shlex

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from pyrovae import data, evidence, load, report
from pyrovae.cli import app
from pyrovae.evidence import inference
from pyrovae.report import gathering, repeating
from pyrovae.training import experiment, rundir, sources

QUICK = ["--epochs", 1, "--hidden", 8, "--latent-dim", 2]
CONDITIONAL = ["--pair", "conditional-vae", *QUICK]
FEW = ["--num-particles", 6]
DIGITS = data.load("digits", values="levels")
LABELS = DIGITS.labels["test"].long()


def invoke(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


@pytest.fixture(scope="module", autouse=True)
def _short_search():
    """The search for the best q has tests of its own; here a few steps of it will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "LOOKS", 2)
        patch.setattr(inference, "RATES", (1.0,))
        yield


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("pyrovae.plots.save_all", lambda *args: [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of conditional pairs: with a prior of z alone, with one given the label; and a VAE."""
    folder = tmp_path_factory.mktemp("runs")
    invoke("train", *CONDITIONAL, "--epochs", 3, "--run", folder / "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyrovae.plots.save_all", lambda *args: [])  # they take most of the time
        invoke(
            "train", *CONDITIONAL, "--prior", "conditional-normal", "--objective", "manual",
            "--objective-option", "num_particles=2", "--run", folder / "given",
        )  # fmt: skip
        invoke("train", *QUICK, "--run", folder / "vae")
    return folder


@pytest.fixture
def runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_labels_are_what_training_is_given(tmp_path, monkeypatch):
    given = []

    def stop(model, guide, train, *, validation, **options):
        given.extend([*train, *validation])
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "fit", stop)
    invoke("train", *CONDITIONAL, "--run", tmp_path / "a", code=130)
    x, c, held_out, held_c = given
    assert torch.equal(x, DIGITS.train) and torch.equal(held_out, DIGITS.validation)
    assert torch.equal(c, DIGITS.labels["train"].long())
    assert torch.equal(held_c, DIGITS.labels["validation"].long())
    given.clear()
    invoke("train", *QUICK, "--run", tmp_path / "b", code=130)
    assert len(given) == 2, "a VAE is given none"


def test_the_run_says_what_it_is_made_of(runs):
    plain, given = (rundir.read_config(run) for run in ("plain", "given"))
    assert plain["build"]["pair"] == "conditional-vae"
    assert plain["build"]["pair_options"] == {"num_classes": 10}  # as many as the digits have
    assert plain["training"]["objective_options"] == {}
    assert given["training"]["objective_options"] == {"num_particles": 2}
    assert "pair                conditional-vae" in invoke("info", "given").stdout
    assert "conditional-vae" in invoke("info").stdout
    for run in ("plain", "given"):
        command = repeating.command(rundir.read_config(run), load(run))
        assert "--pair conditional-vae" in command and "--pair-option num_classes=10" in command
    assert "--objective-option num_particles=2" in command


def test_the_same_command_trains_it_once_more(runs, tmp_path, no_pictures):
    words = shlex.split(repeating.command(rundir.read_config("given"), load("given")))
    invoke(*words[1:], "--run", tmp_path / "again")
    folders = runs / "given", tmp_path / "again"
    first, second = (load_file(path / "model.safetensors") for path in folders)
    assert set(first) == set(second) and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_figures_are_given_the_labels(runs, tmp_path, split):
    few = [*FEW, "--limit", 30]
    invoke("evaluate", "given", *few, "--split", split, "--out", tmp_path / "e.safetensors")
    found = load_file(tmp_path / "e.safetensors")["log_evidence"]
    vae, x, c = load("given"), DIGITS.split(split)[:30], DIGITS.labels[split][:30].long()
    by_hand = evidence.summarise(vae.model, vae.guide, x, c, num_particles=6, seed=0)
    torch.testing.assert_close(found, by_hand.evidence.log_evidence.double())
    other = evidence.summarise(vae.model, vae.guide, x, (c + 1) % 10, num_particles=6, seed=0)
    assert bool((other.evidence.log_evidence != found).all()), "or the test shows nothing"


def test_figures_say_that_labels_are_given(runs):
    assert "standard error; labels are given\n" in invoke("evaluate", "plain", *FEW).stdout
    assert json.loads(invoke("evaluate", "plain", *FEW, "--json").stdout)["context"] == "labels"
    assert json.loads(invoke("evaluate", "vae", *FEW, "--json").stdout)["context"] is None


def test_latents_are_given_the_labels(runs, tmp_path):
    invoke("encode", "plain", "--out", tmp_path / "z.npz", "--num-draws", 3)
    with np.load(tmp_path / "z.npz") as file:
        found = {name: torch.as_tensor(array) for name, array in file.items()}
    q = load("plain").encode(DIGITS.test, LABELS)
    torch.testing.assert_close(found["mean"], q.mean.detach())
    torch.testing.assert_close(found["sd"], q.variance.sqrt().detach())
    assert found["draws"].shape == (3, 179, 2)
    other = load("plain").encode(DIGITS.test, (LABELS + 1) % 10)
    assert not torch.allclose(found["mean"], other.mean.detach())


def test_samples_have_the_labels_in_turn(runs, tmp_path):
    invoke("sample", "given", "--n", 25, "--out", tmp_path / "x.npy", "--seed", 3)
    x = torch.as_tensor(np.load(tmp_path / "x.npy"))
    vae = load("given")
    assert torch.equal(x, vae.sample(25, torch.arange(25) % 10, seed=3))
    assert not torch.equal(x, vae.sample(25, torch.zeros(25).long(), seed=3))
    assert invoke("sample", "given", "--out", tmp_path / "x.png").stdout.endswith("x.png\n")


def test_as_many_labels_as_training_saw(monkeypatch, tmp_path, no_pictures):
    """Of three classes, samples cycle through three."""

    def three(source, *args, **options):
        found = plain(source, *args, **options)
        few = {split: labels % 3 for split, labels in found.labels.items()}
        return data.Data(**vars(found) | {"labels": few})

    plain = sources.load_source
    monkeypatch.setattr(sources, "load_source", three)
    monkeypatch.setattr(experiment, "load_source", three)
    run = tmp_path / "a"
    invoke("train", *CONDITIONAL, "--run", run)
    vae = load(run)
    assert vae.num_classes == 3
    invoke("sample", run, "--n", 7, "--out", tmp_path / "x.npy")
    x = torch.as_tensor(np.load(tmp_path / "x.npy"))
    assert torch.equal(x, vae.sample(7, torch.arange(7) % 3))
    invoke("evaluate", run, *FEW)


def gathered(run):
    """A run as a report opens it, and what it finds of it."""
    opened = gathering.open_run(run)
    found = gathering.gather(
        opened, limit=9, gap_data=2, num_particles=50, seed=0, say=lambda line: None
    )
    return opened, found


def test_pictures_and_report(runs):
    pictures = {"reconstructions.png", "samples.png", "elbo.png", "latent.png", "manifold.png"}
    assert pictures <= {path.name for path in (runs / "plain").iterdir()}
    for name in ("plain", "given"):
        opened, found = gathered(runs / name)
        sections = ("bounds", "gaps", "units", "traversal", "interpolated", "map", "copies")
        missing = [s for s in sections if isinstance(getattr(found, s), gathering.Missing)]
        assert not missing, [getattr(found, s).reason for s in missing]
        surgery = found.units.surgery
        assert isinstance(surgery, gathering.Missing) == (name == "given")
    assert "the prior depends on the context" in surgery.reason
    vae, x = opened.vae, DIGITS.test
    torch.testing.assert_close(found.reconstructed, vae.reconstruct(x[:9], LABELS[:9], seed=0))
    means = vae.encode(x[:2], LABELS[:2]).mean
    halfway = torch.lerp(*means, 2 / 5).expand(1, -1)  # the third of six, given the first's label
    torch.testing.assert_close(found.interpolated[0, 3], vae.decode(halfway, LABELS[:1]).mean[0])


def test_the_page_of_a_report(runs, monkeypatch):
    whole = report.sections
    monkeypatch.setattr(report, "sections", lambda *args: [whole(*args)[i] for i in (1, 5, 6)])
    invoke("report", "given", "--limit", 9, "--gap-data", 2, "--out", "page.html")
    page = " ".join((runs / "page.html").read_text().split())
    assert "Here: of the labels 0, 1, ... in turn." in page
    assert "The KL taken apart" in page and "the prior depends on the context" in page
    assert "--pair conditional-vae" in page and "num_particles = 2; 1 epochs" in page


def test_compare(runs):
    for run in ("plain", "given", "vae"):
        invoke("evaluate", run, *FEW)
    told = invoke("compare", "plain", "given").stdout
    assert "plain: conditional-vae of standard-normal, binomial, mean-field-normal" in told
    found = json.loads(invoke("compare", "plain", "given", "--json").stdout)
    assert {row["pair"] for row in found["rows"]} == {"conditional-vae"}
    refused = invoke("compare", "vae", "plain", code=2).stderr
    assert "plain is given labels, which tell of x, and vae is not" in refused


def test_seeds(tmp_path, no_pictures):
    told = invoke("train", *CONDITIONAL, "--seeds", 2, "--run", tmp_path / "s").stdout
    assert "2 seeds" in told
    assert rundir.read_config(tmp_path / "s/seed-1")["build"]["pair"] == "conditional-vae"


def test_a_file_of_options(tmp_path, no_pictures):
    (tmp_path / "c.toml").write_text(
        'pair = "conditional-vae"\npair-option = "num_classes=12"\nobjective = "trace"\n'
        'objective-option = ["num_particles=3"]\nepochs = 1\nhidden = [8]\n'
    )
    invoke("train", "--config", tmp_path / "c.toml", "--run", tmp_path / "a")
    config = rundir.read_config(tmp_path / "a")
    assert load(tmp_path / "a").num_classes == 12
    assert config["training"]["objective_options"] == {"num_particles": 3}


REFUSED = {
    "unknown pair": (["--pair", "vea"], "expected pair to be one of "),
    "no labels": (
        ["--pair", "conditional-vae", "--data", "t.npy", "--likelihood", "normal"],
        "expected data with labels, which are the context of pair conditional-vae; t has none: "
        "name data that have, such as digits or mnist, or a pair without context, such as vae",
    ),
    "no context": (
        ["--pair", "conditional-vae", "--pair-option", "context_dim=3"],
        "expected real numbers (N, 3) as context; got none",
    ),
    "too few classes": (
        ["--pair", "conditional-vae", "--pair-option", "num_classes=9"], "labels from 0 to 8; got 9"
    ),
    "pair's option": (["--pair-option", "k=1"], "options of pair VAE among (none); got 'k'"),
    "its type": (
        ["--pair", "conditional-vae", "--pair-option", "num_classes=x"], "num_classes to be of type"
    ),
    "objective's option": (["--objective-option", "k=1"], "options of objective trace-mean-field"),
    "no key": (["--objective-option", "k"], "--objective-option key=value; got 'k'"),
    "no particle": (
        ["--objective-option", "num_particles=0"], "num_particles to be a positive whole number"
    ),
    "no number": (["--objective-option", "num_particles=x"], "num_particles to be a positive"),
    "manual's kl": (
        ["--objective", "manual", "--objective-option", "kl=x"], "kl to be 'analytic' or 'sampled'"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_nonsense_is_refused_in_one_message(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    np.save("t.npy", np.random.default_rng(0).normal(size=(40, 3)))
    result = invoke("train", *words, *QUICK, "--run", "a", code=2)
    assert message.lower() in " ".join(result.stderr.split()).lower()
    assert "Traceback" not in result.stderr and not (tmp_path / "a").exists()


@pytest.mark.parametrize("command", ["evaluate", "encode"])
def test_new_data_have_no_labels(runs, tmp_path, command):
    np.save(tmp_path / "x.npy", DIGITS.test[:5].numpy().astype(np.uint8))
    refused = invoke(command, "plain", "--data", tmp_path / "x.npy", code=2).stderr
    assert "whose labels are the context of pair conditional-vae" in refused
    assert "x.npy, and files hold none: leave --data out" in refused
    invoke(command, "vae", "--data", tmp_path / "x.npy")
