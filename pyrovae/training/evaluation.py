"""Measuring a trained run, and drawing from it, in the units of its data."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyrovae import data as datasets
from pyrovae.evidence import (
    Evidence,
    ExactEvidence,
    Summary,
    enumeration,
    exact,
    linear_gaussian,
    pareto,
    quadrature,
    summarise,
)
from pyrovae.pairs import VAE
from pyrovae.pairs.names import by_name
from pyrovae.training import rundir
from pyrovae.training.support import measure

METHODS = {
    "iwae": None,
    "exact": exact,
    "quadrature": quadrature,
    "linear_gaussian": linear_gaussian,
    "enumeration": enumeration,
}
CHUNK = 100  # rows evaluated at once


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

    Writes the figures to `metrics.json` and those of each datum to `evaluation.safetensors`. Where
    the run standardised its table, by the transform that it kept, ELBO, reconstruction and log p(x)
    are those of the table as it was.

    Args:
        run: the directory.
        split: train, validation or test.
        evidence: how log p(x) is found: iwae, or in place of it exact, quadrature, linear-gaussian
            or enumeration, with the importance estimate and its k-hat beside it.
        num_particles: importance samples a datum.
        limit: the first so many data alone.
        data_dir: where named data sets lie, if not where the run found them.
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
    raw = _raw_data(run, data_dir)
    rows = raw.split(split)[:limit]
    if raw.transform is not None and split == "train":
        rows = raw.transform(rows, torch.Generator().manual_seed(seed))
    data = _as_kept(run, raw)
    x = data.split(split)[:limit] if data.scale is not None else rows
    return record(
        Path(run), vae, data, split, x,
        sha256=datasets.digest(rows), num_particles=num_particles, seed=seed, method=method,
    )  # fmt: skip


def draw(run: Path, n: int, seed: int = 0) -> Tensor:
    """Draw data from a trained run, in original units where its table was standardised.

    Args:
        run: the directory.
        n: how many.
        seed: of the draws.

    Raises:
        ValueError: a damaged run.
        FileNotFoundError: no such run.
    """
    vae = rundir.load(run)
    assert vae is not None
    return datasets.original(vae.sample(n, seed=seed), *_kept(run))


def load_data(run: Path, data_dir: Path | None = None) -> datasets.Data:
    """Load the data of a run again, standardised as they were for it.

    Raises:
        ValueError: the run's record is damaged, or the test data are not those of the run.
        FileNotFoundError: no such run, or its data are not there.
    """
    return _as_kept(run, _raw_data(run, data_dir))


def load_source(
    source: Mapping[str, Any], data_dir: Path | None, download: bool = False
) -> datasets.Data:
    """Load data from arguments of `data.load`; those of a file in float64.

    A column such as a date may vary in digits that float32 does not hold.
    """
    of_file = Path(source["source"]).suffix in datasets.FILES
    dtype = torch.float64 if of_file else torch.float32
    return datasets.load(**source, data_dir=data_dir, download=download, dtype=dtype)


def _raw_data(run: Path, data_dir: Path | None) -> datasets.Data:
    config = rundir.read_config(run)
    if "source" not in config.get("data", {}) or "sha256" not in config.get("record", {}):
        raise ValueError(
            f"expected {run}/config.json to name the data; it does not: the run was made by "
            "fit(run=...), so use pyrovae.load and evidence.iwae on data of your own"
        )
    source = dict(config["data"])
    kept_dir = source.pop("data_dir", None)
    loaded = load_source(source, data_dir or kept_dir)
    if loaded.record["sha256"] != config["record"]["sha256"]:
        raise ValueError(
            f"expected the data that {run} was trained on; {source['source']} has changed since"
        )
    return loaded


def _kept(run: Path) -> tuple[Tensor | None, Tensor | None]:
    """Return loc and scale of a run whose table was standardised."""
    record = rundir.read_config(run).get("record", {})
    if "scale" not in record:
        return None, None
    try:
        loc, scale = (torch.tensor(record[k], dtype=torch.float64) for k in ("loc", "scale"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{Path(run) / 'config.json'} is damaged: {error!r}") from None
    return loc, scale


def _as_kept(run: Path, raw: datasets.Data) -> datasets.Data:
    loc, scale = _kept(run)
    return raw if loc is None or scale is None else datasets.rescale(raw, loc, scale)


def figures(each: Mapping[str, Tensor], vae: VAE, data: datasets.Data, x: Tensor) -> dict[str, Any]:
    """Return mean figures of what was found for each datum.

    Keys: `elbo`, `reconstruction`, `kl` and `log_evidence`, in nats per datum, each with its `_se`
    (standard deviation over the data / sqrt(n)); `n`; `measure`, whether log p(x) is of a "mass" or
    a "density", or which columns are the one; `units` of x in it, "original", or "unit" for levels
    scaled to [0, 1]; `bits_per_dim` = -log_evidence / (D ln 2) for a mass, for a density of
    dequantised data log2(levels) more, and otherwise None with `bits_per_dim_reason`. D counts
    observed entries alone.

    Args:
        each: those four, (N,).
        vae: the pair.
        data: where x is from.
        x: the data (N, *data_shape).
    """
    found: dict[str, Any] = {}
    for name in ("elbo", "reconstruction", "kl", "log_evidence"):
        column = each[name].double()
        n = len(column)
        found[name] = float(column.mean())
        found[f"{name}_se"] = float(column.std() / math.sqrt(n)) if n > 1 else None
    kind = measure(vae.likelihood)
    found |= {"bits_per_dim": None, "n": n, "measure": kind}
    found["units"] = "unit" if data.scaled else "original"
    dimensions = float((~x.isnan()).sum()) / n
    bits = -found["log_evidence"] / (dimensions * math.log(2)) if dimensions else None
    if kind == "mass":
        found["bits_per_dim"] = bits
    elif kind == "density" and data.dequantized and data.levels is not None and bits is not None:
        found["bits_per_dim"] = bits + math.log2(data.levels)
    else:
        why = "is a density, and the data are not dequantised: a density at lattice points bounds "
        if kind != "density":
            why = f"is a {kind}: a density bounds "
        found["bits_per_dim_reason"] = f"{type(vae.likelihood).__name__} {why}no number of bits"
    return found


def record(
    run: Path,
    vae: VAE,
    data: datasets.Data,
    split: str,
    x: Tensor,
    *,
    sha256: str,
    num_particles: int,
    seed: int,
    method: Callable[..., ExactEvidence] | None = None,
) -> dict[str, Any]:
    """Evaluate a pair on x, and write what was found to the run.

    Args:
        run: the directory.
        vae: the pair.
        data: where x is from.
        split: of the data.
        x: as the pair takes it (N, *data_shape).
        sha256: fingerprint of x in original units.
        num_particles: importance samples a datum.
        seed: of the draws.
        method: of exact evidence, if that is wanted.

    Returns:
        The figures, see `figures`.
    """
    parts, exactly = [], []
    fits = num_particles >= pareto.MIN_DRAWS
    chunks = x.split(CHUNK)
    bar = tqdm(chunks, unit_scale=CHUNK, unit="data", disable=None, leave=False)
    leaves_out = split == "train" and getattr(vae.prior, "indexed", False)
    for i, rows in enumerate(bar):
        index = (torch.arange(i * CHUNK, i * CHUNK + len(rows)),) if leaves_out else ()
        noise = seed * len(chunks) + i  # of each chunk its own, or their errors would add up
        if method is not None:  # first: it may refuse
            exactly.append(method(vae.model, vae.guide, rows, *index))
        parts.append(
            summarise(
                vae.model, vae.guide, rows, *index,
                num_particles=num_particles, seed=noise, with_khat=fits or method is not None,
            )
        )  # fmt: skip
    summary = _joined(parts)
    gain = data.log_jacobian(x)
    each = {
        "elbo": summary.elbo + gain,
        "reconstruction": summary.reconstruction + gain,
        "kl": summary.kl,
        "log_evidence": summary.evidence.log_evidence + gain,
        "standard_error": summary.evidence.standard_error,
        "effective_sample_size": summary.evidence.effective_sample_size,
    }
    if summary.khat is not None:
        each["khat"] = summary.khat
    if exactly:
        each |= {
            "importance_log_evidence": each["log_evidence"],
            "log_evidence": torch.cat([e.log_evidence for e in exactly]).cpu() + gain,
            "error": torch.cat([e.error for e in exactly]).cpu(),
        }
    found = {"split": split} | figures(each, vae, data, x)
    found |= {"num_particles": num_particles, "seed": seed, "sha256": sha256}
    if exactly:
        found |= _compared(each, exactly[0].method)
    rundir.write_tensors(run / "evaluation.safetensors", each)
    rundir.write_json(run / "metrics.json", found)
    return found


def _compared(each: Mapping[str, Tensor], method: str) -> dict[str, Any]:
    """Return how the importance estimate compares with exact evidence.

    The estimate is unbiased with a standard error to trust where k-hat < 0.5; elsewhere it is a
    lower bound. `importance_z` is the largest |difference| in standard errors where k-hat < 0.5,
    `importance_excess_z` the largest excess over the exact value elsewhere.
    """
    estimate = each["importance_log_evidence"].double()
    z = (estimate - each["log_evidence"]) / each["standard_error"].double().clamp(min=1e-9)
    trusted = each["khat"] < 0.5
    return {
        "method": method,
        "log_evidence_error": float(each["error"].max()),
        "importance_log_evidence": float(estimate.mean()),
        "khat_below_half": int(trusted.sum()),
        "importance_z": float(z[trusted].abs().max()) if bool(trusted.any()) else None,
        "importance_excess_z": float(z[~trusted].max()) if bool((~trusted).any()) else None,
    }


def _joined(parts: list[Summary]) -> Summary:
    def cat(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(tensors)).cpu()

    each = [{f.name: getattr(p.evidence, f.name) for f in fields(Evidence)} for p in parts]
    known = [name for name, value in each[0].items() if value is not None]
    return Summary(
        reconstruction=cat(p.reconstruction for p in parts),
        kl=cat(p.kl for p in parts),
        elbo=cat(p.elbo for p in parts),
        evidence=Evidence(**{name: cat(e[name] for e in each) for name in known}),
    )
