"""What the commands share: their arguments, rows that can be gone on with, and the table.

Every row is a directory: what `fit` leaves there, `training.json` once it has ended, and the
evaluation beside it. A command that is given again goes on with the row it was stopped in, and
neither trains nor evaluates one that is finished.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae import evidence, fit, load

Record = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        row: its name.
        ours: the figure.
        error: its standard error over the data; 0 for one that is exact.
        published: the paper's; None where it gives none.
        published_error: what the paper adds by +-.
        epochs: trained for.
        training_seconds: of all epochs, over all processes; compiling is not counted.
        evaluation_seconds: of the process that ended it.
        differs: from the paper, in words.
        digits: of the figures, behind the point.
    """

    row: str
    ours: float
    error: float
    published: float | None = None
    published_error: float | None = None
    epochs: int | None = None
    training_seconds: float | None = None
    evaluation_seconds: float | None = None
    differs: str = ""
    digits: int = 3

    @property
    def difference(self) -> float | None:
        """Ours less the published figure."""
        return None if self.published is None else self.ours - self.published


def parser(description: str, rows: Sequence[str], **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser of the arguments that every table that trains has.

    Args:
        description: one line.
        rows: the names of the rows.
        **defaults: of the arguments, by name.
    """
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--runs", type=Path, required=True, help="folder of the run directories")
    made.add_argument("--rows", nargs="+", choices=rows, default=list(rows), metavar="ROW",
                      help=f"of {', '.join(rows)}")  # fmt: skip
    made.add_argument("--seed", type=int, default=0, help="of weights, batches and draws")
    made.add_argument("--limit", type=int, help="images to evaluate, the first so many")
    made.add_argument("--num-particles", type=int, default=5000, help="draws an image")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.set_defaults(**defaults)
    return made


def parsed(made: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments, and give torch its threads.

    Raises:
        SystemExit: 2, with the reason on stderr.
    """
    options = made.parse_args(arguments)
    least = {
        "epochs": 1, "stages": 1, "cosine": 1, "warm_up": 0, "limit": 2, "num_particles": 1,
        "threads": 1,
    }  # fmt: skip
    for name, low in least.items():
        value = getattr(options, name, None)
        if value is not None and value < low:
            made.error(f"expected --{name.replace('_', '-')} to be {low} or more; got {value}")
    epochs = epochs_of(options)
    warm_up = getattr(options, "warm_up", 0)
    if warm_up > epochs:
        made.error(
            f"expected --warm-up of at most the {epochs} epochs of training; got {warm_up}: "
            "training would end at a beta below 1"
        )
    torch.set_num_threads(options.threads)
    return options


def epochs_of(options: argparse.Namespace) -> int:
    """Return the epochs that are asked for: those of the stages, where the table has stages."""
    if hasattr(options, "stages"):
        return Stages(options.stages).epochs
    return int(options.epochs)


def warm_up(length: int) -> Callable[[int], float]:
    """Return beta by epoch, from 0: min(1, (epoch + 1) / length)."""
    return lambda epoch: min(1.0, (epoch + 1) / max(length, 1))


@dataclass(frozen=True)
class Stages:
    """The factor 10^(-i/7) of the learning rate over the 3^i epochs of stage i = 0, 1, ...

    Burda et al. (2016), section 5.

    Attributes:
        number: how many of the paper's 8 stages.
    """

    number: int

    @property
    def epochs(self) -> int:
        """(3^number - 1) / 2, of all stages."""
        return (3**self.number - 1) // 2

    def __call__(self, progress: float) -> float:
        """Return the factor when so much of training is done, in [0, 1)."""
        epoch = math.floor(progress * self.epochs + 1e-6)  # the first step of one is not before it
        stage = next(i for i in range(self.number + 1) if epoch < (3 ** (i + 1) - 1) // 2)
        return float(10 ** (-stage / 7))


def train(run: Path, pair: Any, x: Tensor, **options: Any) -> Record:
    """Train a pair in a run directory, go on with that, or take the weights of one that ended.

    Args:
        run: the directory.
        pair: a pair at its initial weights; it is left at the trained ones.
        x: data.
        **options: of `fit`.

    Returns:
        Epochs that it was trained for, the one whose weights are kept, and seconds.
    """
    ended = run / "training.json"
    if ended.is_file():
        load(run, into=(pair.model, pair.guide))
        return read(ended)
    say(f"training in {run}")
    history = fit(pair.model, pair.guide, x, run=run, resume=True, **options)
    record = {
        "epochs": len(history),
        "best_epoch": history.best_epoch,
        "seconds": sum(s or 0.0 for s in history["seconds"]),
    }
    keep(ended, record)
    return record


def evaluate(run: Path, pair: Any, x: Tensor, num_particles: int) -> Record:
    """Return log p(x) by importance samples, image by image, and seconds; kept beside the run."""
    name = f"evaluation-{len(x)}x{num_particles}"
    return once(run / f"{name}.json", lambda: {
        "log_evidence": evidence.iwae(
            pair.model, pair.guide, x, num_particles=num_particles,
            progress=sys.stderr.isatty(), resume=run / f"{name}.safetensors",
        ).log_evidence.tolist()
    })  # fmt: skip


def once(path: Path, work: Callable[[], Record]) -> Record:
    """Return what a file keeps, or what `work` returns, with its seconds, which is then kept."""
    if path.is_file():
        return read(path)
    say(f"evaluating {path.parent}")
    start = time.perf_counter()
    found = work()
    found["seconds"] = time.perf_counter() - start
    keep(path, found)
    return found


def keep(path: Path, content: Record) -> None:
    """Write JSON, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, allow_nan=False) + "\n")
    part.replace(path)


def read(path: Path) -> Record:
    """Return what `keep` wrote."""
    found: Record = json.loads(path.read_text())
    return found


def mean(values: Sequence[float], factor: float = 1.0) -> tuple[float, float]:
    """Return factor times the mean of values, and its standard error, sd / sqrt(n)."""
    t = factor * torch.tensor(values, dtype=torch.float64)
    return float(t.mean()), float(t.std() / math.sqrt(len(t)))


def of_run(
    row: str,
    training: Record,
    evaluation: Record,
    published: tuple[float | None, float | None],
    factor: float = -1.0,
    differs: str = "",
) -> Line:
    """Return the line of one run.

    Args:
        row: its name.
        training: from `train`.
        evaluation: from `evaluate`.
        published: figure, and what is added by +-.
        factor: of log p(x): -1 for nats, -1 / (D ln 2) for bits a dimension.
        differs: from the paper.
    """
    ours, error = mean(evaluation["log_evidence"], factor)
    return Line(
        row, ours, error, *published, training["epochs"], training["seconds"],
        evaluation["seconds"], differs,
    )  # fmt: skip


def of_pairs(
    row: str, first: Record, second: Record, published: float | None, factor: float = -1.0,
    differs: str = "",
) -> Line:  # fmt: skip
    """Return the line of a difference, first less second, image by image. Arguments: see above."""
    pairs = zip(first["log_evidence"], second["log_evidence"], strict=True)
    ours, error = mean([a - b for a, b in pairs], factor)
    return Line(row, ours, error, published, differs=differs)


def departures(asked: Mapping[str, tuple[Any, Any]], *others: str) -> str:
    """Return in words where what was asked for is not what was published.

    Args:
        asked: by name, what was asked for and what was published.
        *others: what else differs.
    """
    found = [f"{name} {ours} (published {theirs})" for name, (ours, theirs) in asked.items()
             if ours != theirs]  # fmt: skip
    return "; ".join([*found, *others])


def setting(options: argparse.Namespace, x: Tensor) -> Record:
    """Return what is told of all rows of a table: of the arguments, and of the data evaluated."""
    return {
        "seed": options.seed,
        "images": len(x),
        "draws": options.num_particles,
        "threads": options.threads,
    }


def show(title: str, setting: Record, lines: Sequence[Line], as_json: bool = False) -> None:
    """Print the table.

    Args:
        title: what the figures are.
        setting: seed, images and so on.
        lines: the rows.
        as_json: print one JSON object.
    """
    if as_json:
        rows = [asdict(line) | {"difference": line.difference} for line in lines]
        print(json.dumps({"title": title, "setting": setting, "rows": rows}))
        return
    print(title)
    told = (f"{v:.1g}" if isinstance(v, float) else str(v) for v in setting.values())
    print(", ".join(f"{name} {value}" for name, value in zip(setting, told, strict=True)))
    width = max(len(line.row) for line in lines)
    heads = ("ours", "+-", "published", "+-", "difference", "epochs", "training", "evaluation")
    print(f"\n{'':{width}}" + "".join(f"{head:>{_width(head)}}" for head in heads))
    for line, below in zip(lines, [*lines[1:], None], strict=True):
        d = line.digits
        cells = (
            _number(line.ours, d), _number(line.error, d) if line.error else "exact",
            _number(line.published, d), _number(line.published_error, d),
            _number(line.difference, d, "+"),
            "-" if line.epochs is None else str(line.epochs),
            _seconds(line.training_seconds), _seconds(line.evaluation_seconds),
        )  # fmt: skip
        padded = zip(heads, cells, strict=True)
        print(f"{line.row:{width}}" + "".join(f"{c:>{_width(h)}}" for h, c in padded))
        if line.differs and (below is None or below.differs != line.differs):  # once for them all
            print(f"    differs: {line.differs}")


def command(main: Callable[[], None]) -> None:
    """Run a command; one that is stopped says how to go on, and exits with 130."""
    try:
        main()
    except KeyboardInterrupt as stopped:
        say(f"{stopped or 'stopped'}: give the same command again")
        raise SystemExit(130) from None


def say(words: str) -> None:
    """Tell on stderr how far it is."""
    print(words, file=sys.stderr, flush=True)


def _width(head: str) -> int:
    return 9 if head == "+-" else 13


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} s"
