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
    ais,
    enumeration,
    exact,
    linear_gaussian,
    pareto,
    quadrature,
    summarise,
)
from pyrovae.evidence.annealed import Settings
from pyrovae.pairs.base import Pair
from pyrovae.pairs.names import by_name
from pyrovae.training import ranks, rundir
from pyrovae.training.batches import Batch
from pyrovae.training.sources import Rows, context_of_samples, kept, rows_of
from pyrovae.training.sources import load_data as load_data
from pyrovae.training.support import measure

METHODS: dict[str, Callable[..., Evidence | ExactEvidence] | None] = {
    "iwae": None,
    "ais": ais,
    "exact": exact,
    "quadrature": quadrature,
    "linear_gaussian": linear_gaussian,
    "enumeration": enumeration,
}
CHUNK = 100  # rows evaluated at once

Each = dict[str, Tensor]


def evaluate(
    run: Path,
    *,
    split: str | None = None,
    data: Path | None = None,
    evidence: str = "iwae",
    num_particles: int = 1000,
    limit: int | None = None,
    data_dir: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure a trained run on a split of its data, or on new data: what `pyrovae evaluate` does.

    Where the run standardised its table, by the transform that it kept, ELBO, reconstruction and
    log p(x) are those of the table as it was. Of the run's own data the figures go to its
    `metrics.json` and those of each datum to `evaluation.safetensors`, which `compare` reads; of
    new data nothing is written to the run. Started by torchrun, the processes share the data.

    Args:
        run: the directory.
        split: train, validation or test; None for test.
        data: a file of new data in place of a split, see `sources.load_new`.
        evidence: how log p(x) is found: iwae, or in place of it ais, exact, quadrature,
            linear-gaussian or enumeration, with the importance estimate and its k-hat beside it.
        num_particles: importance samples a datum.
        limit: the first so many data alone.
        data_dir: where named data sets lie, if not where the run found them.
        out: a .safetensors file for what was found for each datum, (N,) each.
        seed: of the draws.
        say: is told ahead what long work there is to do.

    Returns:
        The figures, see `figures`; those of new data name the file, `data`, in place of `split`.

    Raises:
        ValueError: an argument out of its range, a damaged run, or data that are not the run's, or
            new ones that are not like those.
        FileNotFoundError: no such run, or its data are not there.
    """
    method = by_name("evidence", evidence, METHODS)
    if out is not None and (out.suffix != ".safetensors" or not out.parent.is_dir()):
        raise ValueError(
            f"expected --out (out=) to be a .safetensors file in a folder that exists; got '{out}'"
        )
    vae = rundir.load(run)
    rows = rows_of(
        run, vae, split=split, new=data, limit=limit, data_dir=data_dir, seed=seed
    )  # fmt: skip
    if method is ais:
        say(f"ais: {Settings().cost(len(rows.x))}")
    options: dict[str, Any] = {"num_particles": num_particles, "seed": seed, "method": method}
    with ranks.joined_up(None):
        if data is None:
            found, each = record(Path(run), vae, rows, **options)
        else:
            found, each = measured(vae, rows, **options)
            del found["split"]
            found = {"data": str(data)} | found
        if out is not None and ranks.rank() == 0:
            rundir.write_tensors(out, each)
    return found


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
    x = vae.sample(n, *context_of_samples(run, vae, n), seed=seed)
    return datasets.original(x, *kept(run))


def figures(
    each: Mapping[str, Tensor], vae: Pair, data: datasets.Data, x: Tensor, c: Batch = ()
) -> dict[str, Any]:
    """Return mean figures of what was found for each datum.

    Keys: `elbo`, `reconstruction`, `kl` and `log_evidence`, in nats per datum, each with its `_se`
    (standard deviation over the data / sqrt(n)); `n`; `measure`, whether log p(x) is of a "mass" or
    a "density", or which columns are the one; `units` of x in it, "original", or "unit" for levels
    scaled to [0, 1]; `context`, "labels" where the pair is given any, else None; `bits_per_dim` =
    -log_evidence / (D ln 2) for a mass, for a density of dequantised data log2(levels) more, and
    otherwise None with `bits_per_dim_reason`. D counts observed entries alone.

    Args:
        each: those four, (N,).
        vae: the pair.
        data: where x is from.
        x: the data (N, *data_shape).
        c: their context; labels, if there are any, are its last, -1 for one that is unknown.
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
    told = vae.takes_labels and any(bool((labels >= 0).any()) for labels in c[-1:])
    found["context"] = "labels" if told else None
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


def record(run: Path, vae: Pair, rows: Rows, **options: Any) -> tuple[dict[str, Any], Each]:
    """Evaluate a pair on data of its run, and write what was found to the run.

    Args:
        run: the directory.
        vae: the pair.
        rows: the data.
        **options: of `measured`, which says what is returned.
    """
    found, each = measured(vae, rows, **options)
    if ranks.rank() == 0:
        rundir.write_tensors(run / "evaluation.safetensors", each)
        rundir.write_json(run / "metrics.json", found)
    return found, each


def measured(
    vae: Pair,
    rows: Rows,
    *,
    num_particles: int,
    seed: int,
    method: Callable[..., Evidence | ExactEvidence] | None = None,
) -> tuple[dict[str, Any], Each]:
    """Evaluate a pair on data.

    Args:
        vae: the pair.
        rows: the data.
        num_particles: importance samples a datum.
        seed: of the draws.
        method: of other evidence than importance samples, if that is wanted.

    Returns:
        The figures, see `figures`, and what was found for each datum, (N,) each, by name.
    """
    data, split, x = rows.data, rows.split, rows.x
    done: list[tuple[int, Summary, Evidence | ExactEvidence | None]] = []
    fits = num_particles >= pareto.MIN_DRAWS
    chunks = list(zip(*(t.split(CHUNK) for t in (x, *rows.c)), strict=True))
    mine = ranks.shared(list(enumerate(chunks)))
    bar = tqdm(mine, unit_scale=CHUNK, unit="data", disable=None, leave=False)
    pair = vae.local
    for i, chunk in bar:
        noise = seed * len(chunks) + i  # of each chunk its own, or their errors would add up
        other = None if method is None else method(pair.model, pair.guide, *chunk)  # it may refuse
        summary = summarise(
            pair.model, pair.guide, *chunk,
            num_particles=num_particles, seed=noise, with_khat=fits or method is not None,
            of=len(x),
        )  # fmt: skip
        done.append((i, summary, other))
    done = sorted(sum(ranks.gathered(done), []), key=lambda found: found[0])
    summary = _joined([part for _, part, _ in done])
    exactly = [found for _, _, found in done if found is not None]
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
            "error": torch.cat([_error(e) for e in exactly]).cpu(),
        }
    found = {"split": split} | figures(each, vae, data, x, rows.c)
    found |= {"num_particles": num_particles, "seed": seed, "sha256": rows.sha256}
    if exactly:
        found |= _compared(each, getattr(exactly[0], "method", "ais"))
    return found, each


def _error(found: Evidence | ExactEvidence) -> Tensor:
    """Return how far off each is: of a sampled one its standard error, (N,)."""
    return found.error if isinstance(found, ExactEvidence) else found.standard_error


def _compared(each: Mapping[str, Tensor], method: str) -> dict[str, Any]:
    """Return how the importance estimate compares with exact evidence, or with that of annealing.

    The estimate is unbiased with a standard error to trust where k-hat < 0.5; elsewhere it is a
    lower bound. Beside exact evidence, `importance_z` is the largest |difference| in standard
    errors where k-hat < 0.5, `importance_excess_z` the largest excess over it elsewhere.
    """
    estimate = each["importance_log_evidence"].double()
    z = (estimate - each["log_evidence"]) / each["standard_error"].double().clamp(min=1e-9)
    trusted = each["khat"] < 0.5
    exact = method != "ais"
    return {
        "method": method,
        "log_evidence_error": float(each["error"].max()),
        "importance_log_evidence": float(estimate.mean()),
        "khat_below_half": int(trusted.sum()),
        "importance_z": float(z[trusted].abs().max()) if exact and bool(trusted.any()) else None,
        "importance_excess_z": float(z[~trusted].max())
        if exact and bool((~trusted).any())
        else None,
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
