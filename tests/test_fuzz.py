"""Whatever is asked: it works, or one message says why not, and nothing is left half done.

Hypothesis draws configurations, arrays and damage; `BAD_FILES` is a corpus of single bad inputs,
each with the message it must give. More examples: `PYROVAE_FUZZ=1000 pytest -n 0 -k any_ FILE`.
"""

import io
import json
import math
import os
import shutil
from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pyrovae import build, evidence, fit, likelihoods, plots, posteriors, priors
from pyrovae.cli import app
from pyrovae.nets.naming import hyphenated

FUZZ = settings(
    deadline=None, derandomize=True, database=None,
    max_examples=int(os.environ.get("PYROVAE_FUZZ", 25)),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "save_all", lambda *args: [])


def said_well(result):
    """The exit status, after what every command must have done."""
    told = result.stderr.strip()
    assert result.exit_code in (0, 1, 2), (result.exit_code, told, result.exception)
    assert isinstance(result.exception, SystemExit | None), repr(result.exception)
    assert "Traceback" not in result.output + told
    if result.exit_code:
        message = told.split("Error: ")[-1] if "Error: " in told else told
        assert len(message) > 20 and result.stdout == "", told
    return result.exit_code


def invoke(*words):
    return said_well(CliRunner().invoke(app, [str(w) for w in words]))


# Configurations


def names(module):
    known = st.sampled_from([hyphenated(n) for n in module.__all__ if n[0].isupper()])
    return known | st.sampled_from(["", "x", "Normal()", "masked:normal", "masked:", "../vae"])


NUMBERS = st.sampled_from(["0", "-1", "1", "2", "3", "nan", "inf", "1e-3", "x", "", "1e400", "2.5"])
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "--prior": names(priors),
        "--likelihood": names(likelihoods),
        "--posterior": names(posteriors),
        "--net": st.sampled_from(["mlp", "conv", "gated-mlp", "residual", "x"]),
        "--pair": st.sampled_from(
            ["vae", "hierarchical-vae", "conditional-vae", "mixture-vae", "x"]
        ),
        "--objective": st.sampled_from(["trace", "iwae", "dreg", "beta-tc", "trace-enum", "x"]),
        "--binarize": st.sampled_from(["none", "threshold", "static", "dynamic", "x"]),
        "--latent-dim": NUMBERS,
        "--batch-size": NUMBERS,
        "--lr": NUMBERS,
        "--seed": NUMBERS,
        "--validation": NUMBERS,
        "--hidden": NUMBERS | st.sampled_from(["2,3", "2,,3", "2;3"]),
        "--optimizer": st.sampled_from(["adam", "adamw", "normalised-adam", "sgd"]),
        "--schedule": st.sampled_from(["constant", "cosine", "plateau", "warm-up", "step"]),
        "--nonfinite": st.sampled_from(["raise", "skip:2", "back-off:1", "skip", "x:1"]),
        "--checkpoint-seconds": NUMBERS,
        "--prior-option": st.sampled_from(
            ["a=1", "num_components=2", "num_components=-1", "=", "a"]
        ),
        "--likelihood-option": st.sampled_from(["variance=fixed:0.1", "variance=fixed:-1", "x=1"]),
    },
)


@FUZZ
@given(OPTIONS, st.sampled_from(["bits", "levels", "reals"]))
def test_any_configuration(tmp_path, options, data):
    generator = np.random.default_rng(1234)
    x = generator.normal(size=(24, 4))
    x = {"bits": (x > 0).astype(np.uint8), "levels": np.abs(x * 9).astype(np.uint8), "reals": x}[
        data
    ]
    np.save("x.npy", x)
    shutil.rmtree("run", ignore_errors=True)
    words = [word for pair in options.items() for word in pair]
    words = ["--hidden", "3", "--latent-dim", "2", "--epochs", "1", *words]
    code = invoke("train", "--data", "x.npy", "--run", "run", *words)
    left = {p.name for p in Path("run").iterdir()} if Path("run").exists() else set()
    if code == 0:
        assert {"model.safetensors", "metrics.json"} <= left
        figures = json.loads(Path("run/metrics.json").read_text())
        assert math.isfinite(figures["elbo"]) and "lock" not in left
    elif code == 2:
        assert not left, "nothing is made of a wrong request"


# Arrays

DTYPES = st.sampled_from(["f2", "f4", "f8", "i1", "u1", "i4", "u4", "i8", "?", "c8", "U3", "M8[s]"])
ARRAYS = DTYPES.flatmap(
    lambda dtype: arrays.arrays(
        dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6)
    )
)


@FUZZ
@given(ARRAYS)
@example(np.array([882.0], "f2"))  # the first guides of some seeds overflow
@example(np.array([[3e38]], "f4"))
def test_any_array(array):
    """Of one likelihood on the real line and one of bits: trained on, or refused with a reason."""
    shape = array.shape[1:] or (1,)
    for likelihood in ("normal", "bernoulli"):
        if 0 in shape:
            continue
        vae = build(data_shape=shape, latent_dim=2, hidden=(2,), likelihood=likelihood)
        before = [p.clone() for p in vae.parameters()]
        try:
            history = fit(vae.model, vae.guide, array, epochs=1, lr=1e-4)
        except ValueError as error:
            assert "expected" in str(error) or "site" in str(error), error
            assert all(map(torch.equal, before, vae.parameters()))
        except FloatingPointError as error:  # numbers near float32's largest
            assert "try a lower lr" in str(error)
        else:
            assert math.isfinite(history["loss"][0]), (array.dtype, array)
            x = torch.as_tensor(array.astype("f4"))
            found = evidence.iwae(vae.model, vae.guide, x, num_particles=3).log_evidence
            assert not bool(found.isnan().any())


@FUZZ
@given(ARRAYS, st.sampled_from(["normal", "bernoulli", "categorical", "masked:normal"]))
def test_any_array_in_a_file(array, likelihood):
    np.save("x.npy", array)
    shutil.rmtree("run", ignore_errors=True)
    words = ["--hidden", 3, "--latent-dim", 2, "--epochs", 1, "--run", "run"]
    code = invoke("train", "--data", "x.npy", "--likelihood", likelihood, *words)
    assert code != 2 or not Path("run").exists()


# Damaged files


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(plots, "save_all", lambda *args: [])
        assert invoke("train", "--epochs", 1, "--hidden", 3, "--latent-dim", 2, "--run", "run") == 0
    return folder / "run"


FILES = (
    "config.json", "model.safetensors", "metrics.json", "evaluation.safetensors", "history.csv",
)  # fmt: skip
DAMAGE = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=20).map(str.encode),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["build", "data", "record", "n", "elbo"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    ).map(lambda tree: json.dumps(tree).encode()),
)


@FUZZ
@given(st.sampled_from(FILES), DAMAGE)
def test_any_damage_of_a_run(trained, name, content):
    shutil.rmtree("run", ignore_errors=True)
    shutil.copytree(trained, "run")
    Path("run", name).write_bytes(content)
    shutil.copytree(trained, "other", dirs_exist_ok=True)
    for words in (
        ["evaluate", "run", "--num-particles", 2, "--limit", 3],
        ["sample", "run", "--n", 2, "--out", "x.npy"],
        ["info", "run"],
    ):
        invoke(*words)
    shutil.rmtree("run")
    shutil.copytree(trained, "run")
    Path("run", name).write_bytes(content)
    invoke("compare", "run", "other")
    invoke("train", "--run", "run", "--resume")


# One bad input after another


def saved(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def archive(**splits):
    file = io.BytesIO()
    np.savez(file, **splits)
    return file.getvalue()


REAL = np.random.default_rng(1234).normal(size=(20, 3))
HOLE = np.where(np.arange(60).reshape(20, 3) == 23, np.nan, REAL)
BAD_FILES = {
    "no file": ("x.npy", None, "a file of data at x.npy; there is none"),
    "a folder": ("x.npy", "folder", "a file of data at x.npy; there is none"),
    "another suffix": ("x.txt", b"1", "or a file .csv, .npy, .npz, .parquet; got 'x.txt'"),
    "an empty file": ("x.npy", b"", "x.npy; it cannot be read"),
    "a cut file": ("x.npy", saved(REAL)[:150], "x.npy; it cannot be read"),
    "a pickle": ("x.npy", saved(np.array([{}]), allow_pickle=True), "x.npy; it cannot be read"),
    "one axis": ("x.npy", saved(REAL[0]), "a row a datum in x.npy; got shape (3,)"),
    "no rows": ("x.npy", saved(REAL[:0]), "at least one row in x.npy; got shape (0, 3)"),
    "no columns": ("x.npy", saved(REAL[:, :0]), "at least one row in x.npy; got shape (20, 0)"),
    "two rows": ("x.npy", saved(REAL[:2]), "expected"),
    "words": ("x.npy", saved(REAL.astype("U3")), "numbers in x.npy; got dtype <U3"),
    "complex": ("x.npy", saved(REAL + 0j), "numbers in x.npy; got dtype complex128"),
    "nan": ("x.npy", saved(HOLE), "1 that are not, the first nan at index (7, 2)"),
    "inf": ("x.npy", saved(np.where(np.isnan(HOLE), -np.inf, REAL)), "first -inf at index (7, 2)"),
    "no archive": ("x.npz", b"PK", "x.npz; it cannot be read"),
    "other names": ("x.npz", archive(a=REAL, b=REAL), "to hold one array, or train, test"),
    "no test": ("x.npz", archive(train=REAL), None),
    "shapes": ("x.npz", archive(train=REAL, test=REAL[:, :2]), "splits of one data shape in x.npz"),
    "an empty table": ("x.csv", b"", "x.csv; it cannot be read"),
    "a header alone": ("x.csv", b"a,b\n", "the names of columns alone, and no rows"),
    "a word in a table": ("x.csv", b"a,b\n1,2\n3,x\n", "columns b are no numbers"),
    "ragged": ("x.csv", b"1,2\n1,2,3\n", "x.csv; it cannot be read"),
    "no parquet": ("x.parquet", b"PAR1", "x.parquet; it cannot be read"),
    "bytes": ("x.csv", bytes(range(256)), "x.csv; it cannot be read"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_the_corpus_of_bad_files(kind):
    name, content, message = BAD_FILES[kind]
    if content == "folder":
        Path(name).mkdir()
    elif content is not None:
        Path(name).write_bytes(content)
    words = ["train", "--data", name, "--likelihood", "normal", "--hidden", "3", "--epochs", "1"]
    result = CliRunner().invoke(app, words)
    code = said_well(result)
    if message is not None:
        assert code == 2 and message in result.stderr.replace(f"{Path.cwd()}/", ""), result.stderr
        assert not Path("runs").exists()
