"""A whole run: data, pair, training, figures, and the directory that holds them."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from tqdm import tqdm

from pyrovae import data as datasets
from pyrovae import likelihoods, nets, objectives, posteriors, priors
from pyrovae.evidence import (
    Evidence,
    ExactEvidence,
    Summary,
    enumeration,
    exact,
    linear_gaussian,
    quadrature,
    summarise,
)
from pyrovae.objectives import by_objective_name
from pyrovae.pairs import VAE, build
from pyrovae.pairs.names import by_name, exported, hyphenated, level_options
from pyrovae.training import rundir
from pyrovae.training.history import History
from pyrovae.training.trainer import check_arguments, fit

PARTS = (priors, likelihoods, posteriors, nets)
METHODS = {
    "iwae": None,
    "exact": exact,
    "quadrature": quadrature,
    "linear_gaussian": linear_gaussian,
    "enumeration": enumeration,
}
CHUNK = 100  # rows evaluated at once


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        run: its directory.
        vae: the trained pair.
        data: what it was trained on.
        history: of the training.
        figures: of the test data, see `figures`.
    """

    run: Path
    vae: VAE
    data: datasets.Data
    history: History
    figures: dict[str, Any]


def train(
    *,
    data: str,
    data_dir: Path | None,
    download: bool,
    binarize: str,
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
    device: str | None,
    run: Path | None,
    say: Callable[[str], None],
    **net: Any,
) -> Result:
    """Train by names, and write the run directory: what `pyrovae train` does.

    The likelihood, where it is not named, is binomial for the digits and bernoulli for binarised
    data. The decoder starts at the data's mean.

    Raises:
        ValueError: a name, an option, a size or data that do not fit; nothing is trained then, and
            no directory is made.
        FileNotFoundError: data that are not there.
    """
    chosen_objective = by_objective_name(objective)()
    likelihood = likelihood or _default_likelihood(data, binarize)
    if Path(data).is_file():
        data = str(Path(data).resolve())
    source: dict[str, Any] = {
        "source": data, "values": "levels" if likelihood and _takes_levels(likelihood) else "unit",
        "binarize": binarize, "validation": validation, "seed": seed,
    }  # fmt: skip
    loaded = datasets.load(**source, data_dir=data_dir, download=download)
    if likelihood is None:
        names = ", ".join(sorted(hyphenated(name) for name in likelihoods.__all__))
        raise ValueError(
            f"expected a likelihood for {data}: name one with --likelihood ({names}), or binarise "
            "with --binarize for bernoulli"
        )
    options: dict[str, Any] = {
        "prior_options": prior_options,
        "likelihood_options": likelihood_options,
        "posterior_options": posterior_options,
    }
    if loaded.levels is not None and source["values"] == "levels":
        defaults = level_options(loaded.levels, prior, likelihood, posterior)
        options = {key: {**defaults[key], **given} for key, given in options.items()}
    vae = build(
        data_shape=loaded.data_shape, latent_dim=latent_dim, prior=prior, likelihood=likelihood,
        posterior=posterior, seed=seed, **options, **net,
    )  # fmt: skip
    vae.likelihood.start_at_mean(loaded.train)
    training = {
        "objective": objective, "epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed,
    }  # fmt: skip
    config = {
        "build": vae.config,
        "data": source | {"data_dir": None if data_dir is None else str(data_dir.resolve())},
        "record": loaded.record,
        "training": training,
        "versions": {name: version(name) for name in ("pyrovae", "torch", "pyro-ppl")},
    }
    check_arguments(epochs, batch_size, lr)
    path = rundir.next_free("runs", loaded.name) if run is None else run
    say(_headline(loaded, vae, path))
    history = fit(
        vae.model, vae.guide, loaded.train, objective=chosen_objective, epochs=epochs,
        batch_size=batch_size, lr=lr, seed=seed, device=device, transform=loaded.transform,
        validation=loaded.validation if len(loaded.validation) else None, run=path,
    )  # fmt: skip
    rundir.write_json(path / "config.json", config)
    found = _record(path, vae, loaded, "test", loaded.test, num_particles=100, seed=0)
    seconds = sum(r["seconds"] or 0.0 for r in history.epochs)
    say(
        f"{len(history)} epochs in {seconds:.1f} s; the weights are those of epoch "
        f"{history.best_epoch}."
    )
    return Result(path, vae, loaded, history, found)


def evaluate(
    run: Path,
    *,
    split: str = "test",
    evidence: str = "iwae",
    num_particles: int = 1000,
    limit: int | None = None,
    data_dir: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a trained run on a split of its data: what `pyrovae evaluate` does.

    Writes the figures to `metrics.json` and those of each datum to `evaluation.safetensors`.

    Args:
        run: the directory.
        split: train, validation or test.
        evidence: how log p(x) is found: iwae, or in place of it exact, quadrature, linear-gaussian
            or enumeration, with the importance estimate and its k-hat beside it.
        num_particles: importance samples a datum.
        limit: the first so many data alone.
        data_dir: where torchvision's data lie, if not where the run found them.
        seed: of the draws.

    Returns:
        The figures, see `figures`.

    Raises:
        ValueError: an argument out of its range, a damaged run, or data that are not the run's.
        FileNotFoundError: no such run, or its data are not there.
    """
    method = by_name("evidence", evidence, METHODS)
    if limit is not None and limit < 1:
        raise ValueError(f"expected limit to be a positive whole number; got {limit}")
    vae = rundir.load(run)
    assert vae is not None
    loaded = load_data(run, data_dir)
    x = loaded.split(split)[:limit]
    if loaded.transform is not None and split == "train":
        x = loaded.transform(x, torch.Generator().manual_seed(seed))
    return _record(
        Path(run), vae, loaded, split, x, num_particles=num_particles, seed=seed, method=method
    )


def load_data(run: Path, data_dir: Path | None = None) -> datasets.Data:
    """Load the data of a run again.

    Raises:
        ValueError: the run's record is damaged, or the test data are not those of the run.
        FileNotFoundError: no such run, or its data are not there.
    """
    config = rundir.read_config(run)
    if "source" not in config.get("data", {}) or "sha256" not in config.get("record", {}):
        raise ValueError(
            f"expected {run}/config.json to name the data; it does not: the run was made by "
            "fit(run=...), so use pyrovae.load and evidence.iwae on data of your own"
        )
    source = dict(config["data"])
    loaded = datasets.load(**source | {"data_dir": data_dir or source.get("data_dir")})
    if loaded.record["sha256"] != config["record"]["sha256"]:
        raise ValueError(
            f"expected the data that {run} was trained on; {source['source']} has changed since"
        )
    return loaded


def figures(summary: Summary, vae: VAE, data: datasets.Data) -> dict[str, Any]:
    """Return mean figures of a summary.

    Keys: `elbo`, `reconstruction`, `kl` and `log_evidence`, in nats per datum, each with its `_se`
    (standard deviation over the data / sqrt(n)); `num_particles` is left to the caller;
    `bits_per_dim` = -log_evidence / (D ln 2) for discrete data, and for a density None with
    `bits_per_dim_reason`; `n`.
    """
    columns = {
        "elbo": summary.elbo, "reconstruction": summary.reconstruction, "kl": summary.kl,
        "log_evidence": summary.evidence.log_evidence,
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, column in columns.items():
        n = len(column)
        found[name] = float(column.double().mean())
        found[f"{name}_se"] = float(column.double().std() / math.sqrt(n)) if n > 1 else None
    if likelihood_support(vae).is_discrete:
        dimensions = math.prod(data.data_shape)
        found["bits_per_dim"] = -found["log_evidence"] / (dimensions * math.log(2))
    else:
        found["bits_per_dim"] = None
        found["bits_per_dim_reason"] = (
            f"{type(vae.likelihood).__name__} is a density, and the data are not dequantised: a "
            "density at lattice points bounds no number of bits"
        )
    return found | {"n": len(summary.elbo)}


def likelihood_support(vae: VAE) -> constraints.Constraint:
    """Return the support of one element of x."""
    like = next(vae.parameters())
    z = torch.zeros(1, vae.likelihood.latent_dim, dtype=like.dtype, device=like.device)
    support = vae.decode(z).support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _record(
    run: Path,
    vae: VAE,
    data: datasets.Data,
    split: str,
    x: Tensor,
    *,
    num_particles: int,
    seed: int,
    method: Callable[..., ExactEvidence] | None = None,
) -> dict[str, Any]:
    """Evaluate, and write what was found."""
    parts, exactly = [], []
    chunks = x.split(CHUNK)
    bar = tqdm(chunks, unit_scale=CHUNK, unit="data", disable=None, leave=False)
    for i, rows in enumerate(bar):
        noise = seed * len(chunks) + i  # of each chunk its own, or their errors would add up
        if method is not None:  # first: it may refuse
            exactly.append(method(vae.model, vae.guide, rows))
        parts.append(
            summarise(
                vae.model, vae.guide, rows,
                num_particles=num_particles, seed=noise, with_khat=method is not None,
            )
        )  # fmt: skip
    summary = _joined(parts)
    found = {"split": split} | figures(summary, vae, data)
    found |= {"num_particles": num_particles, "seed": seed}
    each = {
        "elbo": summary.elbo,
        "reconstruction": summary.reconstruction,
        "kl": summary.kl,
        "log_evidence": summary.evidence.log_evidence,
        "standard_error": summary.evidence.standard_error,
        "effective_sample_size": summary.evidence.effective_sample_size,
    }
    if exactly:
        each |= _beside(summary, exactly)
        found |= _compared(found, each, exactly[0].method)
    rundir.write_tensors(run / "evaluation.safetensors", each)
    rundir.write_json(run / "metrics.json", found)
    return found


def _beside(summary: Summary, exactly: list[ExactEvidence]) -> dict[str, Tensor]:
    """Put exact evidence first, and the importance estimate beside it."""
    assert summary.khat is not None
    return {
        "log_evidence": torch.cat([e.log_evidence for e in exactly]).cpu(),
        "error": torch.cat([e.error for e in exactly]).cpu(),
        "importance_log_evidence": summary.evidence.log_evidence,
        "khat": summary.khat,
    }


def _compared(found: Mapping[str, Any], each: Mapping[str, Tensor], method: str) -> dict[str, Any]:
    """Return the figures of exact evidence, and how the importance estimate compares.

    The estimate is unbiased with a standard error to trust where k-hat < 0.5; elsewhere it is a
    lower bound. `importance_z` is the largest |difference| in standard errors where k-hat < 0.5,
    `importance_excess_z` the largest excess over the exact value elsewhere.
    """
    log_p = each["log_evidence"]
    n = len(log_p)
    estimate = each["importance_log_evidence"].double()
    z = (estimate - log_p) / each["standard_error"].double().clamp(min=1e-9)
    trusted = each["khat"] < 0.5
    new = {
        "method": method,
        "log_evidence": float(log_p.mean()),
        "log_evidence_se": float(log_p.std() / math.sqrt(n)) if n > 1 else None,
        "log_evidence_error": float(each["error"].max()),
        "importance_log_evidence": float(estimate.mean()),
        "khat_below_half": int(trusted.sum()),
        "importance_z": float(z[trusted].abs().max()) if bool(trusted.any()) else None,
        "importance_excess_z": float(z[~trusted].max()) if bool((~trusted).any()) else None,
    }
    if found["bits_per_dim"] is not None:
        new["bits_per_dim"] = found["bits_per_dim"] * new["log_evidence"] / found["log_evidence"]
    return new


def _joined(parts: list[Summary]) -> Summary:
    def cat(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(tensors)).cpu()

    names = [field.name for field in fields(Evidence)]
    return Summary(
        reconstruction=cat(p.reconstruction for p in parts),
        kl=cat(p.kl for p in parts),
        elbo=cat(p.elbo for p in parts),
        evidence=Evidence(**{n: cat(getattr(p.evidence, n) for p in parts) for n in names}),
        khat=None if parts[0].khat is None else cat(p.khat for p in parts if p.khat is not None),
    )


def _default_likelihood(data: str, binarize: str) -> str | None:
    if binarize != "none":
        return "bernoulli"
    return "binomial" if data.lower() == "digits" else None


def _takes_levels(likelihood: str) -> bool:
    """Is the likelihood's support whole numbers beyond 0 and 1?"""
    part = by_name("likelihood", likelihood, exported(likelihoods))(latent_dim=1, data_shape=(1,))
    support = part(torch.zeros(1)).support.base_constraint
    return support.is_discrete and support is not constraints.boolean


def _headline(data: datasets.Data, vae: VAE, path: Path) -> str:
    sizes = ", ".join(
        f"{len(data.split(s)):,} {s}" for s in datasets.SPLITS if len(getattr(data, s))
    )
    parameters = sum(p.numel() for p in vae.parameters())
    parts = ", ".join(type(p).__name__ for p in (vae.prior, vae.likelihood, vae.posterior))
    return f"{data.name} ({sizes}); {parts}; {parameters:,} parameters -> {path}"


def describe() -> str:
    """Return the parts by name and the versions, for people."""
    lines = [f"{package} {version(package)}" for package in ("pyrovae", "torch", "pyro-ppl")]
    lines = [", ".join(lines), f"{torch.get_num_threads()} CPU threads"]
    if torch.cuda.is_available():
        lines.append(f"{torch.cuda.device_count()} CUDA devices")
    choices = {module.__name__.split(".")[-1]: module.__all__ for module in PARTS}
    choices |= {"objectives": [*objectives.PYRO_ELBOS, *objectives.__all__]}
    choices |= {"data": ["digits", *datasets.TORCHVISION, "a .npy, .npz or .csv file"]}
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
