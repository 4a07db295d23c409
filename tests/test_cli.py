"""The command line, in process; two commands as a subprocess."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from pyrovae import load
from pyrovae.cli import app

QUICK = ["--epochs", "2", "--hidden", "16"]
PICTURES = {"reconstructions.png", "samples.png", "elbo.png", "latent.png"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Invoke the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def invoke(*words, code=0):
        result = CliRunner().invoke(app, [str(w) for w in words])
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    return invoke


def test_train_evaluate_sample_info(run, tmp_path):
    result = run("train", *QUICK, "--latent-dim", 2)
    assert "runs/digits-1" in result.stderr and "ELBO" in result.stdout
    folder = tmp_path / "runs" / "digits-1"
    names = {p.name for p in folder.iterdir()}
    files = {"config.json", "model.safetensors", "history.csv", "metrics.json"}
    assert names == files | PICTURES | {"manifold.png", "evaluation.safetensors", "checkpoints"}
    config = json.loads((folder / "config.json").read_text())
    assert config["build"]["likelihood"] == "binomial"
    assert config["build"]["likelihood_options"] == {"total_count": 16}
    assert config["record"]["sizes"]["train"] == 1439

    result = run("evaluate", folder, "--json", "--num-particles", 20, "--limit", 30)
    figures = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    keys = "elbo elbo_se kl reconstruction log_evidence log_evidence_se num_particles n"
    assert set(keys.split()) < set(figures)
    assert (figures["num_particles"], figures["n"]) == (20, 30)
    assert figures["elbo"] == pytest.approx(figures["reconstruction"] - figures["kl"], rel=1e-5)
    assert figures["elbo"] < figures["log_evidence"]
    bits = -figures["log_evidence"] / (64 * np.log(2))
    assert figures["bits_per_dim"] == pytest.approx(bits)
    each = load_file(folder / "evaluation.safetensors")
    elbo = each["elbo"].double()
    assert figures["elbo"] == pytest.approx(elbo.mean().item())
    assert figures["elbo_se"] == pytest.approx(elbo.std().item() / 30**0.5)
    assert "+-" in run("evaluate", folder, "--num-particles", 5, "--split", "validation").stdout

    assert run("sample", folder, "--n", 5).stdout.strip() == str(folder / "samples.png")
    run("sample", folder, "--out", tmp_path / "x.npy", "--n", 5)
    x = np.load(tmp_path / "x.npy")
    assert x.shape == (5, 8, 8) and x.max() <= 16 and (x == x.round()).all()
    assert torch.equal(load(folder).sample(5), torch.as_tensor(x))

    assert "latent_dim" in run("info", folder).stdout
    assert "vamp-prior" in run("info").stdout

    run("train", *QUICK)
    assert (tmp_path / "runs" / "digits-2").is_dir()


def test_train_by_name(run, tmp_path):
    run(
        "train", *QUICK, "--binarize", "dynamic", "--prior", "VampPrior", "--posterior",
        "full_rank_normal", "--net", "gated-mlp", "--objective", "trace", "--prior-option",
        "num-components=7", "--run", "a", "--seed", 3, "--validation", 0,
    )  # fmt: skip
    vae = load("a")
    assert vae.prior.pseudo_inputs.shape == (7, 8, 8)
    assert type(vae.likelihood).__name__ == "Bernoulli"
    run("evaluate", "a", "--num-particles", 3)


def test_what_the_options_reach(run, monkeypatch):
    from pyrovae import data
    from pyrovae.training import experiment

    given = {}

    def fit(*args, **options):
        given.update(options)
        return plain(*args, **options)

    plain = experiment.fit
    monkeypatch.setattr(experiment, "fit", fit)
    run(
        "train",
        "--epochs",
        1,
        "--hidden",
        8,
        "--lr",
        "1e-12",
        "--binarize",
        "dynamic",
        "--run",
        "a",
    )
    assert given["transform"] is data.binarize
    mean = data.load("digits").train.mean(0).clamp(1e-3, 1 - 1e-3)
    bias = load("a").likelihood.net.output.bias.detach().reshape(8, 8)
    torch.testing.assert_close(bias, mean.logit(), atol=1e-4, rtol=0)

    def figures(*words):
        return json.loads(run("evaluate", "a", "--json", "--num-particles", 2, *words).stdout)

    test, other = figures(), figures("--seed", 1)
    assert test["elbo"] != other["elbo"]
    assert (figures("--split", "validation")["elbo"], figures("--split", "train")["n"]) != (
        test["elbo"], test["n"],
    )  # fmt: skip
    run("sample", "a", "--out", "0.npy")
    run("sample", "a", "--out", "1.npy", "--seed", 1)
    assert not np.array_equal(np.load("0.npy"), np.load("1.npy"))


def test_a_run_is_evaluated_from_another_folder(run, tmp_path, monkeypatch):
    np.save(tmp_path / "t.npy", np.random.default_rng(0).normal(size=(10, 4)))
    run("train", *QUICK, "--data", "t.npy", "--likelihood", "normal", "--run", "a")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    run("evaluate", "../a", "--num-particles", 3)


def test_chunks_of_the_test_data_share_no_noise(run):
    run("train", "--epochs", 1, "--hidden", 8, "--lr", "1e-12", "--run", "a")
    run("evaluate", "a", "--num-particles", 1)
    kl = load_file("a/evaluation.safetensors")["kl"]
    assert abs(torch.corrcoef(torch.stack([kl[:79], kl[100:179]]))[0, 1]) < 0.4  # 3.5 sd of 0


def test_densities_have_no_bits_per_dim(run):
    run(
        "train", *QUICK, "--likelihood", "normal", "--likelihood-option", "variance=fixed:0.2",
        "--run", "a",
    )  # fmt: skip
    result = run("evaluate", "a", "--json", "--num-particles", 3)
    assert json.loads(result.stdout)["bits_per_dim"] is None
    assert "bits_per_dim is null: Normal is a density" in result.stderr


def test_a_table(run, tmp_path):
    np.save(tmp_path / "t.npy", np.random.default_rng(0).normal(size=(60, 3)))
    run("train", *QUICK, "--data", "t.npy", "--likelihood", "normal", "--latent-dim", 1)
    assert PICTURES <= {p.name for p in (tmp_path / "runs" / "t-1").iterdir()}


def test_config_file(run, tmp_path):
    (tmp_path / "c.toml").write_text('epochs = 1\nhidden = [12, 8]\nlatent-dim = 3\nrun = "a"\n')
    run("train", "--config", "c.toml", "--latent-dim", 2)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["training"]["epochs"] == 1
    assert (config["build"]["hidden"], config["build"]["latent_dim"]) == ([12, 8], 2)


def write_files(folder):
    np.save(folder / "grey.npy", np.linspace(0, 1, 40).reshape(10, 4))
    np.save(folder / "nan.npy", np.full((10, 4), np.nan))
    np.save(folder / "empty.npy", np.zeros((0, 4)))
    np.save(folder / "flat.npy", np.zeros(10))
    (folder / "text.npy").write_text("no array")
    (folder / "bad.toml").write_text("epochs = ")
    (folder / "unknown.toml").write_text("epoch = 3")
    (folder / "used").mkdir()
    (folder / "used" / "file").write_text("precious")


NONSENSE = {
    "unknown prior": (["--prior", "normall"], "expected prior to be one of"),
    "unknown likelihood": (["--likelihood", "x"], "expected likelihood to be one of"),
    "unknown posterior": (["--posterior", "x"], "expected posterior to be one of"),
    "unknown objective": (["--objective", "x"], "expected objective to be one of"),
    "unknown net": (["--net", "x"], "expected net to be one of"),
    "unknown data": (["--data", "minst"], "data to be one of digits"),
    "unknown option": (["--prior-option", "k=1"], "options of prior standard-normal"),
    "no key": (["--prior-option", "k"], "--prior-option key=value; got 'k'"),
    "no such file": (["--data", "none.npy"], "file of data at none.npy; there is none"),
    "no array": (["--data", "text.npy"], "text.npy; it cannot be read"),
    "grey pixels": (["--data", "grey.npy", "--likelihood", "bernoulli"], "binarise them"),
    "nan": (["--data", "nan.npy", "--likelihood", "normal"], "nan.npy; got 40 that are not"),
    "no rows": (["--data", "empty.npy", "--likelihood", "normal"], "at least one row"),
    "wrong shape": (["--data", "flat.npy", "--likelihood", "normal"], "row a datum"),
    "no likelihood": (["--data", "grey.npy"], "name one with --likelihood"),
    "latent_dim 0": (["--latent-dim", "0"], "latent_dim to be a positive whole number; got 0"),
    "lr -1": (["--lr", "-1"], "lr to be positive and finite; got -1"),
    "epochs -3": (["--epochs", "-3"], "epochs to be a positive whole number; got -3"),
    "epochs x": (["--epochs", "x"], "--epochs"),
    "batch size 0": (["--batch-size", "0"], "batch_size to be a positive"),
    "levels": (["--binarize", "static", "--likelihood", "binomial"], "a likelihood such as bern"),
    "type": (["--likelihood-option", "total_count=x"], "total_count to be of type int; got 'x'"),
    "seed": (["--seed", "9" * 25], "seed to fit in 64 bits"),
    "hidden": (["--hidden", "a,b"], "--hidden to be whole numbers"),
    "hidden 0": (["--hidden", "0"], "hidden to hold positive whole numbers"),
    "device": (["--device", "warp"], "--device to name a device"),
    "run in use": (["--run", "used"], "used, which is in use: name another"),
    "run is a file": (["--run", "grey.npy"], "grey.npy, which is a file"),
    "validation": (["--validation", "99999"], "validation to be between 0"),
    "bad toml": (["--config", "bad.toml"], "expected TOML in bad.toml"),
    "no toml": (["--config", "none.toml"], "TOML file at none.toml; there is none"),
    "unknown key": (["--config", "unknown.toml"], "options of train"),
    "absent": (["--data", "fashion-mnist", "--data-dir", "."], "--download"),
    "unknown flag": (["--epoch", "3"], "--epoch"),
}


@pytest.mark.parametrize(("words", "message"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused_in_one_message(run, tmp_path, words, message):
    write_files(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = run("train", *words, code=2)
    told = " ".join(result.stderr.replace("│", " ").split())
    assert message in told
    assert "Traceback" not in result.stderr and result.stdout == ""
    after = [p for p in sorted(tmp_path.rglob("*")) if p != tmp_path / "runs"]
    assert after == before, "nothing is made of a wrong request"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "none"], "run directory with config.json; none has none"),
        (["sample", "none"], "run directory with config.json"),
        (["info", "none"], "run directory with config.json"),
        (["evaluate", "a", "--split", "x"], "split to be one of train, validation, test"),
        (["evaluate", "a", "--num-particles", "0"], "num_particles to be a positive"),
        (["evaluate", "a", "--limit", "0"], "limit to be a positive whole number"),
        (
            ["evaluate", "a", "--evidence", "x"],
            "evidence to be one of ais, enumeration, exact, iwae, linear-gaussian, quadrature; g",
        ),
        (["sample", "a", "--n", "0"], "--n to be a positive whole number"),
        (["sample", "a", "--out", "x.gif"], "--out to end in .png or .npy"),
        (["sample", "a", "--out", "no/x.png"], "there is no 'no'"),
    ],
)
def test_nonsense_about_runs(run, words, message):
    if "a" in words:
        run("train", *QUICK, "--epochs", 1, "--run", "a")
    result = run(*words, code=2)
    assert message in result.stderr and "Traceback" not in result.stderr


def test_changed_data_and_damaged_runs_are_refused(run, tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3))
    np.save(tmp_path / "t.npy", x)
    run("train", *QUICK, "--data", "t.npy", "--likelihood", "normal", "--run", "a")
    np.save(tmp_path / "t.npy", x + 1)
    assert "has changed since" in run("evaluate", "a", code=2).stderr
    np.save(tmp_path / "t.npy", x)
    run("evaluate", "a", "--num-particles", 3)
    (tmp_path / "a" / "model.safetensors").write_bytes(b"x")
    assert "is damaged" in run("evaluate", "a", code=2).stderr
    (tmp_path / "a" / "metrics.json").write_text("{")
    assert "is damaged" in run("info", "a", code=2).stderr


def test_a_failure_exits_1_and_an_interrupt_130(run, tmp_path, monkeypatch):
    for name, words in {"a": ["--lr", "1e9"], "b": ["--lr", "1e3", "--batch-size", 5000]}.items():
        words = [*QUICK, "--epochs", 30, "--likelihood", "normal", *words]
        result = run("train", *words, "--run", name, code=1)
        assert "try a lower lr" in result.stderr and not (tmp_path / name / "lock").exists()
    from pyrovae.training import experiment

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "fit", stop)
    assert "interrupted" in run("train", "--run", "c", code=130).stderr
    assert not (tmp_path / "c").exists()


def test_as_a_program(tmp_path):
    help_text = subprocess.run(
        [sys.executable, "-m", "pyrovae", "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert help_text.returncode == 0
    assert all(name in help_text.stdout for name in ("train", "evaluate", "sample", "info"))
    wrong = subprocess.run(
        [sys.executable, "-m", "pyrovae", "train", "--prior", "x"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert wrong.returncode == 2 and wrong.stderr.startswith("Error: expected prior")
    assert len(wrong.stderr.strip().splitlines()) == 1


PAIR = """
import pyro, pyro.distributions as dist, torch
from pyrovae import build
vae = build(data_shape=(8, 8), latent_dim=2, hidden=(8,))

def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", vae.likelihood(z), obs=x)

def narrow(x):
    with pyro.plate("data", len(x)):
        q = vae.posterior(x)
        with pyro.poutine.scale(scale=0.1):
            pyro.sample("z", q)
"""


def test_check(run, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # another test's
    (tmp_path / "mine.py").write_text(PAIR)
    words = ["--data", "digits", "--binarize", "threshold"]
    good = run("check", "mine:vae.model", "mine:vae.guide", *words)
    assert "Trace_ELBO" in good.stdout and "FAILS" not in good.stdout
    broken = run("check", "mine.py:model", "mine.py:narrow", *words, code=1)
    told = " ".join(broken.stdout.split())
    assert "site 'z': TraceMeanField uses the guide's scale 0.1, the model's is 1.0" in told
    for names, message in [
        (("mine", "mine:narrow"), "expected MODULE:NAME"),
        (("yours:model", "mine:narrow"), "No module named 'yours'"),
        (("mine:modle", "mine:narrow"), "expected modle in mine"),
    ]:
        assert message in run("check", *names, *words, code=2).stderr


def test_annealed_evidence_of_a_run(run):
    """Beside quadrature: within 4.5 standard errors of each datum."""
    run("train", "--latent-dim", 1, "--epochs", 1, "--hidden", 20, "--run", "a")
    words = ["evaluate", "a", "--limit", 2, "--num-particles", 50, "--evidence"]
    found = run(*words, "ais")
    assert "log p(x), by ais" in found.stdout and "largest standard error" in found.stdout
    assert "ais: 2 data x 16 chains x 100 temperatures" in found.stderr
    figures = json.loads(Path("a/metrics.json").read_text())
    assert figures["method"] == "ais" and figures["importance_z"] is None
    by_annealing = load_file("a/evaluation.safetensors")
    run(*words, "quadrature")
    exact = load_file("a/evaluation.safetensors")["log_evidence"]
    off = (by_annealing["log_evidence"] - exact).abs()
    assert bool((off < 4.5 * by_annealing["error"]).all())
    assert by_annealing["error"].max() < 1


def test_exact_evidence_of_a_run(run):
    run("train", *QUICK, "--latent-dim", 1, "--net-option", "activation=tanh", "--run", "a")
    words = ["evaluate", "a", "--evidence", "quadrature", "--limit", 5, "--num-particles", 200]
    assert "by quadrature" in run(*words).stdout
    figures = json.loads(run(*words, "--json").stdout)
    assert figures["method"] == "quadrature" and figures["log_evidence_error"] < 1e-6
    assert figures["elbo"] < figures["log_evidence"]
    assert figures["importance_log_evidence"] < figures["log_evidence"] + 1
    assert 0 <= figures["khat_below_half"] <= 5
    each = load_file("a/evaluation.safetensors")
    assert {"khat", "error", "importance_log_evidence"} <= set(each)
    refused = run("evaluate", "a", "--evidence", "linear-gaussian", "--limit", 2, code=2)
    assert "concave quadratic" in refused.stderr
