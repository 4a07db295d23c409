"""The latents of a run's data, or of new data, in a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from tqdm import tqdm

from pyrovae.diagnostics import latent_means
from pyrovae.distributions import mixed, seeded
from pyrovae.importance import guide_distributions, inspect, posterior_draws
from pyrovae.nets import evaluating
from pyrovae.pairs.base import Pair
from pyrovae.training import rundir
from pyrovae.training.batches import Batch
from pyrovae.training.sources import Rows, rows_of

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".npz", ".npy", ".csv", ".parquet")
CHUNK = 1000  # rows encoded at once


def encode(
    run: Path,
    *,
    split: str | None = None,
    data: Path | None = None,
    out: Path | None = None,
    num_draws: int | None = None,
    data_dir: Path | None = None,
    seed: int = 0,
) -> tuple[Path, dict[str, Tensor]]:
    """Write the latents of a split of a run's data, or of new data: what `pyrovae encode` does.

    An .npz holds all arrays by name; an .npy the means, or the draws where there are draws. A table
    (.csv, .parquet) has a row a datum, with columns z_0, z_1, ... of the means and sd_0, sd_1, ...;
    or, where there are draws, a row a draw, with columns datum and draw before z_0, z_1, ...

    Args:
        run: the directory.
        split: train, validation or test; None for test.
        data: a file of new data in place of a split, see `sources.load_new`.
        out: the file, by its ending; None for encoded.npz in the run.
        num_draws: draws z ~ q(z|x) a datum, if draws are wanted.
        data_dir: where named data sets lie, if not where the run found them.
        seed: of the draws.

    Returns:
        The file, and what it holds: `mean` E_q[z|x], (N, d), see `diagnostics.latent_means`; `sd`,
        the standard deviation of each latent number, (N, d), where q knows it; and `draws`,
        (num_draws, N, d).

    Raises:
        ValueError: an argument out of its range, a damaged run, or data that are not the run's, or
            new ones that are not like those. Nothing is written then.
        FileNotFoundError: no such run, or its data are not there.
        ImportError: a .parquet table without pyarrow.
    """
    path = run / "encoded.npz" if out is None else out
    if path.suffix not in SUFFIXES or (out is not None and not path.parent.is_dir()):
        raise ValueError(
            f"expected --out (out=) to be a file {', '.join(SUFFIXES)} in a folder that exists; "
            f"got '{path}'"
        )
    if num_draws is not None and num_draws < 1:
        raise ValueError(f"expected num_draws to be a positive whole number; got {num_draws}")
    vae = rundir.load(run)
    rows = rows_of(run, vae, split=split, new=data, data_dir=data_dir, seed=seed)
    found = _latents(vae.local, rows, num_draws, seed)
    _write(path, found)
    return path, found


def _latents(pair: Pair, rows: Rows, num_draws: int | None, seed: int) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    chunks = list(zip(*(t.split(CHUNK) for t in (rows.x, *rows.c)), strict=True))
    for i, chunk in enumerate(
        tqdm(chunks, unit_scale=CHUNK, unit="data", disable=None, leave=False)
    ):
        own = mixed(seed, i) % 2**32  # of each chunk, or all would have the same noise
        found = {"mean": latent_means(pair.model, pair.guide, *chunk, seed=own)}
        found |= _spread(pair, chunk, num_draws, own)
        for name, value in found.items():
            parts.setdefault(name, []).append(value.detach().cpu())
    whole = {name: values for name, values in parts.items() if len(values) == len(chunks)}
    return {name: torch.cat(values, -2) for name, values in whole.items()}


def _spread(pair: Pair, rows: Batch, num_draws: int | None, seed: int) -> dict[str, Tensor]:
    """Return sd, where q is of one site and knows it, and draws if wanted; sites in a row."""
    n = len(rows[0])
    names = [s.name for s in inspect(pair.model, pair.guide, *rows).latents if s.in_model]
    found = {}
    if len(names) == 1:
        with torch.no_grad(), seeded(seed), evaluating(pair):
            q = guide_distributions(pair.guide, *rows)[names[0]]
            sd = _sd(q)
            if sd is not None:
                found["sd"] = sd.reshape(n, -1)
            if num_draws is not None:
                found["draws"] = q.sample((num_draws,)).reshape(num_draws, n, -1)
    elif num_draws is not None:
        z = posterior_draws(pair.model, pair.guide, *rows, num_draws=num_draws, seed=seed).latents
        found["draws"] = torch.cat([z[name].reshape(num_draws, n, -1) for name in names], -1)
    return found


def _sd(q: TorchDistribution) -> Tensor | None:
    """Return q's standard deviation where it is known and finite."""
    try:
        sd: Tensor = q.variance.sqrt()
    except NotImplementedError:
        return None
    return sd if bool(sd.isfinite().all()) else None


def _write(path: Path, found: Mapping[str, Tensor]) -> None:
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {name: value.numpy() for name, value in found.items()}
        rundir.write(path, lambda p: np.savez(p, **arrays))
    elif path.suffix == ".npy":
        rundir.write(path, lambda p: np.save(p, found.get("draws", found["mean"]).numpy()))
    elif path.suffix == ".csv":
        rundir.write(path, lambda p: _table(found).to_csv(p, index=False))
    else:
        rundir.write(path, lambda p: _to_parquet(_table(found), p))


def _table(found: Mapping[str, Tensor]) -> "pd.DataFrame":
    import pandas as pd

    if "draws" not in found:
        columns = {"z": found["mean"], "sd": found.get("sd", found["mean"][:, :0])}
        return pd.concat(
            [pd.DataFrame(t.numpy()).add_prefix(f"{name}_") for name, t in columns.items()], axis=1
        )
    draws = found["draws"]
    k, n, _ = draws.shape
    table = pd.DataFrame(draws.transpose(0, 1).flatten(0, 1).numpy()).add_prefix("z_")
    table.insert(0, "datum", np.repeat(np.arange(n), k))
    table.insert(1, "draw", np.tile(np.arange(k), n))
    return table


def _to_parquet(table: "pd.DataFrame", path: Path) -> None:
    try:
        table.to_parquet(path, engine="pyarrow", index=False)
    except ImportError:
        raise ImportError(
            f"expected pyarrow to write {path.suffix}; it is not installed: pip install "
            "'pyrovae[parquet]', or take another ending"
        ) from None
