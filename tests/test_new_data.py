"""New data that a user hands to a run: encoded and evaluated as the run's own are."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from pyrovae import data, load, plots
from pyrovae.cli import app
from pyrovae.diagnostics import latent_means
from pyrovae.training import encoding, evaluation, sources

QUICK = ["--epochs", 1, "--hidden", 8, "--latent-dim", 2]
FEW = ["--num-particles", 6, "--json"]
TABLE = ["--data", "t.csv", "--likelihood", "normal"]
COLUMNS = ["height", "weight", "age"]


def invoke(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def read(path):
    """The arrays of an archive, which is closed again."""
    with np.load(path) as file:
        return dict(file)


def table(seed=1234, n=60):
    x = np.random.default_rng(seed).normal(size=(n, 3))
    x[:, 1] += x[:, 0]
    return x.round(3) * [10.0, 0.1, 1.0] + [170.0, 0.0, 40.0]


RUNS = {
    "digits": [],
    "unit": ["--likelihood", "normal"],
    "dynamic": ["--binarize", "dynamic"],
    "static": ["--binarize", "static"],
    "threshold": ["--binarize", "threshold"],
    "dequantized": ["--likelihood", "normal", "--dequantize"],
    "masked": ["--data", "holes.npy", "--likelihood", "masked:normal"],
    "table": TABLE,
    "counts": ["--data", "counts.npy", "--likelihood", "poisson"],
    "bytes": ["--data", "bytes.npy", "--likelihood", "normal"],
    "curve": ["--latent-dim", 1, "--net-option", "activation=tanh"],
    "flow": ["--posterior", "flow-posterior"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of all kinds of data, by the name that they have in RUNS."""
    where = tmp_path_factory.mktemp("runs")
    generator = np.random.default_rng(99)
    pd.DataFrame(table(), columns=COLUMNS).to_csv(where / "t.csv", index=False)
    holes = generator.normal(size=(60, 3))
    holes[generator.random(holes.shape) < 0.2] = np.nan
    np.save(where / "holes.npy", holes)
    np.save(where / "counts.npy", generator.poisson(2.0, size=(60, 3)))
    np.save(where / "bytes.npy", generator.integers(0, 256, size=(60, 3)).astype(np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setattr(plots, "save_all", lambda *args: [])
        for name, words in RUNS.items():
            invoke("train", *QUICK, *words, "--run", name)
    return where


@pytest.fixture(autouse=True)
def here(folder, tmp_path, monkeypatch):
    """Work in a folder of the test's own, and draw no pictures: they take longer than training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "save_all", lambda *args: [])


def raw_test(run):
    """The test split as it is on disk: before it is scaled, binarised or given noise."""
    source = json.loads((run / "config.json").read_text())["data"]
    keys = ("source", "missing", "seed")
    return data.load(**{k: source[k] for k in keys}, values="levels", dtype=torch.float64).test


# Evaluated


@pytest.mark.parametrize("name", RUNS)
def test_the_test_data_as_new_data_have_the_figures_of_the_run(folder, name):
    run = folder / name
    x = raw_test(run).numpy()
    np.save("new.npy", x)
    own = json.loads(invoke("evaluate", run, *FEW).stdout)
    kept = {p: p.read_bytes() for p in run.iterdir() if p.is_file()}
    words = ["evaluate", run, "--data", "new.npy", *FEW]
    result = invoke(*words, "--out", "each.safetensors")
    new = json.loads(result.stdout)
    assert (new.pop("data"), own.pop("split")) == ("new.npy", "test")
    assert new == own and result.stdout.count("\n") == 1
    found = {p: p.read_bytes() for p in run.iterdir() if p.is_file()}
    assert found == kept, "the run's figures are its own"
    mine, its = load_file("each.safetensors"), load_file(run / "evaluation.safetensors")
    assert set(mine) == set(its) and all(torch.equal(mine[k], its[k]) for k in its)
    x[0] = x[1]
    np.save("new.npy", x)
    other = json.loads(invoke(*words).stdout)
    assert other["elbo"] != own["elbo"] and other["sha256"] != own["sha256"]


def test_what_is_printed_names_the_file(folder):
    np.save("new.npy", raw_test(folder / "table"))
    told = invoke("evaluate", folder / "table", "--data", "new.npy", "--num-particles", 5).stdout
    first = told.splitlines()[0]
    assert first == "new.npy, 6 data; nats per datum, +- standard error, x in original units"
    few = invoke("evaluate", folder / "table", "--data", "new.npy", "--limit", 2).stdout
    assert few.startswith("new.npy, 2 data; ")


def test_images_may_be_flat_rows(folder):
    images = raw_test(folder / "digits")
    np.save("new.npy", images)
    rows = pd.DataFrame(images.flatten(1).numpy().astype(int)).add_prefix("pixel ")
    rows.to_csv("flat.csv", index=False)
    own, flat = (
        json.loads(invoke("evaluate", folder / "digits", "--data", name, *FEW).stdout)
        for name in ("new.npy", "flat.csv")
    )
    assert (own.pop("data"), flat.pop("data")) == ("new.npy", "flat.csv") and own == flat


def test_exact_evidence_of_new_data(folder):
    np.save("new.npy", raw_test(folder / "curve")[:3])
    words = ["evaluate", folder / "curve", "--evidence", "exact", "--num-particles", 30, "--json"]
    new = json.loads(invoke(*words, "--data", "new.npy").stdout)
    own = json.loads(invoke(*words, "--limit", 3).stdout)
    assert new["method"] == "quadrature" and new["log_evidence"] == own["log_evidence"]


def test_densities_are_of_original_units(folder):
    """In other units log p(x) is that of the run's, less log |dx'/dx|."""
    factors = np.array([1000.0, 1e-3, 3.0])
    pd.DataFrame(table() * factors, columns=COLUMNS).to_csv("t.csv", index=False)
    invoke("train", *QUICK, *TABLE, "--run", "other")
    new = table(77, 20)
    np.save("new.npy", new)
    np.save("scaled.npy", new * factors)
    for seed in (0, 3):
        words = ["--num-particles", 6, "--seed", seed, "--json"]
        plain = json.loads(invoke("evaluate", folder / "table", "--data", "new.npy", *words).stdout)
        scaled = json.loads(invoke("evaluate", "other", "--data", "scaled.npy", *words).stdout)
        jacobian = math.log(factors.prod())
        for key in ("elbo", "log_evidence", "reconstruction"):
            assert scaled[key] == pytest.approx(plain[key] - jacobian, abs=1e-4)
            assert abs(scaled[key] - plain[key]) > 1  # the check would see a Jacobian left out


# Encoded


def test_the_latents_of_new_data(folder, monkeypatch):
    vae, x = load(folder / "digits"), raw_test(folder / "digits")
    np.save("new.npy", x)
    result = invoke("encode", folder / "digits", "--data", "new.npy", "--num-draws", 400)
    path = folder / "digits" / "encoded.npz"
    assert result.stdout == f"{path}\n" and "draws (400, 179, 2)" in result.stderr
    found = read(path)
    with torch.no_grad():
        q = vae.encode(x)
    np.testing.assert_allclose(found["mean"], q.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["sd"], q.variance.sqrt(), rtol=1e-5)
    z = (found["draws"].mean(0) - found["mean"]) / (found["sd"] / 20)
    assert np.abs(z).max() < 5  # of 358 numbers: p = 2e-4
    assert np.abs(z + 20 / 3).max() > 5  # it would see draws off by a third of an sd
    spread = found["draws"].std(0, ddof=1) / found["sd"]
    assert np.abs(spread - 1).max() < 5 / math.sqrt(2 * 399)
    invoke("encode", folder / "digits", "--out", "own.npz")
    assert np.array_equal(read("own.npz")["mean"], found["mean"])
    assert set(read("own.npz")) == {"mean", "sd"}
    monkeypatch.setattr(encoding, "CHUNK", 50)
    invoke("encode", folder / "digits", "--num-draws", 2, "--out", "chunks.npz")
    chunks = read("chunks.npz")
    np.testing.assert_allclose(chunks["mean"], found["mean"], rtol=1e-5, atol=1e-6)
    noise = (chunks["draws"] - chunks["mean"]) / chunks["sd"]
    assert not np.allclose(noise[:, :50], noise[:, 50:100]), "chunks share no noise"


def test_every_kind_of_file_holds_the_same(folder):
    np.save("new.npy", raw_test(folder / "digits")[:5])
    words = ["encode", folder / "digits", "--data", "new.npy"]
    for more in ([], ["--num-draws", 3]):
        for kind in ("npz", "npy", "csv", "parquet"):
            assert invoke(*words, *more, "--out", f"e.{kind}").stdout == f"e.{kind}\n"
        found, alone = read("e.npz"), np.load("e.npy")
        for t in (pd.read_csv("e.csv"), pd.read_parquet("e.parquet")):
            if more:
                assert list(t) == ["datum", "draw", "z_0", "z_1"] and len(t) == 15
                assert np.array_equal(alone, found["draws"])
                z = found["draws"][t["draw"], t["datum"]]
                np.testing.assert_allclose(t[["z_0", "z_1"]], z, rtol=1e-6)
            else:
                assert list(t) == ["z_0", "z_1", "sd_0", "sd_1"]
                assert np.array_equal(alone, found["mean"])
                both = np.hstack([found["mean"], found["sd"]])
                np.testing.assert_allclose(t, both, rtol=1e-6)


def test_the_seed_is_of_the_draws(folder):
    draws = []
    for seed in (0, 0, 1):
        words = ["--num-draws", 2, "--seed", seed, "--out", "e.npy"]
        invoke("encode", folder / "digits", "--split", "validation", *words)
        draws.append(np.load("e.npy"))
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])


def test_a_flow_has_no_sd_and_its_mean_is_of_draws(folder):
    vae, x = load(folder / "flow"), raw_test(folder / "flow")[:20]
    np.save("new.npy", x)
    words = ["--data", "new.npy", "--num-draws", 200, "--out", "e.npz"]
    invoke("encode", folder / "flow", *words)
    found = read("e.npz")
    assert set(found) == {"mean", "draws"}
    mean = latent_means(vae.model, vae.guide, x, num_draws=300, seed=5)
    error = found["draws"].std(0, ddof=1) * math.sqrt(1 / 100 + 1 / 300)
    assert np.abs((found["mean"] - mean.numpy()) / error).max() < 5  # of 40 numbers: p = 2e-5


def test_the_latents_do_not_depend_on_units(folder):
    factors, shift = np.array([3.0, 0.5, 1.1]), np.array([5.0, -2.0, 0.0])
    pd.DataFrame(table() * factors + shift, columns=COLUMNS).to_csv("t.csv", index=False)
    invoke("train", *QUICK, *TABLE, "--run", "other")
    np.save("new.npy", table(77, 20))
    np.save("scaled.npy", table(77, 20) * factors + shift)

    def latents(run, file):
        invoke("encode", run, "--data", file, "--out", "e.npy")
        return np.load("e.npy")

    plain = latents(folder / "table", "new.npy")
    np.testing.assert_allclose(latents("other", "scaled.npy"), plain, atol=1e-4)
    assert np.abs(latents("other", "new.npy") - plain).max() > 0.1


@pytest.mark.parametrize("name", ["table", "bytes", "unit", "masked"])
def test_nothing_is_learnt_from_the_new_data(folder, name):
    """A row is encoded alone as it is among others: loc, scale and levels are the run's."""
    x = raw_test(folder / name).numpy()
    np.save("all.npy", x)
    np.save("one.npy", x[2:3])
    for file in ("all", "one"):
        invoke("encode", folder / name, "--data", f"{file}.npy", "--out", f"{file}_z.npy")
    alone, among = np.load("one_z.npy"), np.load("all_z.npy")
    np.testing.assert_allclose(alone, among[2:3], rtol=1e-5, atol=1e-6)
    assert np.abs(alone - among[3:4]).max() > 1e-4


def test_bytes_that_are_small_are_levels_of_the_run(folder):
    """A file of 0 and 1 by itself would be two levels, and be scaled as such."""
    x = torch.tensor([[0, 1, 255], [1, 1, 0]])
    for dtype in (np.uint8, np.float32):
        np.save("new.npy", x.numpy().astype(dtype))
        loaded = sources.load_new(folder / "bytes", Path("new.npy"))
        torch.testing.assert_close(loaded.test, x.double() / 255, atol=0, rtol=0)
    np.save("new.npy", np.array([[0, 1, 1], [1, 1, 0]]))
    loaded = sources.load_new(folder / "counts", Path("new.npy"))
    assert loaded.test.tolist() == [[0, 1, 1], [1, 1, 0]]


def test_an_archive_of_splits_is_taken_whole(folder):
    x = table(5, 9)
    np.save("new.npy", x)
    np.savez("new.npz", test=x[6:], train=x[:4], validation=x[4:6])
    for file in ("new.npy", "new.npz"):
        invoke("encode", folder / "table", "--data", file, "--out", f"{file}.npz")
    assert np.array_equal(read("new.npy.npz")["mean"], read("new.npz.npz")["mean"])


# Columns


def test_columns_are_taken_by_name(folder):
    frame = pd.DataFrame(table(3, 9), columns=COLUMNS)
    frame.to_csv("plain.csv", index=False)
    frame[COLUMNS[::-1]].to_csv("turned.csv", index=False)
    frame[COLUMNS[::-1]].to_parquet("turned.parquet")
    frame[COLUMNS[::-1]].to_csv("nameless.csv", index=False, header=False)
    found = {}
    for file in ("plain.csv", "turned.csv", "turned.parquet", "nameless.csv"):
        invoke("encode", folder / "table", "--data", file, "--out", "e.npy")
        found[file] = np.load("e.npy")
    plain = found["plain.csv"]
    assert np.array_equal(found["turned.csv"], plain)
    np.testing.assert_allclose(found["turned.parquet"], plain, atol=1e-6)
    assert np.abs(found["nameless.csv"] - plain).max() > 0.01, "without names, by place"


def test_a_run_with_no_names_takes_any(folder):
    pd.DataFrame(np.ones((3, 3), int), columns=["a", "b", "c"]).to_csv("new.csv", index=False)
    invoke("encode", folder / "counts", "--data", "new.csv", "--out", "e.npy")


def test_a_run_of_an_older_version(folder, tmp_path):
    """Neither levels nor columns are on record: the former are seen from the run's data."""
    for name in ("dynamic", "table"):
        config = json.loads((folder / name / "config.json").read_text())
        assert config["record"].pop("levels") == {"dynamic": 17, "table": None}[name]
        assert config["record"].pop("columns") == {"dynamic": None, "table": COLUMNS}[name]
        del config["sha256"]
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        weights = (folder / name / "model.safetensors").read_bytes()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        np.save("new.npy", raw_test(folder / name))
        for run in (folder / name, tmp_path / name):
            invoke("encode", run, "--data", "new.npy", "--out", f"{run.parent == folder}.npy")
        assert np.array_equal(np.load("True.npy"), np.load("False.npy"))


# Refused


def csv(columns, rows=4):
    return pd.DataFrame(np.ones((rows, len(columns))), columns=columns).to_csv(index=False)


BAD = {  # run, file, what it holds, what is said
    "off the support": ("counts", "x.npy", np.full((4, 3), 0.5), "on the support of Poisson"),
    "negative": ("counts", "x.npy", np.array([[1, 2, 3], [0, -1, 2]]), "at index (1, 1)"),
    "no levels": ("digits", "x.npy", np.full((4, 8, 8), 0.5), "whole numbers 0, ..., 16 in x.npy"),
    "too high": ("dynamic", "x.npy", np.full((4, 8, 8), 17), "256 that are not, the first 17"),
    "scaled": ("unit", "x.npy", np.eye(8)[None], "got 0 and 1 alone, as if scaled already"),
    "shape": ("digits", "x.npy", np.ones((4, 7, 8)), "expected data (N, 8, 8), as those of"),
    "flat": ("digits", "x.npy", np.ones(64), "array (N, ...) with a row a datum in x.npy"),
    "missing": ("table", "x.npy", np.full((4, 3), np.nan), "got 12 that are not, the first nan"),
    "infinite": ("masked", "x.npy", np.full((4, 3), np.inf), "the first inf at index (0, 0)"),
    "beyond float32": ("table", "x.npy", np.full((4, 3), 1e300), "expected x to be finite"),
    "no rows": ("table", "x.npy", np.ones((0, 3)), "expected at least one row in x.npy"),
    "header alone": ("table", "x.csv", csv(COLUMNS, rows=0), "it has the names of columns alone"),
    "nothing": ("table", "x.csv", "", "x.csv; it cannot be read"),
    "no array": ("table", "x.npy", "text", "x.npy; it cannot be read"),
    "other columns": (
        "table", "x.csv", csv(["height", "mass", "id", "age"]),
        "x.csv: height, weight, age; missing: weight; unknown: mass, id",
    ),
    "a column of words": ("table", "x.csv", "height,weight,age,name\n1,2,3,Ada\n", "unknown: name"),
    "a column too few": ("table", "x.csv", csv(COLUMNS[:2]), "missing: age; unknown: none"),
    "no such file": ("table", "none.npy", None, "file of data at none.npy; there is none"),
    "a name": ("table", "digits", None, "expected a file of new data, .csv, .npy, .npz, .parquet"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["encode", "evaluate"])
@pytest.mark.parametrize(("run", "file", "content", "message"), BAD.values(), ids=BAD)
def test_bad_data_are_refused_in_one_message(
    folder, tmp_path, command, run, file, content, message
):
    if isinstance(content, str):
        (tmp_path / file).write_text(content)
    elif content is not None:
        np.save(file, content)
    before = {
        p: p.read_bytes() for top in (tmp_path, folder) for p in top.rglob("*") if p.is_file()
    }
    out = "e.npz" if command == "encode" else "e.safetensors"
    for more in ([], ["--out", out]):
        result = invoke(command, folder / run, "--data", file, *more, code=2)
        assert message in result.stderr and result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1 and result.stdout == ""
    after = {p: p.read_bytes() for top in (tmp_path, folder) for p in top.rglob("*") if p.is_file()}
    assert after == before, "nothing is written"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encode", "--split", "test", "--data", "x.npy"], "got both, test and x.npy"),
        (["evaluate", "--split", "train", "--data", "x.npy"], "got both, train and x.npy"),
        (["encode", "--out", "x.txt"], "--out (out=) to be a file .npz, .npy, .csv, .parquet"),
        (["encode", "--out", "no/x.npz"], "in a folder that exists; got 'no/x.npz'"),
        (["evaluate", "--out", "x.npz"], "--out (out=) to be a .safetensors file"),
        (["evaluate", "--out", "no/x.safetensors"], "in a folder that exists"),
        (["encode", "--num-draws", "0"], "num_draws to be a positive whole number; got 0"),
        (["encode", "--split", "x"], "split to be one of train, validation, test"),
    ],
)
def test_nonsense_is_refused(folder, tmp_path, words, message):
    result = invoke(words[0], folder / "table", *words[1:], code=2)
    assert message in result.stderr and not any(tmp_path.iterdir())


def test_a_run_that_names_no_data(folder, tmp_path):
    config = json.loads((folder / "table" / "config.json").read_text())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text(json.dumps({"build": config["build"]}))
    weights = (folder / "table" / "model.safetensors").read_bytes()
    (tmp_path / "a" / "model.safetensors").write_bytes(weights)
    np.save("new.npy", table())
    assert "to name the data" in invoke("encode", "a", "--data", "new.npy", code=2).stderr


def test_the_library_says_what_the_command_does(folder):
    np.save("new.npy", table(8, 5))
    found = evaluation.evaluate(folder / "table", data=Path("new.npy"), num_particles=9)
    words = ["--data", "new.npy", "--num-particles", 9, "--json"]
    told = json.loads(invoke("evaluate", folder / "table", *words).stdout)
    assert told == {k: v for k, v in found.items() if k != "bits_per_dim_reason"}
