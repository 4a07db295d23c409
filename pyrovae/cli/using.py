"""The commands that use what was trained."""

import importlib
import json
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pyrovae.cli.shared import command, say

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A directory that train made.")]
Split = Annotated[str | None, typer.Option(help="train, validation or test; by default test.")]
NewData = Annotated[
    Path | None,
    typer.Option(
        help="New data: a .csv, .parquet, .npy or .npz file, all of it, in the run's units."
    ),
]


@command
def evaluate(
    run: Run,
    split: Split = None,
    data: NewData = None,
    evidence: Annotated[str, typer.Option(help="iwae, ais, exact, quadrature, ...")] = "iwae",
    num_particles: Annotated[int, typer.Option(help="Importance samples a datum.")] = 1000,
    limit: Annotated[int | None, typer.Option(help="The first so many data alone.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where named data sets lie.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A .safetensors file for the values of each datum.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print ELBO, KL, reconstruction and log p(x) of a trained run, with standard errors.

    Those of its own data are kept in the run, for compare; those of new data are not.
    """
    from pyrovae.training import evaluation
    from pyrovae.training.figures import describe_figures

    figures = evaluation.evaluate(
        run, split=split, data=data, evidence=evidence, num_particles=num_particles, limit=limit,
        data_dir=data_dir, out=out, seed=seed, say=say,
    )  # fmt: skip
    if as_json:
        reason = figures.pop("bits_per_dim_reason", None)
        if reason:
            say(f"bits_per_dim is null: {reason}")
        print(json.dumps(figures, allow_nan=False))
    else:
        print(describe_figures(figures))


@command
def encode(
    run: Run,
    split: Split = None,
    data: NewData = None,
    out: Annotated[
        Path | None,
        typer.Option(help="An .npz, .npy, .csv or .parquet file; else RUN/encoded.npz."),
    ] = None,
    num_draws: Annotated[
        int | None, typer.Option(help="Draws of z a datum; else its mean and sd alone.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where named data sets lie.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Write the latents of data, by a trained run: mean and sd of q(z|x), or draws z of it.

    An .npz holds the arrays mean, sd and draws; an .npy the means, or the draws (num-draws, N, d);
    a table has a row a datum, columns z_0, z_1, ..., sd_0, ..., or a row a draw.
    """
    from pyrovae.training.encoding import encode as encoded

    path, found = encoded(
        run, split=split, data=data, out=out, num_draws=num_draws, data_dir=data_dir, seed=seed
    )
    say("; ".join(f"{name} {tuple(array.shape)}" for name, array in found.items()))
    print(path)


@command
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Two runs or more.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare runs by log p(x) of the same data, best first, with paired standard errors.

    Reads what train or evaluate left in each; where those are not alike, says what to evaluate.
    """
    from pyrovae.training import comparison

    found = comparison.compare(runs)
    print(json.dumps(found.to_dict(), allow_nan=False) if as_json else found)


@command
def sample(
    run: Run,
    n: Annotated[int, typer.Option("--n", "-n", help="How many.")] = 60,
    out: Annotated[
        Path | None, typer.Option(help="A .png, or .npy for the numbers; else RUN/samples.png.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Draw from a trained model: a picture of p(x|z)'s mean, or with --out FILE.npy the draws x.

    The numbers (.npy) of a table are in its own units; the picture is as the model sees them.
    """
    import numpy as np

    from pyrovae import plots
    from pyrovae.training import evaluation, load, rundir, sources

    if n < 1:
        raise ValueError(f"expected --n to be a positive whole number; got {n}")
    path = run / "samples.png" if out is None else out
    if path.suffix not in (".png", ".npy"):
        raise ValueError(f"expected --out to end in .png or .npy; got '{path}'")
    if not path.parent.is_dir() and out is not None:
        raise ValueError(f"expected --out in a folder that exists; there is no '{path.parent}'")
    if path.suffix == ".png":
        vae = load(run)
        c = sources.context_of_samples(run, vae, n)
        plots.save(plots.samples(vae, *c, n=n, seed=seed), path)
    else:
        x = evaluation.draw(run, n, seed=seed).numpy()
        rundir.write(path, lambda p: np.save(p, x))
    print(path)


@command
def check(
    model: Annotated[str, typer.Argument(metavar="MODULE:MODEL", help="Such as mine:model.")],
    guide: Annotated[str, typer.Argument(metavar="MODULE:GUIDE", help="Such as mine:vae.guide.")],
    data: Annotated[str, typer.Option(help="digits, ..., or a .csv, .parquet, .npy, .npz file.")],
    values: Annotated[str, typer.Option(help="unit or levels, of whole-numbered data.")] = "unit",
    binarize: Annotated[str, typer.Option(help="none, threshold, static or dynamic.")] = "none",
    data_dir: Annotated[Path | None, typer.Option(help="Where named data sets lie.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Check a pair of your own: is it valid, and do the estimators of its ELBO agree?

    MODULE is a dotted name or a .py file. Exits 1 when a check fails.
    """
    import torch

    from pyrovae import data as datasets
    from pyrovae.testing import check_pair

    loaded = datasets.load(data, values=values, binarize=binarize, data_dir=data_dir)
    x = loaded.split("train")[:64]
    if loaded.transform is not None:
        x = loaded.transform(x, torch.Generator().manual_seed(seed))
    report = check_pair(_imported(model), _imported(guide), x, seed=seed)
    print(report)
    if not report.ok:
        raise typer.Exit(1)


def _imported(name: str) -> Callable:
    """Return what MODULE:NAME names, MODULE being importable from here or a .py file."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"expected MODULE:NAME, such as mine:model; got {name!r}")
    path = Path(module)
    folder = path.parent if path.suffix == ".py" else Path()
    sys.path.insert(0, str(folder.resolve()))
    try:
        found = importlib.import_module(path.stem if path.suffix == ".py" else module)
        return operator.attrgetter(attribute)(found)
    except ModuleNotFoundError as error:
        raise ValueError(f"expected a module in {name!r}: {error}") from None
    except AttributeError as error:
        raise ValueError(f"expected {attribute} in {module}: {error}") from None
    finally:
        sys.path.pop(0)


@command
def info(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A directory that train made.")
    ] = None,
    parts: Annotated[
        bool, typer.Option("--parts", help="Every part, with its formula and paper.")
    ] = False,
) -> None:
    """Say what a run is made of; without one, the parts by name and the versions."""
    from pyrovae.training import catalogue, experiment

    if parts and run is not None:
        raise ValueError(f"expected either --parts or a run; got both, --parts and {run}")
    if parts:
        print(catalogue.describe_parts())
    else:
        print(experiment.describe() if run is None else experiment.describe_run(run))


@command
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="One run or more.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The .html file; else RUN/report.html, of several runs report.html."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Test data that evidence and k-hat are of.")] = 100,
    gap_data: Annotated[int, typer.Option(help="Test data that the inference gap is of.")] = 20,
    data_dir: Annotated[Path | None, typer.Option(help="Where named data sets lie.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Write what there is to see of trained runs to one HTML file that needs no network.

    Its figures are saved beside it too, as PNG and SVG, in the folder report_files.
    """
    from pyrovae.report import write_report

    print(
        write_report(
            runs, out, limit=limit, gap_data=gap_data, seed=seed, data_dir=data_dir, say=say
        )
    )
