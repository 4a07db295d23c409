"""The catalogue: every pair and part, with formula and paper, as its docstring gives them."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyrovae import likelihoods, nets, objectives, posteriors, priors
from pyrovae.nets.naming import hyphenated
from pyrovae.pairs.names import PAIRS, exported

KINDS: dict[str, Mapping[str, Any]] = {
    "pairs": PAIRS,
    "priors": exported(priors),
    "likelihoods": exported(likelihoods),
    "posteriors": exported(posteriors),
    "nets": exported(nets),
    "objectives": exported(objectives),
}
WIDTH = 34  # of the names' column
NAME = r"(?:van (?:den |der )?)?[A-Z][^\W\d]+(?:-[A-Z][^\W\d]+)*"
CITATION = re.compile(rf"({NAME}(?:, {NAME})*(?:,? & {NAME}| et al\.)?) \((\d{{4}})")


@dataclass(frozen=True)
class Entry:
    """One pair or part.

    Attributes:
        kind: pairs, priors, likelihoods, posteriors, nets or objectives.
        name: of the class, or of the function that makes a net's factory.
        formula: the first sentence of its docstring.
        papers: those that the docstring cites, "Kingma & Welling 2014".
    """

    kind: str
    name: str
    formula: str
    papers: tuple[str, ...]

    @property
    def row(self) -> str:
        """The row of README's table."""
        formula = self.formula.replace("|", "\\|").replace("`", "")
        return f"| `{self.name}` | `{formula}` | {'; '.join(self.papers)} |"

    def __str__(self) -> str:
        lines = [self.formula, *(["; ".join(self.papers)] if self.papers else [])]
        names = [hyphenated(self.name), *[""] * len(lines)]
        return "\n".join(f"  {n:<{WIDTH}}{text}" for n, text in zip(names, lines, strict=False))


def entry(kind: str, name: str, part: Any) -> Entry:
    """Return what a part's docstring says of it."""
    text = inspect.getdoc(part) or ""
    first = " ".join(text.split("\n\n")[0].split()).removeprefix("Return a factory of ")
    text = " ".join(text.split())
    papers = dict.fromkeys(f"{names} {year}" for names, year in CITATION.findall(text))
    return Entry(kind, name, first.removesuffix("."), tuple(papers))


def catalogue() -> list[Entry]:
    """Return every part that `build` and the command line know by name."""
    return [
        entry(kind, name, part) for kind, found in KINDS.items() for name, part in found.items()
    ]


def describe_parts() -> str:
    """Return the whole catalogue, for people."""

    def lines() -> Iterator[str]:
        entries = catalogue()
        for kind in KINDS:
            yield kind
            yield from (str(e) for e in entries if e.kind == kind)

    return "\n".join(lines())
