"""The command line. It holds no logic that the library lacks."""

import functools
import importlib
import json
import operator
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, evaluate and look at variational autoencoders written as Pyro programs.",
)

Options = list[str] | None


def main() -> None:
    """Run the command line: exit 0, 1 (it failed), 2 (the request was wrong) or 130 (stopped)."""
    app()


def command(function: Callable) -> Callable:
    """Make a command of a function: one message in place of a traceback, and its exit status."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            if function.__name__ != "train":  # which makes such directories, and goes on in them
                _refuse_seeds(kwargs.get("run"), *kwargs.get("runs", ()))
            function(*args, **kwargs)
        except (ValueError, FileNotFoundError) as error:
            _fail(error, 2)
        except (RuntimeError, OSError, ArithmeticError, ImportError) as error:
            if isinstance(error, typer.Exit):
                raise
            _fail(error, 1)
        except KeyboardInterrupt:
            _fail("interrupted", 130)

    return app.command()(wrapped)


def _refuse_seeds(*runs: Path | None) -> None:
    from pyrovae.training.seeds import refuse_seeds

    for run in runs:
        if run is not None:
            refuse_seeds(run)


def _fail(error: object, code: int) -> None:
    say(f"Error: {error}")
    raise typer.Exit(code) from None


def say(message: str) -> None:
    """Print a line for people, on stderr."""
    print(message, file=sys.stderr, flush=True)


def _from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Let a TOML file give defaults to the options that the command line does not name."""
    if path is None:
        return None
    try:
        given = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise typer.BadParameter(f"expected a TOML file at {path}; there is none") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise typer.BadParameter(f"expected TOML in {path}; {error}") from None
    known = {p.name for p in context.command.params} - {"config"}
    values = {key.replace("-", "_"): value for key, value in given.items()}
    unknown = sorted(set(values) - known)
    if unknown:
        raise typer.BadParameter(
            f"expected the keys of {path} to be options of train, such as latent-dim; got "
            f"{', '.join(unknown)}"
        )
    for key in values:
        if key.endswith("_option") and isinstance(values[key], str):
            values[key] = [values[key]]
    if isinstance(values.get("hidden"), list):
        values["hidden"] = ",".join(map(str, values["hidden"]))
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _options(name: str, pairs: Options) -> dict[str, Any]:
    """Parse "key=value" options; a value is JSON where it parses, and text otherwise."""
    parsed: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise ValueError(f"expected {name} key=value; got {pair!r}")
        try:
            parsed[key.replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            parsed[key.replace("-", "_")] = value
    return parsed


def _widths(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(w) for w in text.split(",") if w.strip())
    except ValueError:
        raise ValueError(
            f"expected --hidden to be whole numbers such as 300,300; got {text!r}"
        ) from None


def _device(name: str | None) -> str | None:
    import torch

    if name is None:
        return None
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected --device to name a device of this machine: {reason}") from None
    return name


@command
def train(
    context: typer.Context,
    data: Annotated[
        str, typer.Option(help="digits, mnist, ..., or a .csv, .parquet, .npy or .npz file.")
    ] = "digits",
    data_dir: Annotated[
        Path | None, typer.Option(help="Where named data sets lie (else $PYROVAE_DATA).")
    ] = None,
    download: Annotated[bool, typer.Option(help="Download the data if they are absent.")] = False,
    binarize: Annotated[str, typer.Option(help="none, threshold, static or dynamic.")] = "none",
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Add noise to levels, for a density of them.")
    ] = False,
    standardize: Annotated[
        bool, typer.Option(help="Standardise the real columns of a table.")
    ] = True,
    validation: Annotated[
        int | None, typer.Option(help="Rows that validate; 0 trains on all.")
    ] = None,
    prior: Annotated[str, typer.Option(help="p(z), a class of priors.")] = "standard-normal",
    likelihood: Annotated[
        str | None, typer.Option(help="p(x|z), a class of likelihoods; digits: binomial.")
    ] = None,
    posterior: Annotated[
        str, typer.Option(help="q(z|x), a class of posteriors.")
    ] = "mean-field-normal",
    pair: Annotated[str, typer.Option(help="Class of the pair of model and guide.")] = "vae",
    objective: Annotated[
        str, typer.Option(help="trace-mean-field, trace, manual, ...")
    ] = "trace-mean-field",
    net: Annotated[str, typer.Option(help="mlp, gated-mlp, ..., a factory of nets.")] = "mlp",
    hidden: Annotated[
        str | None, typer.Option(help="Widths of the encoder's layers (else the net's own).")
    ] = None,
    latent_dim: Annotated[int, typer.Option(help="Length of z.")] = 10,
    prior_option: Annotated[
        Options, typer.Option(metavar="KEY=VALUE", help="Option of the prior; repeat.")
    ] = None,
    likelihood_option: Annotated[
        Options, typer.Option(metavar="KEY=VALUE", help="Of the likelihood: variance=fixed:0.1.")
    ] = None,
    posterior_option: Annotated[
        Options, typer.Option(metavar="KEY=VALUE", help="Option of the posterior.")
    ] = None,
    net_option: Annotated[
        Options, typer.Option(metavar="KEY=VALUE", help="Option of the nets: activation=tanh.")
    ] = None,
    pair_option: Annotated[
        Options, typer.Option(metavar="KEY=VALUE", help="Option of the pair.")
    ] = None,
    objective_option: Annotated[
        Options, typer.Option(metavar="KEY=VALUE", help="Of the objective: num_particles=5.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Data a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    optimizer: Annotated[str, typer.Option(help="adam, adamw or normalised-adam.")] = "adam",
    schedule: Annotated[
        str, typer.Option(help="Of the learning rate: constant, cosine or warm-up.")
    ] = "constant",
    compile: Annotated[
        str, typer.Option(help="The step: auto (where it is worth it), always or never.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of weights, order and draws.")] = 0,
    seeds: Annotated[
        int | None,
        typer.Option(help="Train so many, from --seed on, on one split; errors across them."),
    ] = None,
    split_seed: Annotated[
        int | None, typer.Option(help="Of the random split of the data; by default --seed.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ...")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of these options.", callback=_from_file, is_eager=True),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run directory; by default the next free runs/NAME-N.")
    ] = None,
) -> None:
    """Train a pair, and write its weights, history, figures and pictures to a run directory.

    With no option at all: the handwritten digits that scikit-learn carries, in under a minute.

    With --seeds: so many runs RUN/seed-K of the same data, split alike, and their figures with
    standard errors across the seeds, in RUN/seeds.json too. Interrupted, the same command goes on.
    """
    from pyrovae import plots
    from pyrovae.training import experiment
    from pyrovae.training.figures import describe_figures
    from pyrovae.training.seeds import train_seeds

    request: dict[str, Any] = dict(
        data=data, data_dir=data_dir, download=download, binarize=binarize,
        dequantize=dequantize, standardize=standardize, validation=validation, prior=prior,
        likelihood=likelihood, posterior=posterior, pair=pair, objective=objective, net=net,
        hidden=_widths(hidden), latent_dim=latent_dim,
        prior_options=_options("--prior-option", prior_option),
        likelihood_options=_options("--likelihood-option", likelihood_option),
        posterior_options=_options("--posterior-option", posterior_option),
        net_options=_options("--net-option", net_option),
        pair_options=_options("--pair-option", pair_option),
        objective_options=_options("--objective-option", objective_option),
        epochs=epochs, batch_size=batch_size, lr=lr, optimizer=optimizer, schedule=schedule,
        compile=compile, seed=seed, split_seed=split_seed,
        device=_device(device), run=run, say=say,
    )  # fmt: skip

    def draw(result: experiment.Result) -> list[Path]:
        return plots.save_all(result.run, result.vae, result.data, result.history)

    if seeds is not None:
        print(train_seeds(seeds=seeds, after=draw, **request))
        return
    result = experiment.train(**request)
    for path in draw(result):
        say(f"  {path}")
    print(describe_figures(result.figures))


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
