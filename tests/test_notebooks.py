"""The notebooks: source and executed .ipynb are one, ran from top to bottom, and in small steps."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = [
    "01_why_vaes_are_variational", "02_model_and_guide_in_pyro", "03_swap_the_prior",
    "04_swap_the_likelihood", "05_how_good_is_my_guide", "06_beyond_images",
    "07_compare_models_like_a_statistician",
]  # fmt: skip
MAX_LINES = 15  # of a code cell
MARKER = re.compile(r"^# %%(.*)$", re.MULTILINE)


def executed(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def source_cells(name):
    """Return (type, source) of each cell of a py:percent file, as jupytext converts it."""
    _, *parts = MARKER.split((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    cells = []
    for options, body in zip(parts[::2], parts[1::2], strict=True):
        lines = body.strip("\n").split("\n")
        if "[markdown]" in options:
            cells.append(("markdown", "\n".join(line[2:] for line in lines)))
        else:
            magic = re.compile(r"^# (?=%\w)")
            cells.append(("code", "\n".join(magic.sub("", line) for line in lines)))
    return cells


def text(cell):
    return "".join(cell["source"])


def problems(notebook):
    """Return what is wrong with the record of an execution."""
    found = []
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for expected, cell in enumerate(codes, 1):
        first = text(cell).split("\n")[0]
        if cell["execution_count"] != expected:
            found.append(f"{first}: run {cell['execution_count']}, expected {expected}")
        for output in cell["outputs"]:
            if output["output_type"] == "error" or output.get("name") == "stderr":
                found.append(f"{first}: an error or a warning in its output")
    return found


def test_every_notebook_is_listed():
    assert sorted(path.stem for path in FOLDER.glob("[0-9]*.py")) == NAMES
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_source_and_notebook_have_the_same_cells(name):
    cells = [(cell["cell_type"], text(cell)) for cell in executed(name)["cells"]]
    assert cells == source_cells(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_ran_in_order_without_a_warning(name):
    assert problems(executed(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_record_is_of_a_full_run_with_pictures(name):
    outputs = [o for cell in executed(name)["cells"] for o in cell.get("outputs", [])]
    assert any("smoke run: False" in "".join(o.get("text", "")) for o in outputs)
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short(name):
    for kind, source in source_cells(name):
        assert kind == "markdown" or len(source.split("\n")) <= MAX_LINES, source


@pytest.mark.parametrize("name", NAMES)
def test_one_parameter_cell_asks_for_smoke_mode(name):
    tagged = [c for c in executed(name)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert 'SMOKE = bool(os.environ.get("PYROVAE_SMOKE"))' in text(tagged[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_section_says_what_will_be_seen(name):
    cells = "\n".join(source for kind, source in source_cells(name) if kind == "markdown")
    for section in cells.split("\n## ")[1:]:
        assert "ou will see" in section, section.split("\n")[0]


def test_errors_warnings_and_cells_run_out_of_order_are_found():
    good = executed(NAMES[0])
    codes = [i for i, cell in enumerate(good["cells"]) if cell["cell_type"] == "code"]
    error = {"output_type": "error", "ename": "AssertionError", "evalue": "", "traceback": []}
    warning = {"output_type": "stream", "name": "stderr", "text": ["UserWarning"]}
    for output in (error, warning):
        bad = copy.deepcopy(good)
        bad["cells"][codes[3]]["outputs"].append(output)
        assert len(problems(bad)) == 1
    for count in (None, 1):
        bad = copy.deepcopy(good)
        bad["cells"][codes[3]]["execution_count"] = count
        assert len(problems(bad)) == 1


@pytest.mark.slow
def test_all_run_in_smoke_mode_and_write_nothing():
    before = {path: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}
    command = [sys.executable, str(FOLDER / "run.py"), "--smoke"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert {path: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()} == before
