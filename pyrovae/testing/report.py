"""What a check returns: rows, the failures among them, and the table."""

import textwrap
from dataclasses import dataclass
from typing import Literal

WIDTH = 64  # characters of the details' column

Verdict = Literal["ok", "note", "FAILS"]


@dataclass(frozen=True)
class Row:
    """One law or estimator, and what was seen of it.

    Attributes:
        name: of the law or the estimator.
        verdict: ok; note, worth knowing but right; or FAILS.
        detail: what was seen, in words.
        site: the site of the pair that is at fault, if one is.
        value: the estimate, in nats a datum.
        standard_error: of the value.
        gradient: largest relative difference to the gradient expected, over the parameters.
    """

    name: str
    verdict: Verdict
    detail: str
    site: str = ""
    value: float | None = None
    standard_error: float | None = None
    gradient: float | None = None


@dataclass(frozen=True)
class Failure:
    """A law that does not hold: at which site or part, which law, and the whole sentence."""

    site: str
    cause: str
    message: str


@dataclass(frozen=True)
class Report:
    """What a check found. `str(report)` is the table.

    Attributes:
        subject: what was checked.
        rows: every law and estimator.
    """

    subject: str
    rows: tuple[Row, ...]

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The laws that do not hold; notes are not among them."""
        return tuple(
            Failure(r.site, r.name, r.detail)
            if r.site
            else Failure(self.subject, r.name, f"{self.subject}: {r.name}: {r.detail}")
            for r in self.rows
            if r.verdict == "FAILS"
        )

    @property
    def ok(self) -> bool:
        """Do all laws hold?"""
        return not self.failures

    def __str__(self) -> str:
        numbers = any(r.value is not None for r in self.rows)
        cells = [
            [
                r.name,
                *([_cell(r.value, ".4f"), _cell(r.standard_error, ".2g")] if numbers else []),
                *([_cell(r.gradient, ".1e")] if numbers else []),
                r.verdict,
            ]
            for r in self.rows
        ]
        if numbers:
            heads = ["estimator or law", "value", "standard error", "gradient diff.", "verdict"]
            cells.insert(0, heads)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        right = set(range(1, len(widths) - 1))
        details = ["", *(r.detail for r in self.rows)] if numbers else [r.detail for r in self.rows]
        lines = [self.subject]
        for row, detail in zip(cells, details, strict=True):
            left = "  ".join(
                f"{cell:>{w}}" if i in right else f"{cell:<{w}}"
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            first, *rest = textwrap.wrap(detail, WIDTH) or [""]
            lines.append(f"{left}  {first}".rstrip())
            lines += [" " * (len(left) + 2) + line for line in rest]
        return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
