"""A run's directory on disk: files appear whole or not at all, and none is a pickle."""

import contextlib
import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pyrovae.evidence.progress import write
from pyrovae.importance import find_modules
from pyrovae.pairs import build
from pyrovae.training.checkpoints import FOLDER, CheckpointError
from pyrovae.training.history import History
from pyrovae.training.locking import LOCK, cannot_write, locked

CONFIG, WEIGHTS, HISTORY = "config.json", "model.safetensors", "history.csv"
PARAM = "param:"  # before a name in Pyro's parameter store
DIGEST = "sha256"  # of a file's content, in the file: what a bad disk changes would else be read

_CLAIMED: set[Path] = set()  # directories that this process writes to


@contextlib.contextmanager
def claimed(path: str | Path | None, resume: bool = False) -> Iterator[Path | None]:
    """Make a run directory for the block, or go on in one, as its only writer.

    A new directory is removed again if the block fails before a step's state is kept.

    Args:
        path: the directory; None for none.
        resume: may it hold a run that was begun?

    Raises:
        ValueError: the path is a file, or a directory that holds anything (unless that is to be
            gone on with), or that another process writes to.
    """
    if path is None or Path(path).resolve() in _CLAIMED:
        yield None if path is None else Path(path)
        return
    path = Path(path)
    ours = not path.exists()
    if not ours and not path.is_dir():
        raise ValueError(f"expected --run (run=) to name a directory; got {path}, which is a file")
    if not resume and not ours and (found := {p.name for p in path.iterdir()} - {LOCK}):
        on = ", or go on with it by --resume (resume=True)" if FOLDER in found else ""
        raise ValueError(
            f"expected --run (run=) to name a new or empty directory; got {path}, which is in use: "
            f"name another, or remove it{on}"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    begun = [path / FOLDER, path / WEIGHTS]
    try:
        with locked(path):
            _CLAIMED.add(path.resolve())
            try:
                yield path
            except BaseException:
                if (ours or not resume) and not any(p.exists() for p in begun):
                    for name in (CONFIG, HISTORY):
                        (path / name).unlink(missing_ok=True)
                raise
            finally:
                _CLAIMED.discard(path.resolve())
    finally:
        if ours:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


def next_free(parent: str | Path, name: str) -> Path:
    """Return parent/name-1, or the next number that is free."""
    number = 1
    while (Path(parent) / f"{name}-{number}").exists():
        number += 1
    return Path(parent) / f"{name}-{number}"


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write(path, lambda p: p.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors with a digest of them, whole or not at all."""
    kept = {k: t.detach().cpu().clone().contiguous() for k, t in tensors.items()}
    write(path, lambda p: save_file(kept, p, metadata={DIGEST: _digest(kept)}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors that `write_tensors` wrote.

    Raises:
        FileNotFoundError: there are none.
        CheckpointError: the file is damaged.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            told = (file.metadata() or {}).get(DIGEST)
            found = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; train again") from None
    if told is not None and told != _digest(found):  # older versions wrote none
        raise CheckpointError(f"{path} is damaged: it is not what was written; train again")
    return found


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        digest.update(repr((name, tuple(t.shape), t.dtype)).encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_config(run: Path, config: Mapping[str, Any]) -> None:
    """Write `config.json`, with a digest of it."""
    write_json(run / CONFIG, {**config, DIGEST: _digest_of_json(config)})


def _digest_of_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def state_of(modules: Sequence[nn.Module], names: Sequence[str]) -> dict[str, Tensor]:
    """Return copies of the tensors of modules, buffers too, and of parameters in Pyro's store.

    The first module's keys are its own; those of the n-th further one begin with "n:".
    """
    state = {}
    for i, module in enumerate(modules):
        for key, tensor in module.state_dict().items():
            state[f"{i}:{key}" if i else key] = tensor.detach().clone().contiguous()
    store = pyro.get_param_store()
    return state | {PARAM + name: store[name].detach().clone() for name in names}


def restore(state: Mapping[str, Tensor], modules: Sequence[nn.Module]) -> None:
    """Fill modules, and parameters in Pyro's store, in place, with what `state_of` returned.

    Raises:
        CheckpointError: a tensor is missing, too many, or of another shape; or a parameter that the
            store does not know.
    """
    store = pyro.get_param_store()
    filled = set()
    for i, module in enumerate(modules):
        prefix = f"{i}:" if i else ""
        own = {k: state[prefix + k] for k in module.state_dict() if prefix + k in state}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError(
                f"the saved tensors do not fit {type(module).__name__}: {error}"
            ) from None
        filled |= {prefix + k for k in own}
    for key in set(state) - filled:
        name = key.removeprefix(PARAM)
        if not key.startswith(PARAM) or name not in store:
            raise CheckpointError(
                f"the saved tensor {key!r} has no place in the pair: expected the pair it was "
                "saved from, with the same modules=, and run once on a batch where its functions "
                "call pyro.param or pyro.module"
            )
        with torch.no_grad():
            constraint = store.get_state()["constraints"][name]
            inverse = torch.distributions.transform_to(constraint).inv
            store[name].unconstrained().copy_(inverse(state[key].to(store[name])))


def begin(run: Path, config: Mapping[str, Any] | None, history: History) -> None:
    """Write what a run is made of, and what its history is so far.

    Args:
        run: the directory; a `config.json` that is there is kept.
        config: `vae.config`, if the pair has one.
        history: empty, or that of a checkpoint.
    """
    if config is not None and not (run / CONFIG).exists():
        write_config(run, {"build": config})
    if len(history):
        write_history(run, history)
    else:  # epochs that were written down, and whose state was not kept, come again
        (run / HISTORY).unlink(missing_ok=True)


def appending(run: Path) -> Callable[[int, Mapping[str, float | None]], None]:
    """Return a callback of `fit` that adds each epoch to `history.csv`."""

    def append(epoch: int, record: Mapping[str, float | None]) -> None:
        with (run / HISTORY).open("a", newline="") as file:
            rows = csv.DictWriter(file, list(record))
            if file.tell() == 0:
                rows.writeheader()
            rows.writerow(record)

    return append


def save(run: Path, state: Mapping[str, Tensor], history: History) -> None:
    """Write `model.safetensors` and `history.csv`.

    Args:
        run: the directory.
        state: from `state_of`.
        history: of the training.
    """
    write_tensors(run / WEIGHTS, state)
    write_history(run, history)


def write_history(run: Path, history: History) -> None:
    """Write `history.csv`, whole or not at all."""
    write(run / HISTORY, lambda p: history.to_dataframe().to_csv(p, index=False))


def read_config(run: str | Path) -> dict[str, Any]:
    """Return the `config.json` of a run.

    Raises:
        FileNotFoundError: no such directory, or none that a run left.
        CheckpointError: the file is damaged.
    """
    path = Path(run) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a run directory with config.json; {run} has none: name a directory that "
            "`pyrovae train` made, such as runs/digits-1"
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(config["build"], dict):
            raise TypeError("'build' is no table")
        told = config.pop(DIGEST, None)  # older versions wrote none
        if told is not None and told != _digest_of_json(config):
            raise ValueError("not what was written; if you changed it, remove its sha256 too")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from None
    return config


def differing(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Say in which entries two configurations differ."""
    return [
        f"{group} {key} is {found.get(group, {}).get(key)!r}, asked for {asked[group].get(key)!r}"
        for group in asked
        for key in sorted({*asked[group], *found.get(group, {})})
        if found.get(group, {}).get(key) != asked[group].get(key)
    ]


def load(
    run: str | Path,
    into: tuple[Callable, Callable] | None = None,
    modules: Sequence[nn.Module] = (),
) -> Any:
    """Return the trained pair of a run, or fill a pair of your own with its weights.

    Args:
        run: a directory that `fit(run=...)` or `pyrovae train` wrote.
        into: (model, guide) to fill in place of building a pair; its modules are found as `fit`
            finds them. What its functions register by `pyro.param` or `pyro.module` must be in
            Pyro's store already: run the model and the guide once.
        modules: those that `fit` was given.

    Returns:
        The pair, or None with `into`.

    Raises:
        FileNotFoundError: no such run, or no weights in it.
        CheckpointError: a damaged file, or weights that do not fit.
    """
    path = Path(run) / WEIGHTS
    vae = None
    if into is None:
        try:
            vae = build(**read_config(run)["build"])
        except TypeError as error:
            raise CheckpointError(f"{Path(run) / CONFIG} is damaged: {error}") from None
    if not path.is_file():
        begun = (Path(run) / FOLDER).is_dir()
        on = f": `pyrovae train --run {run} --resume` (fit's resume=True) goes on" if begun else ""
        raise FileNotFoundError(
            f"expected trained weights in {path}; there are none: the run did not finish{on}"
        )
    state = read_tensors(path)
    if vae is not None:
        dtypes = (t.dtype for t in state.values() if t.is_floating_point())
        vae.to(next(dtypes, torch.get_default_dtype()))
        restore(state, [vae])
    elif into is not None:
        restore(state, find_modules(*into, modules=modules))
    return vae
