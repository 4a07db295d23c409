"""What a user names by a word: classes, and their options, checked against their annotations."""

import collections.abc
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any


def normalised(name: str) -> str:
    """Return a name without case, hyphens, underscores or a final "ELBO"."""
    return name.lower().replace("-", "").replace("_", "").removesuffix("elbo")


def hyphenated(name: str) -> str:
    """Return a class's name as the command line has it: VampPrior -> vamp-prior, DReG -> dreg."""
    name = name.removesuffix("_ELBO").removesuffix("ELBO").replace("_", "-")
    acronym = name[:2].isupper()
    return (name if acronym else re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name)).lower()


def by_name(kind: str, name: str, choices: Mapping[str, Any]) -> Any:
    """Return the choice of that name, compared without case, hyphen, underscore or final "ELBO".

    Args:
        kind: what is chosen, for the error.
        name: what the user wrote.
        choices: the objects by their Python names.

    Raises:
        ValueError: no such name; the message lists those there are.
    """
    for key, value in choices.items():
        if normalised(key) == normalised(name):
            return value
    names = ", ".join(sorted(hyphenated(key) for key in choices))
    raise ValueError(f"expected {kind} to be one of {names}; got {name!r}")


def typed(
    role: str,
    factory: Callable[..., Any],
    options: Mapping[str, Any],
    taken: Collection[str],
    name: str | None = None,
) -> dict[str, Any]:
    """Return options as the arguments that a class or function takes.

    "name:1,2" becomes an object of the class of that name, where the option is annotated as a class
    that stands in the factory's own package; lists become tuples.

    Args:
        role: what the factory makes, for errors.
        factory: a class or function with annotated arguments.
        options: values by name, as JSON has them.
        taken: arguments that are no options, since they are given otherwise.
        name: of what the factory makes, for errors; by default the factory's own.

    Raises:
        ValueError: no such option, or a value of another type.
    """
    free = [key for key in inspect.signature(factory).parameters if key not in taken]
    called: Any = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
    hints = typing.get_type_hints(called)
    found = {}
    for key, value in options.items():
        if key not in free:
            raise ValueError(
                f"expected options of {role} {hyphenated(name or factory.__name__)} among "
                f"{', '.join(free) or '(none)'}; got {key!r}"
            )
        hint = hints.get(key, Any)
        package = factory.__module__.rpartition(".")[0]
        if isinstance(value, str) and package == getattr(hint, "__module__", "").rpartition(".")[0]:
            value = _object(key, value, hint)
        if not _fits(value, hint):
            kind = hint.__name__ if isinstance(hint, type) else str(hint)
            raise ValueError(f"expected {key} to be of type {kind}; got {value!r}")
        found[key] = tuple(value) if isinstance(value, list) else value
    return found


def _fits(value: Any, hint: Any) -> bool:
    """Is a value what an annotation says? Of annotations not known here, everything is."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is tuple:
        alike = len(arguments) == 2 and arguments[1] is Ellipsis
        hints = (
            arguments[:1] * len(value) if alike and isinstance(value, list | tuple) else arguments
        )
        return isinstance(value, list | tuple) and (
            len(value) == len(hints) and all(map(_fits, value, hints))
        )
    if origin is collections.abc.Sequence:
        return isinstance(value, list | tuple) and all(_fits(v, arguments[0]) for v in value)
    if hint in (int, float):  # True is a whole number to Python, and 1 no float
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    if hint is None:
        return value is None
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _object(key: str, text: str, base: type) -> Any:
    """Return the object that "name" or "name:argument,argument" names: a subclass of `base`."""
    name, _, arguments = text.partition(":")
    subclasses = {c.__name__: c for c in _subclasses(base)}
    chosen = by_name(key, name, subclasses)
    try:
        return chosen(*(float(a) for a in arguments.split(",") if a))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected {key}={hyphenated(name)}[:numbers]; got {text!r}: {error}"
        ) from None


def _subclasses(base: type[Any]) -> list[type[Any]]:
    found = list(base.__subclasses__())
    for subclass in list(found):
        found += _subclasses(subclass)
    return found
