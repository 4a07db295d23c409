"""Long work over many data: told ahead, shown as it goes, and kept so that it can go on."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

import pyro
import torch
from pyro.params.param_store import user_param_name
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

Result = TypeVar("Result")
REQUEST = "request"


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """Let `writer` write a temporary file, then move it to `path` in one go."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        writer(temporary)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def fingerprint(*parts: Any) -> str:
    """Return a hash of what work is made of: tensors, modules by their tensors, else by `repr`.

    The parameters in Pyro's store that no module owns are part of it too.
    """
    digest = hashlib.sha256()
    store = pyro.get_param_store()
    bare = [t for name, t in sorted(store.items()) if user_param_name(name) == name]
    for part in (*parts, bare):
        if isinstance(part, nn.Module):
            part = list(part.state_dict().values())
        for piece in part if isinstance(part, list | tuple) else [part]:
            if isinstance(piece, Tensor):
                digest.update(repr((tuple(piece.shape), piece.dtype)).encode())
                digest.update(piece.detach().cpu().contiguous().numpy().tobytes())
            else:
                digest.update(repr(piece).encode())
    return digest.hexdigest()


def by_rows(
    kind: type[Result],
    solve: Callable[[slice], Result],
    n: int,
    rows: int,
    *,
    cost: str,
    progress: bool,
    resume: str | Path | None,
    request: Callable[[], str],
) -> Result:
    """Return what `solve` gives for every few rows, joined.

    Args:
        kind: a dataclass of tensors with a row a datum, or of None.
        solve: returns those of a slice of rows.
        n: rows in all.
        rows: of one call.
        cost: what there is to do, told ahead.
        progress: tell it, and show a bar, on stderr.
        resume: a .safetensors file that keeps what is done; if it is there, the work goes on from
            it.
        request: returns the `fingerprint` of what was asked for: no other is gone on with.

    Raises:
        ValueError: the file is damaged, of another request, or cannot be there.
    """
    path = None if resume is None else Path(resume)
    asked = "" if path is None else request()
    found = {} if path is None else _read(path, asked)
    done = len(next(iter(found.values()))) if found else 0
    if progress:
        print(cost, file=sys.stderr, flush=True)
    with tqdm(total=n, initial=done, unit="data", leave=False, disable=not progress) as bar:
        for start in range(done, n, rows):
            part = solve(slice(start, min(start + rows, n)))
            new = {f.name: getattr(part, f.name) for f in fields(cast(Any, kind))}
            new = {name: t for name, t in new.items() if t is not None}
            found = {name: torch.cat([found[name], t] if found else [t]) for name, t in new.items()}
            if path is not None:
                _keep(path, found, asked)
            bar.update(min(start + rows, n) - start)
    return kind(**found)


def _keep(path: Path, found: dict[str, Tensor], request: str) -> None:
    tensors = {name: t.contiguous() for name, t in found.items()}
    write(path, lambda p: save_file(tensors, p, metadata={REQUEST: request}))


def _read(path: Path, request: str) -> dict[str, Tensor]:
    """Return what a file keeps of the same request, or nothing where there is no file."""
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise ValueError(
            f"expected resume to name a .safetensors file in a folder that exists; got {path}"
        )
    if not path.exists():
        return {}
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get(REQUEST) != request:
                raise ValueError(
                    f"expected {path} to hold the same work, begun before; it is of other data, "
                    "weights or options: name another file, or remove it"
                )
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; remove it to begin anew") from None
