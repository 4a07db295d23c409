"""Run the notebooks: `python notebooks/run.py [--smoke] [NAME ...]`.

Each .py source beside this script is converted by jupytext and executed by nbclient, in a kernel
of this very interpreter. Without --smoke the executed .ipynb is written next to its source. With
it the sizes are the small ones (PYROVAE_SMOKE=1, and that it was heeded is asserted), and nothing
is written here. Exit status 1 with the message of the cell that failed.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
TIMEOUT = 600  # seconds a cell
ASSERTED = "assert SMOKE, 'expected smoke mode; PYROVAE_SMOKE=1 was not heeded'"


def sources() -> list[Path]:
    """Return the notebooks' sources, in order."""
    return sorted(HERE.glob("[0-9]*.py"))


def convert(source: Path) -> NotebookNode:
    """Return the notebook of a py:percent source, its cell ids the same every time."""
    notebook = jupytext.read(source)
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Execute a notebook in place, in `folder`, by a kernel of this interpreter."""
    specs = KernelSpecManager(kernel_dirs=[])  # not another python3 that the user has installed
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    client = NotebookClient(
        notebook, km=kernel, timeout=TIMEOUT, record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # not of a port open on this machine alone
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    client.execute()


def run(source: Path, smoke: bool) -> None:
    """Execute one source; write its .ipynb next to it, unless it is a smoke run."""
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, wherever it is imported
    os.environ["OMP_NUM_THREADS"] = "1"  # small networks: more threads only wait for each other
    os.environ.pop("PYROVAE_SMOKE", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy = Path(shutil.copy(source, folder))
        notebook = convert(copy)
        if smoke:
            os.environ["PYROVAE_SMOKE"] = "1"
            notebook.cells.append(nbformat.v4.new_code_cell(ASSERTED))
        execute(notebook, folder)
    if not smoke:
        nbformat.write(notebook, source.with_suffix(".ipynb"))


def main() -> int:
    """Run the notebooks named, or all."""
    parser = argparse.ArgumentParser(description="Run the notebooks.")
    parser.add_argument("names", nargs="*", help="sources, such as 01 (by default all)")
    parser.add_argument("--smoke", action="store_true", help="small sizes, nothing written")
    arguments = parser.parse_args()
    chosen = [s for s in sources() if s.name.startswith(tuple(arguments.names) or "")]
    if not chosen:
        parser.error(f"expected names of notebooks in {HERE}; got {' '.join(arguments.names)}")
    for source in chosen:
        start = time.perf_counter()
        try:
            run(source, arguments.smoke)
        except CellExecutionError as error:
            print(f"{source.name} failed:\n{error}", file=sys.stderr)
            return 1
        print(f"{source.name}: {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
