"""Arrays with names as ArviZ's own object, whichever ArviZ is installed. Knows no torch."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = "data"  # the dimension of the data
RESERVED = ("chain", "draw", DATA)

Arrays = Mapping[str, NDArray[Any]]
Names = Mapping[str, Sequence[str]]
Coordinates = Mapping[str, Any]  # a sequence of labels each


def load_arviz() -> Any:
    """Import ArviZ, without the word of 0.2x, once a day, that 1.0 is coming."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def from_arrays(
    groups: Mapping[str, Arrays],
    dims: Names,
    coords: Coordinates,
    notes: Mapping[str, Mapping[str, str]] | None = None,
) -> Any:
    """Return an `InferenceData` (ArviZ 0.2x) or a `DataTree` (1.x): the same groups and variables.

    Args:
        groups: arrays by group and variable; those of "observed_data" and "constant_data" have the
            dimensions that `dims` names, all others chain and draw before these. A group with no
            variable is left out.
        dims: for each variable the names of its dimensions, chain and draw left out.
        coords: for each dimension its labels.
        notes: attributes of a group, of those with chain and draw.
    """
    az = load_arviz()
    values = {group: dict(arrays) for group, arrays in groups.items() if arrays}
    named = {"dims": {k: list(v) for k, v in dims.items()}, "coords": dict(coords)}
    notes = notes or {}
    if int(az.__version__.split(".")[0]) < 1:
        attributes = {f"{group}_attrs": dict(note) for group, note in notes.items()}
        return az.from_dict(**values, **named, **attributes)
    return az.from_dict(values, **named, attrs={group: dict(note) for group, note in notes.items()})


def name_dims(
    events: Mapping[str, Sequence[int]],
    rows: Sequence[Any],
    dims: Names | None = None,
    coords: Coordinates | None = None,
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Return names for all dimensions of variables of data, and labels for all of these.

    Args:
        events: shape of one datum of each variable.
        rows: the data's labels.
        dims: names of event dimensions, by variable; by default `{variable}_dim_{i}`.
        coords: labels, by dimension, "data" among them; by default 0, 1, ...

    Returns:
        Dimensions by variable, the first of them "data", and labels by dimension.

    Raises:
        ValueError: a name that is unknown, reserved, doubled or of another length.

    Example:
        >>> name_dims({"z": (2,)}, rows=range(3), dims={"z": ["latent"]})[0]
        {'z': ['data', 'latent']}
    """
    dims, coords = dims or {}, {DATA: rows} | dict(coords or {})
    if unknown := set(dims) - set(events):
        raise ValueError(f"expected dims of the variables {list(events)}; got {sorted(unknown)}")
    named: dict[str, list[str]] = {}
    sizes: dict[str, int] = {DATA: len(rows)}
    for variable, shape in events.items():
        names = list(dims.get(variable, [f"{variable}_dim_{i}" for i in range(len(shape))]))
        if len(names) != len(shape) or len(set(names)) < len(names) or set(names) & {*RESERVED}:
            raise ValueError(
                f"expected dims of {variable!r} to be {len(shape)} different names for the event "
                f"shape {tuple(shape)}, other than {', '.join(RESERVED)}; got {names}"
            )
        for name, size in zip(names, shape, strict=True):
            if sizes.setdefault(name, size) != size:
                raise ValueError(
                    f"expected the dimension {name!r} to have one length; got {sizes[name]} and, "
                    f"for {variable!r}, {size}: give it another name in dims"
                )
        named[variable] = [DATA, *names]
    if unknown := set(coords) - set(sizes):
        raise ValueError(f"expected coords of the dimensions {list(sizes)}; got {sorted(unknown)}")
    for name, labels in coords.items():
        if len(labels) != sizes[name]:
            raise ValueError(
                f"expected {sizes[name]} labels in coords for {name!r}; got {len(labels)}"
            )
    return named, {name: coords.get(name, np.arange(size)) for name, size in sizes.items()}
