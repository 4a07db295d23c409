"""Runs beside one another, with paired standard errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_experiment import run as invoke
from test_experiment import trained

from pyrovae.training import evaluation, rundir
from pyrovae.training.comparison import compare, paired


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on the digits: three of one kind, and one each that is not."""
    folder = tmp_path_factory.mktemp("runs")
    choices = {
        "short": {},
        "long": {"epochs": 3},
        "wide": {"hidden": (32,), "prior": "mixture-of-normals"},
        "density": {"likelihood": "normal", "dequantize": True},
        "binarised": {"binarize": "static"},
        "seed": {"seed": 1},
        "validation": {"validation": 100},
    }
    for name, options in choices.items():
        trained(run=folder / name, **options)
    return folder


@pytest.fixture
def here(runs, tmp_path, monkeypatch):
    """The same runs, to write to, in the current folder."""
    shutil.copytree(runs, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")


def of_each(run):
    return load_file(f"{run}/evaluation.safetensors")["log_evidence"].double().numpy()


def test_the_table(here):
    found = compare(["short", "long", "wide"])
    assert sorted(r.run for r in found.rows) == ["long", "short", "wide"]
    means = [r.log_evidence for r in found.rows]
    assert means == sorted(means, reverse=True)
    assert (found.split, found.n, found.num_particles) == ("test", 179, 100)
    assert (found.evidence, found.measure, found.data) == ("iwae", "mass", "digits")
    best, *others = found.rows
    assert (best.difference, best.difference_se) == (0, 0)
    for row in others:
        difference = of_each(row.run) - of_each(best.run)
        assert row.difference == pytest.approx(difference.mean()) and row.difference < 0
        assert row.difference_se == pytest.approx(difference.std(ddof=1) / 179**0.5)
        unpaired = np.hypot(row.log_evidence_se, best.log_evidence_se)
        assert row.difference_se < 0.6 * unpaired  # which would hide the difference
    by_name = {row.run: row for row in found.rows}
    assert [by_name[name].epochs for name in ("short", "long", "wide")] == [1, 3, 1]
    assert by_name["wide"].prior == "mixture-of-normals"
    for row in found.rows:
        figures = json.loads(Path(row.run, "metrics.json").read_text())
        for key in ("elbo", "kl", "log_evidence", "log_evidence_se", "bits_per_dim"):
            assert getattr(row, key) == figures[key]
        vae = rundir.load(row.run)
        assert row.parameters == sum(p.numel() for p in vae.parameters())
    assert len(found.to_dataframe()) == 3


def test_paired_against_what_is_common():
    generator = torch.Generator().manual_seed(0)
    common = 100 * torch.randn(400, generator=generator)
    noise = torch.randn(400, generator=generator)
    mean, error = paired(common + noise, common)
    assert mean == pytest.approx(noise.mean().item(), abs=1e-4)
    assert error == pytest.approx(noise.std().item() / 20, rel=1e-4)
    _, unpaired = paired(common + noise, common[torch.randperm(400, generator=generator)])
    assert unpaired > 50 * error
    assert paired(common[:1], common[:1]) == (0, None)


def test_the_command_line(here):
    text = invoke("compare", "short", "long", "wide").stdout
    lines = text.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert "179" in lines[0] and "paired" in lines[1]
    best = compare(["short", "long", "wide"]).rows[0]
    assert lines[4] == f"1  {best.run}: {best.prior}, {best.likelihood}, {best.posterior}"
    assert lines[5].split()[:4] == [
        f"{best.log_evidence:.3f}", "+-", f"{best.log_evidence_se:.3f}", "best",
    ]  # fmt: skip
    assert len({len(line) for line in lines[3::2]}) == 1, "columns stand below one another"
    result = invoke("compare", "short", "long", "--json")
    told = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1 and result.stderr == ""
    assert told == json.loads(json.dumps(compare(["short", "long"]).to_dict()))
    assert {"run", "prior", "likelihood", "posterior", "difference_se"} < set(told["rows"][0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["short"], "two runs or more, none of them twice; got short"),
        (["short", "long", "./short"], "two runs or more, none of them twice"),
        (["short", "none"], "run directory with config.json; none has none"),
        (["short", "density"], "short is a probability mass, that of density a probability dens"),
        (["short", "binarised"], "(values 'levels' against 'unit'; binarize 'none' against 'stat"),
        (["short", "seed"], "same test data; those of short and seed differ (seed 0 against 1)"),
    ],
)
def test_what_says_nothing_is_refused(here, words, message):
    result = invoke("compare", *words, code=2)
    assert message in " ".join(result.stderr.split()) and result.stdout == ""


@pytest.mark.parametrize(
    "options",
    [
        {"num_particles": 7},
        {"num_particles": 100, "limit": 20},
        {"num_particles": 100, "split": "validation"},
    ],
)
def test_figures_found_otherwise_are_refused_with_the_command(here, options):
    figures = evaluation.evaluate(Path("wide"), **options)
    told = invoke("compare", "wide", "short", code=2).stderr
    assert "expected figures found in one manner; got wide: " in told
    invoke(*told.partition("`pyrovae ")[2].partition("`")[0].split())
    found = compare(["wide", "short"])
    assert (found.split, found.n) == (figures["split"], figures["n"])
    assert found.num_particles == options["num_particles"]


def test_exact_figures_are_compared_with_exact_ones(here):
    for name in ("a", "b"):
        trained(run=Path(name), latent_dim=1, net_options={"activation": "tanh"})
        evaluation.evaluate(Path(name), evidence="quadrature", num_particles=30, limit=3)
    assert compare(["a", "b"]).evidence == "exact"
    assert "log p(x): exact" in str(compare(["a", "b"]))
    evaluation.evaluate(Path("b"), num_particles=30, limit=3)
    told = invoke("compare", "a", "b", code=2).stderr
    command = "evaluate b --split test --num-particles 30 --evidence exact --limit 3"
    assert command in " ".join(told.split())


def test_rows_that_differ_are_refused(here):
    assert compare(["short", "validation"]).n == 179  # the test data are the same
    for run in ("short", "validation"):
        evaluation.evaluate(Path(run), num_particles=3, split="validation", limit=50)
    told = invoke("compare", "short", "validation", code=2).stderr
    assert "the validation data of short and validation differ" in told


def test_tables_standardised_or_not_are_compared_in_their_own_units(tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 3)) * [1, 20, 0.1]
    np.save(tmp_path / "t.npy", x)
    for name in ("a", "b"):
        trained(
            data=str(tmp_path / "t.npy"), likelihood="normal", standardize=name == "a", epochs=30,
            run=tmp_path / name, lr=1e-2,
        )  # fmt: skip
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found.measure == "density" and found.rows[0].bits_per_dim is None
    assert "-" in str(found).splitlines()[5].split()
    # entropy of the normal that made them
    expected = -sum(np.log(np.sqrt(2 * np.pi * np.e) * s) for s in (1, 20, 0.1))
    assert found.rows[0].log_evidence == pytest.approx(expected, abs=0.4)


def test_damaged_figures_are_refused(here):
    path = Path("short", "metrics.json")
    whole = path.read_text()
    figures = json.loads(whole)

    def refused(content, message, name="metrics.json"):
        Path("short", name).write_text(content)
        told = " ".join(invoke("compare", "short", "long", code=2).stderr.split())
        assert message in told and "pyrovae evaluate short" in told
        path.write_text(whole)

    refused("{", "the figures of short are damaged")
    refused("[]", "the figures of short are damaged")
    old = {k: v for k, v in figures.items() if k != "sha256"}
    refused(json.dumps(old), "figures of `pyrovae evaluate` of this version")
    moved = figures | {"log_evidence": figures["log_evidence"] + 1}
    refused(json.dumps(moved), "figures of `pyrovae evaluate` of this version")
    refused("x", "the figures of short are damaged", "evaluation.safetensors")
    invoke("evaluate", "short", "--num-particles", 100)
    assert len(compare(["short", "long"]).rows) == 2
    path.unlink()
    assert "there are none: run" in invoke("compare", "short", "long", code=2).stderr
