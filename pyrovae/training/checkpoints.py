"""Checkpoints of a training: each a directory that is there whole and right, or not at all.

    checkpoints/00000500/           the state after 500 steps
        manifest.json               format, and size and SHA-256 of the two others
        state.json                  numbers, and where tensors belong
        tensors.safetensors         weights, the optimizer's state, the best weights

A checkpoint is written under another name, flushed to the disk, and renamed. Nothing is unpickled.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

FORMAT = 1
KEPT = 2  # checkpoints of a run: the newest may be lost to a bad disk
FOLDER = "checkpoints"
MANIFEST, STATE, TENSORS = "manifest.json", "state.json", "tensors.safetensors"
LITTER = ".unfinished-"  # before the name of what is being written or removed
TENSOR, TUPLE, ITEMS = "$tensor", "$tuple", "$items"  # how JSON tells what it has no word for


class CheckpointError(ValueError):
    """What is on disk is damaged, or is not of this training; the message says what to do."""


def save(run: Path, step: int, state: Any) -> Path:
    """Write the checkpoint of a step, and remove all but the last ones.

    Args:
        run: the run's directory.
        step: how many steps are done.
        state: dicts, lists, tuples, tensors, numbers, words and None.

    Returns:
        Its directory.

    Raises:
        OSError: it cannot be written; those before it are as they were.
    """
    folder = run / FOLDER
    path = folder / f"{step:08d}"
    if path.exists():  # gone on with from here, and stopped at once
        return path
    try:
        folder.mkdir(exist_ok=True)
        _sweep(folder)
        made = Path(tempfile.mkdtemp(dir=folder, prefix=LITTER))
        try:
            _write(made, state)
            made.rename(path)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        _flush(folder)
    except OSError as error:
        why = error.strerror or error
        raise OSError(
            f"the checkpoint of step {step} cannot be written to {folder}: {why}; what was there "
            "before is intact: make room, and go on with --resume (resume=True)"
        ) from error
    for old in _all(folder)[:-KEPT]:
        _remove(old)
    return path


def load_newest(run: Path) -> tuple[Path, Any] | None:
    """Return the newest checkpoint that is whole, and its state; None where there is none.

    Raises:
        CheckpointError: none of those that are there is whole, or one is of another format.
    """
    _sweep(run / FOLDER)
    found = _all(run / FOLDER)
    damaged = []
    for path in reversed(found):
        try:
            state = _read(path)
        except CheckpointError as error:
            damaged.append(error)
            continue
        for later in found[found.index(path) + 1 :]:  # or they would be taken for the last ones
            _remove(later)
        return path, state
    if damaged:
        raise CheckpointError(
            f"no checkpoint of {run} is whole: {'; '.join(map(str, damaged))}: train anew, or copy "
            "the run from a backup"
        )
    return None


def _all(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda p: int(p.name))


def _sweep(folder: Path) -> None:
    """Remove what saves that were killed have left."""
    for path in folder.glob(LITTER + "*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a checkpoint: at any moment it is there whole, or under no checkpoint's name."""
    aside = path.with_name(LITTER + path.name)
    with contextlib.suppress(OSError):
        path.rename(aside)
        shutil.rmtree(aside)


def _write(folder: Path, state: Any) -> None:
    tensors: dict[str, Tensor] = {}
    tree = _packed(state, tensors, "")
    files = {
        STATE: json.dumps(tree).encode(),
        TENSORS: safetensors.torch.save(tensors),
    }
    manifest = {
        "format": FORMAT,
        "files": {name: {"bytes": len(b), "sha256": _digest(b)} for name, b in files.items()},
    }
    files[MANIFEST] = json.dumps(manifest, indent=2).encode() + b"\n"
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for name, content in files.items():
        with (folder / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _flush(folder)


def _flush(folder: Path) -> None:
    """Bring a directory's entries to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> Any:
    """Return the state of a checkpoint.

    Raises:
        CheckpointError: it is not whole, or not of this format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        version = manifest["format"]
        files = {name: manifest["files"][name] for name in (STATE, TENSORS)}
        contents = {name: (path / name).read_bytes() for name in files}
        for name, told in files.items():
            if len(contents[name]) != told["bytes"] or _digest(contents[name]) != told["sha256"]:
                raise ValueError(f"{name} is not what was written")
        if version != FORMAT:
            raise ValueError(
                f"it is of format {version!r}, and this pyrovae reads {FORMAT}: take another"
            )
        tensors = safetensors.torch.load(contents[TENSORS])
        return _unpacked(json.loads(contents[STATE]), tensors)
    except (ValueError, KeyError, TypeError, OSError, safetensors.SafetensorError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path} is damaged: {told}") from None


def _packed(tree: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Return a tree as JSON-able data, its tensors moved to `tensors`."""
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach().cpu().clone().contiguous()
        return {TENSOR: name}
    if isinstance(tree, Mapping):
        items = [[key, _packed(value, tensors, f"{name}.{key}")] for key, value in tree.items()]
        plain = all(isinstance(key, str) and not key.startswith("$") for key in tree)
        return dict(items) if plain else {ITEMS: items}
    if isinstance(tree, list | tuple):
        several = [_packed(value, tensors, f"{name}.{i}") for i, value in enumerate(tree)]
        return {TUPLE: several} if isinstance(tree, tuple) else several
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(
        f"expected a state of tensors, numbers and words, which can be read back without "
        f"unpickling; got {type(tree).__name__} at {name.lstrip('.')}"
    )


def _unpacked(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpacked(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if TENSOR in tree:
        return tensors[tree[TENSOR]]
    if TUPLE in tree:
        return tuple(_unpacked(value, tensors) for value in tree[TUPLE])
    if ITEMS in tree:
        return {key: _unpacked(value, tensors) for key, value in tree[ITEMS]}
    return {key: _unpacked(value, tensors) for key, value in tree.items()}


def fill(tensors: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Copy tensors of a checkpoint into those of a training.

    Args:
        tensors: by name, to be filled in place.
        found: by name, from the checkpoint.

    Raises:
        CheckpointError: other names, shapes or dtypes, or values that are not finite; nothing is
            filled then.
    """
    remedy = "build the pair as it was, or name another run"
    if missing := sorted(set(tensors) ^ set(found)):
        raise CheckpointError(
            f"the checkpoint is of another pair: {', '.join(missing[:3])} is in one of the two "
            f"alone: {remedy}"
        )
    for name, tensor in tensors.items():
        new = found[name]
        if (new.shape, new.dtype) != (tensor.shape, tensor.dtype):
            raise CheckpointError(
                f"the checkpoint is of another pair: expected {name} {tuple(tensor.shape)} "
                f"{tensor.dtype}; got {tuple(new.shape)} {new.dtype}: {remedy}"
            )
        if tensor.requires_grad and not bool(new.isfinite().all()):
            raise CheckpointError(f"the checkpoint's {name} is not finite: train anew")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(found[name])
