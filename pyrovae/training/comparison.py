"""Runs beside one another: which has the best evidence, and by how much more than chance."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyrovae.nets.naming import normalised
from pyrovae.training import rundir

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {  # of the table, and their widths
    "log p(x)": 22, "less the best": 20, "ELBO": 11, "KL": 9, "bits/dim": 10, "epochs": 8,
    "parameters": 12,
}  # fmt: skip
NAMED = ("elbo", "kl", "log_evidence", "log_evidence_se", "bits_per_dim")  # figures of a row
MEASURED = ("split", "n", "num_particles")  # how figures came about


@dataclass(frozen=True)
class Row:
    """One run of a comparison; figures are means per datum, in nats.

    Attributes:
        run: its directory.
        pair: the pair's name.
        prior: the prior's name.
        likelihood: the likelihood's name.
        posterior: the posterior's name.
        log_evidence: log p(x).
        log_evidence_se: its standard error over the data.
        difference: its log p(x) less that of the best run; 0 for the best.
        difference_se: the standard error of that, paired: sd of the differences / sqrt(n).
        elbo: the ELBO.
        kl: KL(q(z|x) || p(z)).
        bits_per_dim: bits per dimension, where they are known.
        epochs: how many it was trained.
        parameters: how many are trained.
    """

    run: str
    pair: str
    prior: str
    likelihood: str
    posterior: str
    log_evidence: float
    log_evidence_se: float | None
    difference: float
    difference_se: float | None
    elbo: float
    kl: float
    bits_per_dim: float | None
    epochs: int
    parameters: int

    @property
    def parts(self) -> str:
        """What it is made of: the names of its parts, and of a pair that is no VAE."""
        parts = f"{self.prior}, {self.likelihood}, {self.posterior}"
        return parts if normalised(self.pair) == "vae" else f"{self.pair} of {parts}"


@dataclass(frozen=True)
class Comparison:
    """Runs on the same data, best first; `str()` is the table.

    Attributes:
        data: the data set's source.
        split: of the data.
        n: how many data.
        evidence: how log p(x) was found: "iwae", "ais" or "exact".
        num_particles: importance samples a datum.
        measure: of log p(x): "mass", "density", or which columns are the one.
        sha256: fingerprint of the data.
        rows: one a run.
    """

    data: str
    split: str
    n: int
    evidence: str
    num_particles: int
    measure: str
    sha256: str
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it all as JSON-able data."""
        return asdict(self)

    def to_dataframe(self) -> "pd.DataFrame":
        """Return a pandas table, one row a run."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def __str__(self) -> str:
        sampled = {
            "iwae": f"{self.num_particles:,} importance samples",
            "ais": "annealed importance sampling",
        }
        how = sampled.get(self.evidence, self.evidence)
        lines = [
            f"{Path(self.data).name}, {self.split} data, {self.n:,}; log p(x): {how}",
            "Nats per datum, +- standard error over the data; that of a difference is paired.",
            "",
            _line(COLUMNS),
        ]
        for rank, row in enumerate(self.rows, 1):
            cells = [
                _with_error(row.log_evidence, row.log_evidence_se),
                _with_error(row.difference, row.difference_se) if rank > 1 else "best",
                f"{row.elbo:.3f}",
                f"{row.kl:.3f}",
                "-" if row.bits_per_dim is None else f"{row.bits_per_dim:.4f}",
                str(row.epochs),
                f"{row.parameters:,}",
            ]
            lines += [f"{rank}  {row.run}: {row.parts}", _line(cells)]
        return "\n".join(lines)


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Compare runs by the log p(x) of each datum, as `train` or `evaluate` left it in them.

    Args:
        runs: directories of runs whose figures are of the same rows, found in the same way.

    Returns:
        Comparison, best first.

    Raises:
        FileNotFoundError: no such run, or one without figures.
        ValueError: fewer than two runs, or the same one twice; a damaged one; a probability mass
            against a density; test data that differ; or figures found otherwise, and then the
            message says what to run.

    Example:
        >>> compare(["runs/digits-1"])
        Traceback (most recent call last):
        ValueError: expected two runs or more, none of them twice; got runs/digits-1
    """
    paths = [Path(run) for run in runs]
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise ValueError(
            f"expected two runs or more, none of them twice; got {', '.join(map(str, paths))}"
        )
    first, *others = measured = [_read(path) for path in paths]
    for other in others:
        _check(first, other)
    best, *_ = ranked = sorted(measured, key=lambda m: m.figures["log_evidence"], reverse=True)
    return Comparison(
        data=first.config["data"]["source"],
        evidence=first.evidence,
        measure=first.figures["measure"],
        sha256=first.figures["sha256"],
        rows=tuple(_row(m, best) for m in ranked),
        **{key: first.figures[key] for key in MEASURED},
    )


def paired(x: Tensor, y: Tensor) -> tuple[float, float | None]:
    """Return the mean of x - y, and its standard error: sd(x - y) / sqrt(n).

    What is common to x and y, which is most of how log p(x) varies over the data, cancels.

    Args:
        x: (N,).
        y: (N,), of the same data.
    """
    difference = (x.double() - y.double()).detach()
    n = len(difference)
    return float(difference.mean()), float(difference.std() / math.sqrt(n)) if n > 1 else None


@dataclass(frozen=True)
class _Measured:
    """A run and its figures.

    Attributes:
        run: its directory.
        config: what it was made of.
        figures: its metrics.
        log_evidence: log p(x) of each datum, (N,).
        epochs: how many it was trained.
        parameters: how many are trained.
    """

    run: Path
    config: dict[str, Any]
    figures: dict[str, Any]
    log_evidence: Tensor
    epochs: int
    parameters: int

    @property
    def evidence(self) -> str:
        """How log p(x) was found."""
        method = self.figures.get("method", "iwae")
        return method if method in ("iwae", "ais") else "exact"

    @property
    def manner(self) -> str:
        """How the figures came about, for people."""
        split, n, particles = (self.figures[key] for key in MEASURED)
        return f"{self.run}: {n:,} {split} data, {self.evidence}, {particles:,} importance samples"

    def command(self, run: Path) -> str:
        """Return the command that evaluates another run in the same manner."""
        split, n, particles = (self.figures[key] for key in MEASURED)
        words = f"pyrovae evaluate {run} --split {split} --num-particles {particles}"
        if self.evidence != "iwae":
            words += f" --evidence {self.evidence}"
        return words if n == self.config["record"]["sizes"][split] else f"{words} --limit {n}"


def _read(run: Path) -> _Measured:
    config = rundir.read_config(run)
    path = run / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"expected figures in {path}; there are none: run `pyrovae evaluate {run}`"
        )
    try:
        figures = json.loads(path.read_text())
        each = rundir.read_tensors(run / "evaluation.safetensors")["log_evidence"]
        with (run / "history.csv").open(newline="") as file:
            epochs = len(list(csv.DictReader(file)))
        whole = len(each) == figures["n"] and math.isclose(
            float(each.double().mean()), figures["log_evidence"], rel_tol=1e-9
        )
        missing = {*NAMED, *MEASURED, "sha256", "measure"} - set(figures)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"the figures of {run} are damaged: {error!r}; run `pyrovae evaluate {run}`"
        ) from None
    if missing or not whole or "sha256" not in config.get("record", {}):
        raise ValueError(
            f"expected {run} to hold the figures of `pyrovae evaluate` of this version; it does "
            f"not: run `pyrovae evaluate {run}`"
        )
    vae = rundir.load(run)
    return _Measured(run, config, figures, each, epochs, sum(p.numel() for p in vae.parameters()))


def _check(first: _Measured, other: _Measured) -> None:
    """Refuse two runs whose figures say nothing about one another."""
    kinds = [m.figures["measure"] for m in (first, other)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"expected log p(x) of one kind; that of {first.run} is a probability {kinds[0]}, that "
            f"of {other.run} a probability {kinds[1]}, whose nats depend on the units of x: "
            "compare runs of one kind, or bits per dimension where the density's run was trained "
            "with --dequantize"
        )
    contexts = [m.figures.get("context") for m in (first, other)]
    if contexts[0] != contexts[1]:
        given, alone = sorted((first, other), key=lambda m: m.figures.get("context") is None)
        raise ValueError(
            f"expected pairs of one context; {given.run} is given {given.figures['context']}, "
            f"which tell of x, and {alone.run} is not: compare runs of one kind"
        )
    records = [m.config["record"] for m in (first, other)]
    if records[0]["sha256"] != records[1]["sha256"]:
        differing = "; ".join(
            f"{key} {records[0][key]!r} against {records[1].get(key)!r}"
            for key in records[0]
            if key not in ("sha256", "loc", "scale") and records[0][key] != records[1].get(key)
        )
        raise ValueError(
            f"expected runs with the same test data; those of {first.run} and {other.run} differ "
            f"({differing or 'the file has changed'}): train them on the same"
        )
    manners = [(m.evidence, *(m.figures[key] for key in MEASURED)) for m in (first, other)]
    if manners[0] != manners[1]:
        raise ValueError(
            f"expected figures found in one manner; got {first.manner}, but {other.manner}: run "
            f"`{first.command(other.run)}`"
        )
    if first.figures["sha256"] != other.figures["sha256"]:
        raise ValueError(
            f"expected figures of the same rows; the {first.figures['split']} data of {first.run} "
            f"and {other.run} differ, as another --validation or --seed makes them: compare test "
            "data"
        )


def _row(one: _Measured, best: _Measured) -> Row:
    difference, error = paired(one.log_evidence, best.log_evidence)
    return Row(
        run=str(one.run),
        pair=one.config["build"].get("pair", "vae"),  # which older runs do not name
        **{part: one.config["build"][part] for part in ("prior", "likelihood", "posterior")},
        difference=difference,
        difference_se=error,
        epochs=one.epochs,
        parameters=one.parameters,
        **{key: one.figures[key] for key in NAMED},
    )


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" + ("" if error is None else f" +- {error:.3f}")


def _line(cells: Iterable[str]) -> str:
    return "".join(f"{c:>{width}}" for c, width in zip(cells, COLUMNS.values(), strict=True))
