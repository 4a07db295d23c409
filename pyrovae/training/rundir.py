"""A run's directory on disk: files appear whole or not at all, and none is a pickle."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyrovae.evidence.progress import write
from pyrovae.importance import find_modules
from pyrovae.pairs import build
from pyrovae.training.history import History

PARAM = "param:"  # before a name in Pyro's parameter store


@contextlib.contextmanager
def claimed(path: str | Path | None) -> Iterator[Path | None]:
    """Make a run directory for the block; remove it again if the block fails and left it empty.

    Raises:
        ValueError: the path is a file, or a directory that holds anything.
    """
    if path is None:
        yield None
        return
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            f"expected --run (run=) to name a new or empty directory; got {path}, which is in use: "
            "name another, or remove it"
        )
    ours = not path.exists()
    path.mkdir(parents=True, exist_ok=not ours)
    try:
        yield path
    except BaseException:
        if ours:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()
        raise


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
    """Write safetensors, whole or not at all."""
    write(path, lambda p: save_file({k: t.detach().cpu().clone() for k, t in tensors.items()}, p))


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
        ValueError: a tensor is missing, too many, or of another shape; or a parameter that the
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
            raise ValueError(
                f"the saved tensors do not fit {type(module).__name__}: {error}"
            ) from None
        filled |= {prefix + k for k in own}
    for key in set(state) - filled:
        name = key.removeprefix(PARAM)
        if not key.startswith(PARAM) or name not in store:
            raise ValueError(
                f"the saved tensor {key!r} has no place in the pair: expected the pair it was "
                "saved from, with the same modules=, and run once on a batch where its functions "
                "call pyro.param or pyro.module"
            )
        with torch.no_grad():
            constraint = store.get_state()["constraints"][name]
            inverse = torch.distributions.transform_to(constraint).inv
            store[name].unconstrained().copy_(inverse(state[key].to(store[name])))


def save(
    run: Path, state: Mapping[str, Tensor], history: History, config: Mapping[str, Any] | None
) -> None:
    """Write `model.safetensors`, `history.csv` and, for a pair from `build`, `config.json`.

    Args:
        run: the directory.
        state: from `state_of`.
        history: of the training.
        config: `vae.config`, if the pair has one; a `config.json` that is there is kept.
    """
    write_tensors(run / "model.safetensors", state)
    write(run / "history.csv", lambda p: history.to_dataframe().to_csv(p, index=False))
    if config is not None and not (run / "config.json").exists():
        write_json(run / "config.json", {"build": config})


def read_config(run: str | Path) -> dict[str, Any]:
    """Return the `config.json` of a run.

    Raises:
        FileNotFoundError: no such directory, or none that a run left.
        ValueError: the file is damaged.
    """
    path = Path(run) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a run directory with config.json; {run} has none: name a directory that "
            "`pyrovae train` made, such as runs/digits-1"
        )
    try:
        config = json.loads(path.read_text())
        if not isinstance(config["build"], dict):
            raise TypeError("'build' is no table")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None
    return config


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
        ValueError: a damaged file, or weights that do not fit.
    """
    path = Path(run) / "model.safetensors"
    vae = None
    if into is None:
        try:
            vae = build(**read_config(run)["build"])
        except TypeError as error:
            raise ValueError(f"{Path(run) / 'config.json'} is damaged: {error}") from None
    if not path.is_file():
        raise FileNotFoundError(
            f"expected trained weights in {path}; there are none: the run did not finish"
        )
    try:
        state = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; train again") from None
    if vae is not None:
        dtypes = (t.dtype for t in state.values() if t.is_floating_point())
        vae.to(next(dtypes, torch.get_default_dtype()))
        restore(state, [vae])
    elif into is not None:
        restore(state, find_modules(*into, modules=modules))
    return vae
