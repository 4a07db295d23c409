"""`pyrovae train`."""

import json
import shlex
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from pyrovae.cli.shared import command, say

Options = list[str] | None


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


OF_THIS_TIME = {
    "run",
    "resume",
    "device",
    "checkpoint_seconds",
    "track",
}  # what may change at --resume


def _named(context: typer.Context) -> set[str]:
    """Return the options that the command line or its file names."""
    names = {str(p.name) for p in context.command.params}
    defaults = ("DEFAULT", None)
    return {
        n for n in names if getattr(context.get_parameter_source(n), "name", None) not in defaults
    }


def _go_on(context: typer.Context, run: Path) -> None:
    """Train with the options that a run was begun with, and those of this time."""
    from pyrovae.pairs import build
    from pyrovae.report.repeating import command
    from pyrovae.training.rundir import read_config

    config = read_config(run)
    words = shlex.split(command(config, build(**config["build"])))[2:]
    for name in sorted(_named(context) - {"resume"}):
        given = context.params[name]
        for value in given if isinstance(given, list | tuple) else [given]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--resume", "--seed", str(config["training"]["seed"])]  # more than those of this time
    if code := context.command.main(words, "train", standalone_mode=False):
        raise typer.Exit(code)


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
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Read training data as they are wanted: .npy, a folder, .parquet."
        ),
    ] = False,
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
        str, typer.Option(help="Of the learning rate: constant, cosine, warm-up or plateau.")
    ] = "constant",
    compile: Annotated[
        str, typer.Option(help="The step: auto (where it is worth it), always or never.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="Of the networks' products in a step: float32 or bf16.")
    ] = "float32",
    nonfinite: Annotated[
        str, typer.Option(help="A step that is not finite: raise, skip:N or back-off:N.")
    ] = "raise",
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --run where it was stopped.")
    ] = False,
    checkpoint_seconds: Annotated[
        float, typer.Option(help="From one checkpoint to the next.")
    ] = 60.0,
    track: Annotated[
        Options, typer.Option(help="tensorboard, mlflow or wandb, beside history.csv; repeat.")
    ] = None,
) -> None:
    """Train a pair, and write its weights, history, figures and pictures to a run directory.

    With no option at all: the handwritten digits that scikit-learn carries, in under a minute.

    Stopped by Ctrl-C, SIGTERM or worse, --run RUN --resume goes on: with these alone by the options
    of the run, with others by those, if they are the same. The end is that of a run never stopped.

    With --seeds: so many runs RUN/seed-K of the same data, split alike, and their figures with
    standard errors across the seeds, in RUN/seeds.json too. Interrupted, the same command goes on.
    """
    if resume and run is not None and _named(context) <= OF_THIS_TIME:
        _go_on(context, run)
        return
    from pyrovae import plots
    from pyrovae.training import experiment
    from pyrovae.training.figures import describe_figures
    from pyrovae.training.seeds import train_seeds

    request: dict[str, Any] = dict(
        data=data, data_dir=data_dir, download=download, binarize=binarize,
        dequantize=dequantize, standardize=standardize, stream=stream, validation=validation,
        prior=prior, likelihood=likelihood, posterior=posterior, pair=pair, objective=objective,
        net=net, hidden=_widths(hidden), latent_dim=latent_dim,
        prior_options=_options("--prior-option", prior_option),
        likelihood_options=_options("--likelihood-option", likelihood_option),
        posterior_options=_options("--posterior-option", posterior_option),
        net_options=_options("--net-option", net_option),
        pair_options=_options("--pair-option", pair_option),
        objective_options=_options("--objective-option", objective_option),
        epochs=epochs, batch_size=batch_size, lr=lr, optimizer=optimizer, schedule=schedule,
        compile=compile, nonfinite=nonfinite, precision=precision, seed=seed, split_seed=split_seed,
        device=_device(device), run=run, checkpoint_seconds=checkpoint_seconds,
        track=track or (), say=say,
    )  # fmt: skip

    def draw(result: experiment.Result) -> list[Path]:
        return plots.save_all(result.run, result.vae, result.data, result.history)

    if seeds is not None:
        print(train_seeds(seeds=seeds, after=draw, **request))
        return
    result = experiment.train(resume=resume, **request)
    if result is None:
        return
    for path in draw(result):
        say(f"  {path}")
    print(describe_figures(result.figures))
