"""Tables: read, standardised on the training rows, and measured in the units they came in."""

import builtins
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from safetensors.torch import load_file
from scipy import stats
from typer.testing import CliRunner

from pyrovae import build, data, likelihoods, load, plots
from pyrovae.cli import app
from pyrovae.plots import style
from pyrovae.training import evaluation, support

LINEAR = ["--hidden", "", "--latent-dim", 2, "--likelihood", "normal", "--epochs", 3]


def table(n=200, seed=0):
    """Correlated columns of very different location and scale, the last one constant."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(n, 2))
    x = z @ generator.normal(size=(2, 3)) + 0.3 * generator.normal(size=(n, 3))
    return np.column_stack([x * [1, 1000, 1e-3] + [0, 1e7, 5], np.full(n, 0.1)])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Invoke the command line in an empty folder, without pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pyrovae.plots.save_all", lambda *args: [])

    def invoke(*words, code=0):
        result = CliRunner().invoke(app, [str(w) for w in words])
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    return invoke


def config(name):
    with open(f"{name}/config.json") as file:
        return json.load(file)


# Reading


def test_csv_and_parquet_give_the_same(tmp_path):
    frame = pd.DataFrame(table(30), columns=list("abcd"))
    frame["e"] = np.arange(30) % 2 == 0
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    csv, parquet = (data.load(tmp_path / f"t.{s}") for s in ("csv", "parquet"))
    assert torch.equal(csv.test, parquet.test) and csv.levels is None
    assert csv.record["sha256"] == parquet.record["sha256"]
    frame["e"] = "word"
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="columns e are no numbers"):
        data.load(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="t.parquet; it cannot be read"):
        data.load(tmp_path / "t.parquet")


def test_a_header_is_a_row_with_a_word_in_it(tmp_path):
    for first, rows in (("1.5,1.5", 20), ("a,1.5", 19), ("a,a", 19), ("1,2", 20)):
        (tmp_path / "t.csv").write_text(first + "\n" + "1.5,2\n" * 19)
        loaded = data.load(tmp_path / "t.csv")
        assert sum(len(loaded.split(s)) for s in data.SPLITS) == rows, first


def test_parquet_without_pyarrow(run, tmp_path, monkeypatch):
    pd.DataFrame(table(20)).rename(columns=str).to_parquet("t.parquet")
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == "pyarrow":
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    told = run("train", "--data", "t.parquet", "--likelihood", "normal", code=1).stderr
    assert "pip install 'pyrovae[parquet]'" in told and "Traceback" not in told


def test_counts_of_a_table_are_taken_as_they_are(run, tmp_path):
    (tmp_path / "t.csv").write_text("\n".join(f"{i},{300 * i}" for i in range(20)))
    run("train", "--data", "t.csv", "--likelihood", "poisson", "--epochs", 1, "--run", "a")
    built = config("a")["build"]
    assert built["likelihood_options"] == {}
    assert 5e3 < 1 / built["posterior_options"]["input_scale"] <= 5700  # what the encoder sees
    counts = evaluation.load_data(tmp_path / "a")
    assert (counts.levels, counts.scale) == (None, None)
    rows = torch.cat([counts.split(s) for s in data.SPLITS])
    assert sorted(rows[:, 1].tolist()) == [300.0 * i for i in range(20)]


# Missing entries


def test_missing_entries_are_kept_where_they_are_allowed(tmp_path):
    x = table(20)
    x[3, 0] = x[5, 2] = np.nan
    frame = pd.DataFrame(x)
    frame.to_csv(tmp_path / "t.csv", index=False, header=False)  # an empty cell
    frame.rename(columns=str).convert_dtypes().to_parquet(tmp_path / "t.parquet")
    np.save(tmp_path / "t.npy", x)
    for name in ("t.csv", "t.parquet", "t.npy"):
        with pytest.raises(ValueError, match="got 2 that are not, the first nan at .*masked:norm"):
            data.load(tmp_path / name)
        found = data.load(tmp_path / name, missing=True, dtype=torch.float64)
        rows = torch.cat([found.split(s) for s in data.SPLITS])
        order = rows[:, 1].sort().indices, np.argsort(x[:, 1])
        np.testing.assert_allclose(rows[order[0]].numpy(), x[order[1]], rtol=1e-12)
    x[0, 0] = np.inf
    np.save(tmp_path / "t.npy", x)
    with pytest.raises(ValueError, match=r"got 1 that are not, the first inf at index \(0, 0\)"):
        data.load(tmp_path / "t.npy", missing=True)


def test_a_first_row_with_a_missing_entry_is_no_header(tmp_path):
    (tmp_path / "t.csv").write_text(",2\n" + "1.5,2\n" * 19)
    found = data.load(tmp_path / "t.csv", missing=True)
    assert sum(len(found.split(s)) for s in data.SPLITS) == 20


def test_missing_entries_are_left_out_of_mean_and_sd():
    x = torch.tensor(table(50)[:, :3])
    whole = data.Data("t", x, x[:5], x[5:9])
    holes = x.clone()
    holes[:10, 1] = math.nan
    found = data.standardize(data.Data("t", holes, x[:5], x[5:9]))
    assert torch.equal(found.train.isnan(), holes.isnan())
    kept = holes[10:, 1]
    torch.testing.assert_close(found.loc[1], kept.mean(), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.scale[1], kept.std(correction=0))
    assert (
        abs(found.loc[1] - kept.mean()) < 1e-6 < abs(found.loc[1] - data.standardize(whole).loc[1])
    )
    gain = found.log_jacobian(found.train)
    logs = found.scale.log()
    torch.testing.assert_close(gain[20], -logs.sum())
    torch.testing.assert_close(gain[0], -logs[0] - logs[2])
    holes[:, 2] = math.nan
    empty = data.standardize(data.Data("t", holes, x[:5], x[5:9]))
    assert (empty.loc[2], empty.scale[2]) == (0, 1)


def test_binarised_missing_entries_stay_missing(tmp_path):
    x = np.random.default_rng(0).random((20, 3))
    x[:, 1] = np.nan
    np.save(tmp_path / "t.npy", x)
    for how in data.BINARIZE[1:]:
        test = data.load(tmp_path / "t.npy", binarize=how, missing=True).test
        assert test[:, 1].isnan().all() and set(test[:, ::2].unique().tolist()) <= {0, 1}
    with pytest.raises(ValueError, match="got values from 0.5 to 7"):
        data.binarize(torch.tensor([math.nan, 0.5, 7.0]))


# Standardising


def test_standardized_columns():
    x = torch.tensor(table())
    found = data.standardize(data.Data("t", x, x[:20], x[20:50]))
    torch.testing.assert_close(found.train.mean(0), torch.zeros(4).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.train[:, :3].std(0, correction=0), torch.ones(3).double())
    assert found.scale[3] == 1 and (found.train[:, 3] == 0).all()  # constant
    torch.testing.assert_close(found.original(found.test), x[20:50], rtol=1e-12, atol=1e-12)
    assert found.loc.tolist() == found.record["loc"]
    some = data.standardize(data.Data("t", x, x[:20], x[20:50]), columns=[1])
    assert torch.equal(some.train[:, [0, 2, 3]], x[:, [0, 2, 3]])
    assert torch.equal(some.train[:, 1], found.train[:, 1])
    assert some.loc.tolist()[::2] == [0, 0] and some.scale.tolist()[::2] == [1, 1]


def test_the_test_rows_have_no_say():
    x = torch.tensor(table())
    first = data.standardize(data.Data("t", x, x[:20], x[20:50]))
    other = data.standardize(data.Data("t", x, x[:20], 7 * x[20:50]))
    assert torch.equal(first.loc, other.loc) and torch.equal(first.scale, other.scale)


HUGE = torch.tensor([[0.0], [1e300]], dtype=torch.float64).expand(2, 4)


@pytest.mark.parametrize(
    ("change", "columns", "message"),
    [
        ({"train": torch.zeros(5, 2, 2)}, None, r"data shape \(2, 2\), levels None"),
        ({"levels": 2}, None, "levels 2"),
        ({"loc": torch.zeros(4), "scale": torch.ones(4)}, None, "once; got .* scale tensor"),
        ({}, [4], r"columns to be among 0, ..., 3; got \[4\]"),
        ({"train": HUGE}, None, "finite mean and spread"),
    ],
)
def test_what_cannot_be_standardised(change, columns, message):
    x = torch.tensor(table())

    given = {"name": "t", "train": x, "validation": x, "test": x} | change
    with pytest.raises(ValueError, match=message):
        data.standardize(data.Data(**given), columns)


def test_rescale_refuses_another_shape():
    x = torch.tensor(table())
    with pytest.raises(ValueError, match=r"scale of shape \(4,\), one a column; got \(3,\)"):
        data.rescale(data.Data("t", x, x, x), torch.zeros(3), torch.ones(4))


# A run in the units of its table


def test_log_p_is_that_of_the_table_as_it_was(run, tmp_path):
    """A linear-Gaussian pair: x = loc + S (W z + mu + sigma e) is normal, by scipy."""
    np.save(tmp_path / "t.npy", table() * [1, 1e-2, 100, 1])  # or scipy takes it for singular
    run("train", *LINEAR, "--data", "t.npy", "--run", "a")
    words = ["evaluate", "a", "--evidence", "linear-gaussian", "--num-particles", 50, "--json"]
    figures = json.loads(run(*words).stdout)
    assert (figures["units"], figures["measure"]) == ("original", "density")
    vae, record = load("a"), config("a")["record"]
    net, scale = vae.likelihood.net.output, np.diag(record["scale"])
    w = net.weight.detach().double().numpy()
    sigma = vae.likelihood(torch.zeros(2)).stddev[0].item()
    mean = record["loc"] + scale @ net.bias.detach().double().numpy()
    covariance = scale @ (w @ w.T + sigma**2 * np.eye(4)) @ scale
    test = data.load("t.npy", dtype=torch.float64).test.numpy()
    expected = stats.multivariate_normal(mean, covariance).logpdf(test)
    each = load_file("a/evaluation.safetensors")
    np.testing.assert_allclose(each["log_evidence"], expected, atol=2e-5)
    assert figures["log_evidence"] == pytest.approx(expected.mean(), abs=2e-5)
    gain = -np.log(record["scale"]).sum()
    assert abs(gain) > 0.1  # so that a sign that is wrong, or none, would show
    assert figures["elbo"] == pytest.approx(figures["reconstruction"] - figures["kl"], abs=1e-5)
    assert figures["elbo"] < figures["log_evidence"]
    standard_error = each["standard_error"].double().square().mean().sqrt()
    error = (each["importance_log_evidence"] - each["log_evidence"]).abs().median()
    assert error < 3 * standard_error < abs(gain)


def test_rescaling_a_column_changes_log_p_by_its_log_scale(run, tmp_path):
    x = table()
    np.save(tmp_path / "t.npy", x)
    np.save(tmp_path / "u.npy", x * [1000, 1, 1, 1] + [1e6, 0, 0, 0])
    found = {}
    for name in ("t", "u"):
        run("train", *LINEAR, "--data", f"{name}.npy", "--run", name)
        found[name] = load_file(f"{name}/evaluation.safetensors")
    for key in ("elbo", "reconstruction", "log_evidence"):
        torch.testing.assert_close(
            found["t"][key] - found["u"][key], torch.full((20,), math.log(1000)).double(),
            atol=1e-3, rtol=0,
        )  # fmt: skip
    torch.testing.assert_close(found["t"]["kl"], found["u"]["kl"], atol=1e-3, rtol=0)


def test_the_transform_is_kept_and_not_fitted_again(run, tmp_path):
    np.save(tmp_path / "t.npy", table())
    run("train", *LINEAR, "--data", "t.npy", "--run", "a")
    fresh = data.load("t.npy", standardize=True)
    kept = evaluation.load_data(tmp_path / "a")
    assert torch.equal(kept.loc, torch.tensor(config("a")["record"]["loc"], dtype=kept.loc.dtype))
    torch.testing.assert_close(kept.test.float(), fresh.test, atol=1e-6, rtol=1e-6)
    before = json.loads(run("evaluate", "a", "--json").stdout)
    whole = config("a")
    del whole["sha256"]  # as a person would who edits it
    whole["record"]["loc"][0] += 1.0
    (tmp_path / "a" / "config.json").write_text(json.dumps(whole))
    assert evaluation.load_data(tmp_path / "a").loc[0] == kept.loc[0] + 1
    assert json.loads(run("evaluate", "a", "--json").stdout)["elbo"] != before["elbo"]
    del whole["record"]["loc"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(whole))
    assert "config.json is damaged" in run("evaluate", "a", code=2).stderr


def test_draws_are_in_the_units_of_the_table(run, tmp_path):
    np.save(tmp_path / "t.npy", table())
    run("train", *LINEAR, "--data", "t.npy", "--run", "a")
    run("sample", "a", "--n", 500, "--out", "x.npy")
    x, record = np.load("x.npy"), config("a")["record"]
    plain = load("a").sample(500).double().numpy()
    np.testing.assert_allclose(x, plain * record["scale"] + record["loc"], rtol=1e-12)
    assert abs(x[:, 1].mean() - 1e7) < 1000


def test_no_standardize_and_what_is_no_table(run, tmp_path):
    np.save(tmp_path / "t.npy", table()[:, [0, 2]])
    np.save(tmp_path / "image.npy", np.random.default_rng(0).normal(size=(40, 3, 3)))
    np.save(tmp_path / "levels.npy", np.random.default_rng(0).integers(0, 9, (40, 3), np.uint8))
    for name, words in (("t", ["--no-standardize"]), ("image", []), ("levels", [])):
        run("train", *LINEAR, "--data", f"{name}.npy", "--run", name, *words)
        assert "scale" not in config(name)["record"], name
    raw = data.load("image.npy")
    assert torch.equal(evaluation.load_data(tmp_path / "image").test.float(), raw.test)


# Which columns: a likelihood with columns of several kinds

KINDS = [["normal", [0]], ["bernoulli", [1]], ["poisson", [2]], ["log-normal", [3]]]


def table_of_kinds(n=100):
    generator = np.random.default_rng(0)
    return np.column_stack(
        [
            generator.normal(50, 9, n), generator.integers(0, 2, n), generator.poisson(3, n),
            generator.lognormal(size=n),
        ]
    )  # fmt: skip


@pytest.mark.parametrize("likelihood", ["mixed", "masked:mixed"])
def test_columns_that_are_no_real_line_are_left_alone(run, tmp_path, likelihood):
    x = table_of_kinds()
    masked = likelihood.startswith("masked")
    if masked:
        x[::7, 0] = x[3::9, 2] = np.nan
    np.save(tmp_path / "t.npy", x)
    run(
        "train", "--data", "t.npy", "--likelihood", likelihood, "--epochs", 1, "--run", "a",
        "--likelihood-option", f"columns={json.dumps(KINDS)}",
    )  # fmt: skip
    record = config("a")["record"]
    assert record["loc"][1:] == [0, 0, 0] and record["scale"][1:] == [1, 1, 1]
    assert abs(record["loc"][0] - 50) < 5 and abs(record["scale"][0] - 9) < 2
    kept = evaluation.load_data(tmp_path / "a")
    raw = data.load("t.npy", missing=masked)
    np.testing.assert_array_equal(kept.test[:, 1:].float(), raw.test[:, 1:])
    figures = json.loads(run("evaluate", "a", "--json", "--num-particles", 30).stdout)
    assert figures["measure"] == "mass in columns 1, 2, density in the others"
    assert figures["bits_per_dim"] is None


@pytest.mark.parametrize(
    ("likelihood", "real", "measure"),
    [
        ("normal", True, "density"),
        ("bernoulli", False, "mass"),
        ("binomial", False, "mass"),
        ("continuous-bernoulli", False, "density"),
    ],
)
def test_supports(likelihood, real, measure):
    made = build(data_shape=(3,), latent_dim=2, likelihood=likelihood).likelihood
    assert support.on_the_real_line(made).tolist() == [real] * 3
    assert support.measure(made) == measure
    image = build(data_shape=(3, 2), latent_dim=2, likelihood=likelihood).likelihood
    assert support.measure(image) == measure


def test_large_counts_are_a_mass():
    made = likelihoods.Poisson(latent_dim=2, data_shape=(3,))
    torch.nn.init.constant_(made.net.output.bias, 16.0)  # 9 million, where float32 has no halves
    assert support.measure(made) == "mass"


def test_pictures_of_images_with_holes():
    vae = build(data_shape=(4, 4), latent_dim=2, likelihood="masked:bernoulli", hidden=(8,))
    x = torch.ones(3, 4, 4)
    x[:, 0, 0] = math.nan
    figure = plots.reconstructions(vae, x, columns=3)
    axes = figure.axes[0]
    low, high = axes.images[0].get_clim()
    assert high == 1 and math.isfinite(low)
    figure.canvas.draw()
    shown = axes.images[0].make_image(figure.canvas.get_renderer())[0]
    assert shown[..., 3].min() == 0  # a hole lets the colour behind it through
    assert to_hex(axes.get_facecolor()) == style.MISSING
