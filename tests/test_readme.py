"""Every block of Python in README runs, in order."""

import re
from pathlib import Path

import pyro
import pytest

README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    assert len(blocks) >= 3
    names = {}
    with pyro.get_param_store().scope():
        for block in blocks:
            exec(compile(block, str(README), "exec"), names)
    gap = names["log_evidence"] - names["elbo"]
    assert gap.shape == (100,) and gap.min() > 0


def test_every_part_and_objective_has_a_row():
    from pyrovae import likelihoods, nets, objectives, posteriors, priors

    text = README.read_text()
    for module in (priors, likelihoods, posteriors, nets, objectives):
        for name in module.__all__:
            assert f"`{name}`" in text, f"{name} has no row in README's table"


@pytest.mark.parametrize("name", re.findall(r"\]\((notebooks/[^)]+)\)", README.read_text()))
def test_pictures_exist(name):
    assert (README.parent / name).is_file()
