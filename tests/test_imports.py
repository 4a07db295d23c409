"""The layout: a module imports only modules above it in this list."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyrovae

ROOT = Path(pyrovae.__file__).parent
LAYERS = [
    ["nets"],
    ["distributions"],
    ["priors", "likelihoods", "posteriors"],
    ["pairs"],
    ["importance"],
    ["optimise"],
    ["divergences"],
    ["objectives"],
    ["evidence"],
    ["diagnostics"],
    ["testing"],
    ["data"],
    ["training"],
    ["convert"],
    ["plots"],
    ["report"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(tree, package):
    """(line, imported pyrovae module) of every import, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "pyrovae":
                    yield node.lineno, alias.name.split(".")[1:] or ["pyrovae"]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{package}:{node.lineno}: relative import"
            parts = (node.module or "").split(".")
            if parts[0] != "pyrovae":
                continue
            if len(parts) > 1:
                yield node.lineno, parts[1:]
            else:
                for alias in node.names:
                    yield node.lineno, [alias.name]


def arrows_down(source, module):
    """The imports of a module that go down the list, or sideways to a sibling."""
    for line, target in imports(ast.parse(source), module):
        top = target[0]
        if top == module:
            continue
        if top not in LEVEL or LEVEL[top] >= LEVEL[module]:
            yield f"{module}:{line} imports {'.'.join(target)}"


def test_no_arrow_goes_down():
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        top = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if top != "__init__":
            assert top in LEVEL, f"{top} has no place in the layout"
            found += arrows_down(path.read_text(), top)
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "from pyrovae.objectives import ManualELBO",
        "def f():\n    import pyrovae.cli",
        "from pyrovae import posteriors",
        "from pyrovae import build",
        "import pyrovae",
    ],
)
def test_an_arrow_down_is_caught(source):
    assert list(arrows_down(source, "priors"))


def test_no_submodule_is_named_like_a_function_of_its_package():
    for package in ROOT.rglob("__init__.py"):
        exported = {
            alias.name
            for node in ast.walk(ast.parse(package.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module != "pyrovae"
            for alias in node.names
        }
        modules = {p.stem for p in package.parent.glob("*.py")}
        assert not exported & modules, package


def test_files_stay_under_500_lines():
    for path in [*ROOT.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]:
        assert len(path.read_text().splitlines()) < 500, path


PROBE = """
import sys, warnings, os
import torch, pyro
before = torch.get_default_dtype(), torch.get_num_threads(), warnings.filters[:], dict(os.environ)
valid = torch.distributions.Distribution._validate_args
state = torch.get_rng_state()
import pyrovae
assert torch.distributions.Distribution._validate_args == valid
assert (torch.get_default_dtype(), torch.get_num_threads(), warnings.filters[:],
        dict(os.environ)) == before
assert torch.equal(state, torch.get_rng_state())
assert not list(pyro.get_param_store().keys())
slow = {"arviz", "matplotlib", "zuko", "pandas", "sklearn", "torchvision"} & set(sys.modules)
assert not slow, slow
"""


def test_importing_has_no_side_effect(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir()) and not done.stdout and not done.stderr
