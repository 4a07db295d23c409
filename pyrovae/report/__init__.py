"""The report of one run or several: one HTML file that needs no network."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pyrovae.report.drawing import compared, sections
from pyrovae.report.gathering import Missing, gather, open_run
from pyrovae.report.page import Drawn, Section, document
from pyrovae.training import rundir
from pyrovae.training.comparison import Comparison, compare

__all__ = ["write_report"]

LIMIT, GAP_DATA, PARTICLES = 100, 20, 1000


def write_report(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    limit: int = LIMIT,
    gap_data: int = GAP_DATA,
    num_particles: int = PARTICLES,
    seed: int = 0,
    data_dir: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write a report of trained runs: what `pyrovae report` does.

    One HTML file with all its figures inside; each is also saved, as PNG and SVG, in the folder
    beside it, `NAME_files` of NAME.html. The same runs and arguments give the same file.

    Args:
        runs: directories that `pyrovae train` made; of several, a comparison comes first.
        out: the file; by default report.html in the run, or of several runs in the current folder.
        limit: how many test data evidence and k-hat are of.
        gap_data: how many of these the inference gap is of.
        num_particles: importance samples a datum, at least 30.
        seed: of all draws.
        data_dir: where named data sets lie, if not where the run found them.
        say: is told what is being done.

    Returns:
        The file.

    Raises:
        ValueError: an argument out of its range, a run named twice, a damaged run, data that have
            changed.
        FileNotFoundError: no such run, one without figures, or its data are not there.
    """
    paths = [Path(run) for run in runs]
    if not paths or len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(
            f"expected one run or more, none of them twice; got {', '.join(map(str, paths))}"
        )
    counts = {"limit": (limit, 1), "gap_data": (gap_data, 1), "num_particles": (num_particles, 30)}
    for name, (value, least) in counts.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"expected {name} to be a whole number >= {least}; got {value!r}")
    opened = [open_run(path, data_dir) for path in paths]
    several = len(paths) > 1
    file = (
        Path("report.html" if several else paths[0] / "report.html") if out is None else Path(out)
    )
    if file.suffix != ".html" or file.is_dir() or not file.parent.is_dir():
        raise ValueError(f"expected a file ending in .html in a folder that exists; got '{file}'")
    work = partial(
        gather, limit=limit, gap_data=gap_data, num_particles=num_particles, seed=seed, say=say
    )
    found = [work(one) for one in opened]
    parts: list[tuple[str, str, list[Section]]] = []
    if several:
        parts.append(("comparison-of-runs", "Comparison", [compared(_comparison(paths), found)]))
    for i, g in enumerate(found, 1):
        prefix = f"{i}-" if several else ""
        parts.append((f"run-{i}", str(g.opened.run), sections(g, prefix)))
    folder = file.with_name(f"{file.stem}_files")
    folder.mkdir(exist_ok=True)
    blocks = [b for _, _, contents in parts for section in contents for b in section.blocks]
    for drawn in (b for b in blocks if isinstance(b, Drawn)):
        for kind, content in drawn.files.items():
            rundir.write(folder / f"{drawn.name}.{kind}", partial(_write, content))
    names = ", ".join(path.resolve().name for path in paths)
    lead = (
        f"Written by pyrovae. Evidence and k-hat of up to {limit:,} test data, inference gaps of "
        f"up to {gap_data:,}; seed {seed}. Nats per datum; ± is one standard error. The figures "
        f"are also in the folder {folder.name}."
    )
    html = document(f"pyrovae report: {names}", lead, parts)
    rundir.write(file, lambda p: p.write_text(html, encoding="utf-8"))
    return file


def _comparison(runs: Sequence[Path]) -> Comparison | Missing:
    """Compare the runs, or say why their figures are not alike."""
    try:
        return compare(runs)
    except ValueError as error:
        return Missing(str(error))


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)
