"""A whole run: data, pair, training, figures, and the directory that holds them."""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO, TraceEnum_ELBO
from torch import Tensor

from pyrovae import data as datasets
from pyrovae import likelihoods, nets, objectives, posteriors, priors
from pyrovae.nets.naming import by_name, hyphenated, typed
from pyrovae.objectives import by_objective_name
from pyrovae.optimise import Nonfinite, NormalisedAdam, Plateau, adam, adamw, cosine, warm_up
from pyrovae.pairs import build
from pyrovae.pairs.base import Pair
from pyrovae.pairs.names import PAIRS, exported, level_options, split_masked
from pyrovae.training import ranks, rundir
from pyrovae.training.batches import Batch
from pyrovae.training.evaluation import evaluate as evaluate
from pyrovae.training.evaluation import record
from pyrovae.training.history import History
from pyrovae.training.sources import (
    Rows,
    check_rows,
    classes,
    context_of,
    load_source,
    traits,
)
from pyrovae.training.sources import load_data as load_data
from pyrovae.training.support import (
    of_several_kinds,
    on_the_real_line,
    refuse_to_dequantize,
    takes_levels,
)
from pyrovae.training.tracking import trackers
from pyrovae.training.trainer import check_arguments, fit

OPTIMIZERS = {"adam": adam, "adamw": adamw, "NormalisedAdam": NormalisedAdam}
SCHEDULES = {  # of the learning rate
    "Constant": None, "Cosine": cosine, "WarmUp": warm_up, "Plateau": Plateau(),
}  # fmt: skip
PARTS = (priors, likelihoods, posteriors, nets)


@dataclass(frozen=True)
class Prepared:
    """What is to be trained.

    Attributes:
        vae: the pair, untrained.
        data: what it is to be trained on.
        train: the training data as `fit` takes them, with their context.
        validation: the same of the validation data, None without any.
        objective: what is to be minimised.
        config: what the run's `config.json` is to hold.
    """

    vae: Pair
    data: datasets.Data
    train: Batch
    validation: Batch | None
    objective: ELBO
    config: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        run: its directory.
        vae: the trained pair.
        data: what it was trained on.
        history: of the training.
        figures: of the test data, see `evaluation.figures`.
    """

    run: Path
    vae: Pair
    data: datasets.Data
    history: History
    figures: dict[str, Any]


def train(
    *,
    device: str | None,
    run: Path | None,
    say: Callable[[str], None],
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    track: Sequence[str] = (),
    **request: Any,
) -> Result | None:
    """Train by names, and write the run directory: what `pyrovae train` does.

    Started by torchrun, the processes share each batch, and the first of them does all the rest.

    Args:
        device: where to train; None for where the pair is.
        run: the directory; None for the next free runs/NAME-N.
        say: is told of the data and the pair, and of the end.
        resume: go on in `run` where it was stopped; a run that is not there is begun.
        checkpoint_seconds: see `fit`.
        track: names of trackers, see `training.tracking`.
        **request: of `prepare`.

    Returns:
        What there is to see of it; None in all processes but the first.

    Raises:
        ValueError: a name, an option, a size or data that do not fit, or a run of another request;
            nothing is trained then, and no directory is made.
        FileNotFoundError: data that are not there.
    """
    if resume and run is None:
        raise ValueError("expected --run to name the run to go on with; got --resume without it")
    with ranks.joined_up(device) as device:
        first = ranks.rank() == 0
        prepared = prepare(**request)
        vae, loaded = prepared.vae, prepared.data
        context = context_of(vae, loaded, "test")
        check_rows(vae, loaded.test, context)  # or it would be found once training is done
        path = rundir.next_free("runs", loaded.name) if run is None else run
        training = dict(prepared.config["training"])
        del training["objective_options"]
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            training[name] = by_name(name, training[name], choices)
        with rundir.claimed(path if first else None, resume) as claimed:
            if claimed is not None:
                _begin(claimed, prepared.config)
                say(_headline(loaded, vae, path))
            with trackers(track if first else (), path, prepared.config) as callbacks:
                history = fit(
                    vae.model, vae.guide, prepared.train, device=device, callbacks=callbacks,
                    transform=loaded.transform, validation=prepared.validation, run=path,
                    resume=resume, checkpoint_seconds=checkpoint_seconds,
                    **training | {"objective": prepared.objective},
                )  # fmt: skip
            test = Rows(loaded, "test", loaded.test, context, loaded.record["sha256"])
            found, _ = record(path, vae, test, num_particles=100, seed=0)
        if not first:
            return None
        seconds = sum(r["seconds"] or 0.0 for r in history.epochs)
        say(
            f"{len(history)} epochs in {seconds:.1f} s; the weights are those of epoch "
            f"{history.best_epoch}."
        )
        return Result(path, vae, loaded, history, found)


def _begin(run: Path, config: dict[str, Any]) -> None:
    """Write a run's configuration, or see that it is that of the run to go on with."""
    if not (run / rundir.CONFIG).exists():
        rundir.write_config(run, config)
        return
    groups = {k: v for k, v in json.loads(json.dumps(config)).items() if k != "versions"}
    if differing := rundir.differing(rundir.read_config(run), groups):
        raise ValueError(
            f"expected the options that {run} was begun with; {'; '.join(differing)}: name them as "
            "they were, or --run and --resume alone"
        )


def prepare(
    *,
    data: str,
    data_dir: Path | None,
    download: bool,
    binarize: str,
    dequantize: bool,
    standardize: bool,
    validation: int | None,
    prior: str,
    likelihood: str | None,
    posterior: str,
    objective: str,
    latent_dim: int,
    prior_options: Mapping[str, Any],
    likelihood_options: Mapping[str, Any],
    posterior_options: Mapping[str, Any],
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    split_seed: int | None = None,
    pair: str = "vae",
    pair_options: Mapping[str, Any] | None = None,
    objective_options: Mapping[str, Any] | None = None,
    optimizer: str = "adam",
    schedule: str = "constant",
    compile: str = "auto",
    nonfinite: str = "raise",
    precision: str = "float32",
    stream: bool = False,
    **net: Any,
) -> Prepared:
    """Load the data and build the pair, by names.

    The likelihood, where it is not named, is binomial for the digits and bernoulli for binarised
    data. The decoder starts at the data's mean. With `standardize`, those columns of a table that
    may be any real number are standardised on the training rows. Data may have missing entries
    where the likelihood is a masked one. What context the pair is given: see `sources.context_of`;
    where that is labels, an option `num_classes` is by default as many as the data have. An option
    `num_data` is by default how many data there are to train on. `seed` is of weights, order and
    draws, and, without `split_seed`, of the random split of the data too. With `stream` the
    training data stay on disk, and 10,000 of them stand for all where the decoder's start and the
    range of counts are found: see `data.load`.

    Raises:
        ValueError: a name, an option, a size or data that do not fit.
        FileNotFoundError: data that are not there.
    """
    chosen_objective = _objective(objective, objective_options or {})
    pair_class = by_name("pair", pair, PAIRS)
    by_name("optimizer", optimizer, OPTIMIZERS)
    by_name("schedule", schedule, SCHEDULES)
    likelihood = likelihood or _default_likelihood(data, binarize)
    if likelihood and dequantize:
        refuse_to_dequantize(likelihood)
    if Path(data).is_file() or stream and Path(data).is_dir():
        data = str(Path(data).resolve())
    source: dict[str, Any] = {
        "source": data,
        "values": "levels" if likelihood and takes_levels(likelihood, binarize) else "unit",
        "binarize": binarize, "dequantize": dequantize,
        "missing": likelihood is not None and split_masked(likelihood)[0],
        "validation": validation, "seed": seed if split_seed is None else split_seed,
        **({"stream": True} if stream else {}),
    }  # fmt: skip
    loaded = load_source(source, data_dir, download)
    if likelihood is None:
        names = ", ".join(sorted(hyphenated(name) for name in likelihoods.__all__))
        raise ValueError(
            f"expected a likelihood for {data}: name one with --likelihood ({names}), or binarise "
            "with --binarize for bernoulli"
        )
    options: dict[str, Any] = {
        "prior_options": {**_exemplar_options(prior, len(loaded.train)), **prior_options},
        "likelihood_options": likelihood_options,
        "posterior_options": posterior_options,
    }
    if source["values"] == "levels":
        defaults = _range_options(loaded, prior, likelihood, posterior)
        options = {key: {**defaults.get(key, {}), **given} for key, given in options.items()}
    vae = build(
        data_shape=loaded.data_shape, latent_dim=latent_dim, prior=prior, likelihood=likelihood,
        posterior=posterior, pair=pair, seed=seed, **options, **net,
        pair_options={**_told_options(pair_class, loaded), **(pair_options or {})},
    )  # fmt: skip
    if standardize and len(loaded.data_shape) == 1 and loaded.levels is None:
        columns = on_the_real_line(vae.likelihood).nonzero().flatten().tolist()
        if stream and columns:
            raise ValueError(
                "expected --no-standardize with --stream, which reads no mean of all the data; got "
                "a table of real values: standardise the file itself, or take them as they are"
            )
        loaded = datasets.standardize(loaded, columns) if columns else loaded
    seen = _as_seen(loaded)
    # of values binarised afresh the grey ones are the mean, of levels made real one draw will do
    afresh = binarize == "dynamic" or not loaded.transform
    vae.likelihood.start_at_mean(datasets.sample(loaded.train) if afresh else seen)
    training = {
        "objective": objective, "objective_options": dict(objective_options or {}),
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "optimizer": optimizer,
        "schedule": schedule, "compile": compile, "nonfinite": nonfinite,
        "precision": precision, "seed": seed,
    }  # fmt: skip
    config = {
        "build": vae.config,
        "data": source | {"data_dir": None if data_dir is None else str(data_dir.resolve())},
        "record": loaded.record | traits(source, loaded, data_dir),
        "training": training,
        "versions": {name: version(name) for name in ("pyrovae", "torch", "pyro-ppl")},
    }
    check_arguments(epochs, batch_size, lr, compile, precision=precision)
    Nonfinite(nonfinite)
    if hasattr(vae.prior, "set_exemplars"):
        if stream:
            raise ValueError(
                "expected a prior that is not made of training data with --stream; got "
                f"{prior}: leave --stream out, or take vamp-prior"
            )
        vae.prior.set_exemplars(seen)
    held_out = loaded.validation
    return Prepared(
        vae,
        loaded,
        train=(loaded.train, *context_of(vae, loaded, "train")),
        validation=(held_out, *context_of(vae, loaded, "validation")) if len(held_out) else None,
        objective=chosen_objective,
        config=config,
    )


def _objective(name: str, options: Mapping[str, Any]) -> ELBO:
    """Make an objective by name."""
    chosen = by_objective_name(name)
    given = typed("objective", chosen, options, taken=())
    particles = given.get("num_particles", 1)  # which Pyro's own do not check
    if not isinstance(particles, int) or particles < 1:
        raise ValueError(f"expected num_particles to be a positive whole number; got {particles!r}")
    if chosen is TraceEnum_ELBO:
        given.setdefault("max_plate_nesting", 1)  # the data's; Pyro would guess it, and say so
    return chosen(**given)


def _range_options(
    loaded: datasets.Data, prior: str, likelihood: str, posterior: str
) -> Mapping[str, Mapping[str, Any]]:
    """Return options of `build` that suit whole numbers: see `level_options`.

    Counts of no known maximum are at most what the training data show, as far as the prior and the
    encoder are concerned; columns of several kinds have no range in common.
    """
    if loaded.levels is not None:
        return level_options(loaded.levels, prior, likelihood, posterior)
    if of_several_kinds(likelihood):
        return {}
    top = max(1, int(datasets.sample(loaded.train).nan_to_num(nan=0.0).max()))
    found = dict(level_options(top + 1, prior, likelihood, posterior))
    del found["likelihood_options"]
    return found


def _exemplar_options(prior: str, n: int) -> dict[str, Any]:
    """Return options for a prior made of training data: of n it has no more than n."""
    takes = inspect.signature(by_name("prior", prior, exported(priors))).parameters
    default = takes["num_exemplars"].default if "num_exemplars" in takes else None
    return {"num_exemplars": min(default, n)} if isinstance(default, int) else {}


def _told_options(pair: type[Pair], loaded: datasets.Data) -> dict[str, Any]:
    """Return what a pair asks of its data: how many to train on, how many classes of labels."""
    told, number = {"num_data": len(loaded.train)}, classes(loaded)
    if pair.takes_labels and number is not None:
        told["num_classes"] = number
    takes = inspect.signature(pair.of_names).parameters
    return {name: value for name, value in told.items() if name in takes}


def _as_seen(loaded: datasets.Data) -> Tensor:
    """Return the training data as the pair sees them: one draw of what is drawn afresh."""
    rows = datasets.sample(loaded.train)
    if loaded.transform is None:
        return rows
    return loaded.transform(rows, torch.Generator().manual_seed(0))


def _default_likelihood(data: str, binarize: str) -> str | None:
    if binarize != "none":
        return "bernoulli"
    return "binomial" if data.lower() == "digits" else None


def _headline(data: datasets.Data, vae: Pair, path: Path) -> str:
    sizes = ", ".join(
        f"{len(data.split(s)):,} {s}" for s in datasets.SPLITS if len(getattr(data, s))
    )
    parameters = sum(p.numel() for p in vae.parameters())
    chosen = vae.config or {}
    parts = ", ".join(chosen[p] for p in ("prior", "likelihood", "posterior") if hasattr(vae, p))
    made = f"{hyphenated(type(vae).__name__)} of {parts}; {parameters:,} parameters"
    return f"{data.name} ({sizes}); {made} -> {path}"


def describe() -> str:
    """Return the parts by name and the versions, for people."""
    lines = [f"{package} {version(package)}" for package in ("pyrovae", "torch", "pyro-ppl")]
    lines = [", ".join(lines), f"{torch.get_num_threads()} CPU threads"]
    if torch.cuda.is_available():
        lines.append(f"{torch.cuda.device_count()} CUDA devices")
    choices: dict[str, Iterable[str]] = {"pairs": PAIRS}
    choices |= {module.__name__.split(".")[-1]: module.__all__ for module in PARTS}
    choices |= {"objectives": [*objectives.PYRO_ELBOS, *objectives.__all__]}
    choices |= {"data": [*datasets.NAMES, f"a file {', '.join(datasets.FILES)}"]}
    for name, found in choices.items():
        lines.append(f"{name:<12}{', '.join(hyphenated(n) for n in found)}")
    return "\n".join(lines)


def describe_run(run: Path) -> str:
    """Return a run's configuration and the figures it has, for people.

    Raises:
        FileNotFoundError: no such run.
        ValueError: a damaged file in it.
    """
    config = rundir.read_config(run)
    lines = [str(run)]
    for group in ("build", "data", "training", "versions"):
        lines.append(group)
        lines += [f"  {key:<20}{value}" for key, value in config.get(group, {}).items()]
    metrics = run / "metrics.json"
    if metrics.is_file():
        try:
            found = json.loads(metrics.read_text())
        except ValueError as error:
            raise ValueError(f"{metrics} is damaged: {error}") from None
        lines.append("figures")
        lines += [f"  {key:<20}{value}" for key, value in found.items()]
    return "\n".join(lines)
