"""One training several times over, from one seed after another: errors across the seeds."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae.training import ranks, rundir
from pyrovae.training.experiment import Result, prepare, train

FILE = "seeds.json"  # in the directory that holds the runs
AVERAGED = {  # and how the table calls it
    "elbo": "ELBO", "reconstruction": "E_q log p(x|z)", "kl": "KL", "log_evidence": "log p(x)",
    "bits_per_dim": "bits/dim",
}  # fmt: skip


@dataclass(frozen=True)
class Seeds:
    """Runs that differ in their seed alone; `str()` is the table.

    Attributes:
        run: the directory that holds them, as seed-0, seed-1, ...
        config: of each, but for its seed.
        figures: of the test data, by seed, see `evaluation.figures`.
    """

    run: Path
    config: dict[str, Any]
    figures: dict[int, dict[str, Any]]

    @property
    def mean(self) -> dict[str, float | None]:
        """Mean over the seeds of each figure in nats or bits; None where a run has none."""
        return {name: None if t is None else float(t.mean()) for name, t in self._each()}

    @property
    def se(self) -> dict[str, float | None]:
        """Standard error of each mean: sd over the seeds / sqrt(number of seeds)."""
        n = len(self.figures)
        return {
            name: None if t is None or n < 2 else float(t.std() / math.sqrt(n))
            for name, t in self._each()
        }

    def _each(self) -> Iterator[tuple[str, Tensor | None]]:
        for name in AVERAGED:
            values = [figures[name] for figures in self.figures.values()]
            yield name, None if None in values else torch.tensor(values, dtype=torch.float64)

    def to_dict(self) -> dict[str, Any]:
        """Return it all as JSON-able data."""
        return {
            "n": len(self.figures),
            "mean": self.mean if self.figures else None,
            "se": self.se if self.figures else None,
            "figures": {str(seed): figures for seed, figures in self.figures.items()},
            "config": self.config,
        }

    def __str__(self) -> str:
        first = next(iter(self.figures.values()))
        mean, se = self.mean, self.se
        shown = [name for name in AVERAGED if mean[name] is not None]
        rows = [["seed", *(AVERAGED[name] for name in shown)]]
        for seed, found in self.figures.items():
            rows.append(
                [str(seed), *(_with_error(k, found[k], found.get(f"{k}_se")) for k in shown)]
            )
        rows.append(["mean", *(_with_error(k, mean[k], se[k]) for k in shown)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        units = "x in [0, 1]" if first["units"] == "unit" else "x in original units"
        return "\n".join(
            [
                f"{Path(self.config['data']['source']).name}, {len(self.figures)} seeds, the same "
                f"{first['n']:,} {first['split']} data; log p(x): {first['num_particles']:,} "
                "importance samples",
                f"Nats per datum{'' if first['measure'] == 'mass' else f', {units}'}, +- standard "
                "error over the data; of the mean, over the seeds.",
                "",
                *("  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows),
            ]
        )


def train_seeds(
    *,
    seeds: int,
    seed: int,
    split_seed: int | None,
    device: str | None,
    run: Path | None,
    say: Callable[[str], None],
    after: Callable[[Result], Any] = lambda result: None,
    checkpoint_seconds: float = 60.0,
    track: Sequence[str] = (),
    **request: Any,
) -> Seeds:
    """Train the seeds seed, ..., seed + seeds - 1, each in a run directory of its own.

    All have one split of the data, by `split_seed`, or else that of the first seed: so the test
    data are the same, and the errors across the seeds are those of training (weights, order and
    draws). `seeds.json` is written after each. What a directory holds of the same request is not
    trained again: work that was interrupted, or is to have more seeds, goes on.

    Args:
        seeds: how many, at least 2.
        seed: the first.
        split_seed: of the random split; None for `seed`.
        device: where to train; None for where the pair is.
        run: the directory that is to hold seed-0, seed-1, ...; None for that of the same request in
            runs/NAME-N, if it was interrupted, or else the next free one.
        say: is told how it goes.
        after: is called on each result, before its directory is moved into place whole.
        checkpoint_seconds: see `fit`; a seed that was stopped is gone on with.
        track: see `experiment.train`.
        **request: of `experiment.prepare`.

    Raises:
        ValueError: fewer than two seeds, a directory in use for anything else, or what `prepare`
            refuses; no directory is made then.
        FileNotFoundError: data that are not there.
    """
    if seeds < 2:
        raise ValueError(
            f"expected --seeds to be a whole number of at least 2; got {seeds}: leave it out to "
            "train one"
        )
    if ranks.started() > 1:
        raise ValueError(
            "expected one process for --seeds; torchrun started several: leave it out, or train a "
            "seed at a time"
        )
    wanted = range(seed, seed + seeds)
    if not -(2**63) <= seed <= wanted[-1] < 2**63:
        raise ValueError(f"expected seeds to fit in 64 bits; got {seed}, ..., {wanted[-1]}")
    request |= {"split_seed": seed if split_seed is None else split_seed}
    prepared = prepare(seed=seed, **request)
    config = _but_for_the_seed(prepared.config)
    root = _unfinished(prepared.data.name, config, wanted) if run is None else run
    root = root or rundir.next_free("runs", prepared.data.name)
    done = _done(root, config, wanted)
    left = [k for k in wanted if k not in done]
    if done:
        say(f"{root}: {len(done)} of {seeds} seeds done, {len(left)} to go")
    found = Seeds(root, config, done)
    with _made(root, say):
        rundir.write_json(root / FILE, found.to_dict())
        for k in left:
            new = _one(
                root, k, device=device, say=say, after=after,
                checkpoint_seconds=checkpoint_seconds, track=track, **request,
            )  # fmt: skip
            found = Seeds(root, config, dict(sorted({**found.figures, k: new}.items())))
            rundir.write_json(root / FILE, found.to_dict())
    return found


def refuse_seeds(run: Path) -> None:
    """Refuse a directory of several seeds where one run is meant.

    Raises:
        ValueError: naming the runs in it.
    """
    if (run / FILE).is_file():
        names = ", ".join(map(str, _runs(run).values())) or "which none is done yet"
        raise ValueError(f"expected one run; {run} holds several, one a seed: name one of {names}")


def _runs(root: Path) -> dict[int, Path]:
    """Return the runs that a directory holds, by seed."""
    found = {}
    for path in root.glob("seed-*"):
        with contextlib.suppress(ValueError):
            found[int(path.name.removeprefix("seed-"))] = path
    return dict(sorted(found.items()))


def _but_for_the_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as JSON holds it, without the seed of training."""
    kept: dict[str, Any] = json.loads(json.dumps(config))
    del kept["build"]["seed"], kept["training"]["seed"]
    return kept


def _unfinished(name: str, config: Mapping[str, Any], wanted: range) -> Path | None:
    """Return the directory runs/NAME-N in which some of the seeds wanted are done, if any."""
    for path in sorted(Path("runs").glob("*")):
        number = path.name.removeprefix(f"{name}-")
        if number != path.name and number.isdigit() and (path / FILE).is_file():
            with contextlib.suppress(ValueError):  # it is of another request
                if len(_done(path, config, wanted)) < len(wanted):
                    return path
    return None


def _done(root: Path, config: Mapping[str, Any], wanted: range) -> dict[int, dict[str, Any]]:
    """Return the figures of the seeds that a directory holds of the same request."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return {}
    if not (root / FILE).is_file():
        raise ValueError(
            f"expected --run (run=) to name a new or empty directory, or one with {FILE} of the "
            f"same request; got {root}, which is in use: name another, or remove it"
        )
    found = {}
    try:
        content = json.loads((root / FILE).read_text())
        differing = rundir.differing(content["config"], config)
        for seed, path in _runs(root).items():
            differing += rundir.differing(_but_for_the_seed(rundir.read_config(path)), config)
            figures = content["figures"].get(str(seed))
            found[seed] = figures or json.loads((path / "metrics.json").read_text())
            for name in AVERAGED:
                found[seed][name]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(
            f"what {root} holds of several seeds is damaged: {error!r}; name another --run, or "
            "remove it"
        ) from None
    other = sorted(set(found) - set(wanted))
    if other:
        differing.append(f"it has seed {', '.join(map(str, other))} too")
    if differing:
        raise ValueError(
            f"expected {root} to hold runs of the same request; it does not: "
            f"{'; '.join(dict.fromkeys(differing))}: name another --run, or remove it"
        )
    return found


@contextlib.contextmanager
def _made(root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Make a directory for the block; remove it again if the block fails before a run is done."""
    ours = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if _runs(root):
            say(f"what is done is kept in {root}: the same command with --run {root} goes on")
        else:
            (root / FILE).unlink(missing_ok=True)
            if ours:
                with contextlib.suppress(OSError):  # it is not empty
                    root.rmdir()
        raise


def _one(
    root: Path, seed: int, *, say: Callable[[str], None], after: Callable, **request: Any
) -> dict[str, Any]:
    """Train one seed, or go on with it, in a hidden folder, and move it into place whole."""
    place, made = root / f"seed-{seed}", root / f".seed-{seed}"
    result = train(
        seed=seed, run=made, resume=True, say=lambda line: say(line.replace(str(made), str(place))),
        **request,
    )  # fmt: skip
    assert result is not None  # there is one process
    after(result)
    made.rename(place)
    return result.figures


def _with_error(name: str, value: float | None, error: float | None) -> str:
    digits = 4 if name == "bits_per_dim" else 3
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")
