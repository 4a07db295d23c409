"""Every command line of README runs, one block after another, on small data and for an epoch."""

import importlib
import re
import shlex
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pyrovae import plots
from pyrovae.cli import app

README = Path(__file__).parent.parent / "README.md"
QUICK = {
    "train": "--epochs 1 --hidden 4 --latent-dim 2",
    "evaluate": "--limit 3 --num-particles 50",
    "report": "--limit 3 --gap-data 2",
}
ELSEWHERE = re.compile(  # what .ci/run, other tests or a person runs
    r"python3 -m venv|\.venv/bin/|bash \.ci/run|export PYROVAE_DATA|for |done"
)
PLACEHOLDERS = {"NAME": "trace", "RUN": "runs/digits-1", "cuda": "cpu"}
MINE = """
import pyro, torch
import pyro.distributions as dist

encoder, decoder = torch.nn.Linear(64, 2), torch.nn.Linear(1, 64)


def model(x):
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x.flatten(1))


def guide(x):
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        loc, log_scale = encoder(x.flatten(1)).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
"""


def commands(block):
    """Return the command lines of a block, each in one line and without its comment."""
    whole = re.sub(r"\\\n\s*", "", block)
    return [line.split(" #")[0].strip() for line in whole.splitlines() if line.strip()]


BLOCKS = [
    commands(block)
    for block in re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.M | re.S)
    if not all(map(ELSEWHERE.match, commands(block)))
]


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    path.write_bytes(head + array.tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the commands find: data sets by name, files, and two runs."""
    home = tmp_path_factory.mktemp("home")
    generator = np.random.default_rng(1234)
    raw = home / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, n in {"train": 120, "t10k": 30}.items():
        images = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        write_idx(raw / f"{name}-images-idx3-ubyte", images)
        write_idx(raw / f"{name}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8) % 10)
    (home / "data" / "FreyFaces").mkdir()
    faces = generator.integers(0, 256, (1965, 28, 20), dtype=np.uint8)
    np.save(home / "data" / "FreyFaces" / "freyfaces.npy", faces)
    table = generator.normal(size=(60, 3))
    np.savetxt(home / "table.csv", table, delimiter=",")
    np.save(home / "big.npy", (table > 0).astype(np.uint8))
    np.savetxt(home / "mine.csv", table[:20], delimiter=",")
    (home / "mine.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(plots, "save_all", lambda *args: [])
        invoke(f"train {QUICK['train']}")
    shutil.copytree(home / "runs" / "digits-1", home / "runs" / "digits-2")
    return home


def invoke(words):
    result = CliRunner().invoke(app, shlex.split(words))
    assert result.exit_code == 0, (words, result.stderr, result.exception)


def run(line):
    """Run a command line, quickly; by torchrun's or SLURM's it is one process here."""
    *launcher, words = re.split(r"^pyrovae |-m -- pyrovae ", line)
    assert len(launcher) == 1 and re.match(r"torchrun |srun |$", launcher[0]), line
    placeholders = PLACEHOLDERS | ({"RUN": "runs/table-1"} if "mine.csv" in words else {})
    for name, meant in placeholders.items():
        words = re.sub(rf"\b{name}\b", meant, words)
    if "--resume" not in words:  # which goes on as it was begun
        words += " " + QUICK.get(words.split()[0], "")
    invoke(words.replace("--seeds 5", "--seeds 2"))


@pytest.mark.parametrize("lines", BLOCKS, ids=lambda lines: lines[0][:40])
def test_commands_run(lines, folder, tmp_path, monkeypatch):
    home = shutil.copytree(folder, tmp_path / "home")
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # another test's
    monkeypatch.setenv("PYROVAE_DATA", str(home / "data"))
    monkeypatch.setattr(plots, "save_all", lambda *args: [])
    if any("table.parquet" in line for line in lines):
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow, the extra parquet")
        table = np.loadtxt("table.csv", delimiter=",")
        table[::7, 1] = np.nan
        columns = {f"x{i}": pyarrow.array(c, from_pandas=True) for i, c in enumerate(table.T)}
        importlib.import_module("pyarrow.parquet").write_table(
            pyarrow.table(columns), "table.parquet"
        )
    for line in lines:
        module = re.match(r"python -m (reproduce\.\w+)(.*)", line)
        if module:  # an hour of a core: its arguments alone
            parse = getattr(importlib.import_module(module[1]), "parse", list)
            parse(shlex.split(module[2]))
        elif not ELSEWHERE.match(line):
            run(line)


def test_a_command_that_is_none_is_seen(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for line in ("pyrovae trian", "pip install pyrovae", "pyrovae train --prior nonesuch"):
        with pytest.raises(AssertionError):
            run(line)
