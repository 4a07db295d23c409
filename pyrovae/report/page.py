"""HTML: paragraphs, tables, figures, and the one file that holds them all."""

import base64
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from torch import Tensor

from pyrovae.plots.mosaics import is_image, sprite
from pyrovae.plots.style import DPI, encoded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VECTOR = 120_000  # bytes, up to which a figure is embedded as SVG, sharp at any size
SIDE = 1000  # units of the map's width


@dataclass(frozen=True)
class Pointed:
    """What a figure shows where it is pointed at.

    Attributes:
        at: where, as shares of its width and height from the top left, (N, 2).
        texts: what is said of each, N.
        x: data of which the images are shown, (N, *data_shape); text alone of what are no images.
    """

    at: Tensor
    texts: Sequence[str]
    x: Tensor


@dataclass(frozen=True)
class Drawn:
    """A figure of the page.

    Attributes:
        name: of its files, and of its place on the page.
        title: in a few words.
        caption: what a good one looks like.
        figure: the figure.
        pointed: what pointing at it shows.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"
    pointed: Pointed | None = None

    @functools.cached_property
    def files(self) -> dict[str, bytes]:
        """Its files by kind, png and svg."""
        return {kind: encoded(self.figure, kind) for kind in ("png", "svg")}


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        name: of its place on the page.
        title: its heading.
        blocks: HTML, and figures; figures in a row stand side by side where there is room.
    """

    name: str
    title: str
    blocks: Sequence[str | Drawn]


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def note(title: str, reason: str) -> str:
    """Say that something is not shown, and why."""
    return paragraph(f"{title}: not shown. {reason}", "note")


def code(text: str) -> str:
    """Return a line of code, which wraps."""
    return f"<pre><code>{escape(text)}</code></pre>"


def scrolling(name: str, html: str) -> str:
    """Put HTML into a box that scrolls sideways, by the keyboard too."""
    return (
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">{html}</div>'
    )


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, whose first column is words and whose others are numbers or short words.

    Args:
        caption: what it is.
        head: names of the columns.
        rows: cells.
    """
    numeric = [
        all(row[i][:1].isdigit() or row[i][:1] in "−+–" for row in rows) for i in range(len(head))
    ]

    def line(cells: Sequence[str]) -> str:
        parts = [f'<th scope="row">{escape(cells[0])}</th>']
        for cell, number in zip(cells[1:], numeric[1:], strict=True):
            parts.append(f'<td class="{"number" if number else "words"}">{escape(cell)}</td>')
        return f"<tr>{''.join(parts)}</tr>"

    names = "".join(
        f'<th scope="col"{" class=number" if number and i else ""}>{escape(name)}</th>'
        for i, (name, number) in enumerate(zip(head, numeric, strict=True))
    )
    body = "".join(line(row) for row in rows)
    return paragraph(f"{caption}.", "soft") + scrolling(
        caption, f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"
    )


def figure(drawn: Drawn) -> str:
    """Return a figure with its caption, which is its alternative text too."""
    kind, content = "svg+xml", drawn.files["svg"]
    if len(content) > VECTOR or any(axes.images for axes in drawn.figure.axes):
        kind, content = "png", drawn.files["png"]  # pixels of an SVG are blurred where it is scaled
    width, height = (round(inches * DPI) for inches in drawn.figure.get_size_inches())
    words = f"{drawn.title}. {drawn.caption}"
    image = (
        f'<img src="{_uri(kind, content)}" alt="{escape(words)}" width="{width}" height="{height}">'
    )
    if drawn.pointed is not None:
        image = _with_pointer(image, drawn, SIDE * height / width)
    return (
        f'<figure id="{drawn.name}">{image}<figcaption><b>{escape(drawn.title)}.</b> '
        f"{escape(drawn.caption)}</figcaption></figure>"
    )


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _with_pointer(image: str, drawn: Drawn, height: float) -> str:
    """Lay the data's places over an image, and beneath it what is shown of them."""
    assert drawn.pointed is not None
    x = drawn.pointed.x
    circles = "".join(
        f'<circle class="point" r="8" cx="{SIDE * left:.1f}" cy="{height * top:.1f}" '
        f'data-cell="{i}" data-text="{escape(text)}"/>'
        for i, ((left, top), text) in enumerate(
            zip(drawn.pointed.at.tolist(), drawn.pointed.texts, strict=True)
        )
    )
    thumb = _thumb(x) if is_image(x.shape[1:]) else ""
    return (
        f'<div class="map">{image}<svg viewBox="0 0 {SIDE} {height:.1f}" tabindex="0" '
        f'role="application" aria-label="{escape(drawn.title)}: arrow keys go from datum to datum" '
        f'aria-describedby="{drawn.name}-words">{circles}<circle class="ring" r="17"/></svg></div>'
        f'<div class="readout">{thumb}<p id="{drawn.name}-words" role="status">Point at a mark, or '
        "tap it, to see the datum.</p></div>"
    )


def _thumb(x: Tensor) -> str:
    """Return the box that shows one image cut out of all of them."""
    from matplotlib.image import imsave

    columns = max(1, round(len(x) ** 0.5))
    rows = -(-len(x) // columns)
    file = io.BytesIO()
    imsave(file, sprite(x, columns).numpy(), format="png")
    height, width = x.shape[-2:]
    return (
        f'<div class="thumb" role="img" aria-label="no datum chosen" data-columns="{columns}" '
        f'data-rows="{rows}" style="visibility: hidden; aspect-ratio: {width} / {height}; '
        f"background-size: {100 * columns}% {100 * rows}%; "
        f'background-image: url({_uri("png", file.getvalue())})"></div>'
    )


def document(title: str, lead: str, parts: Sequence[tuple[str, str, Sequence[Section]]]) -> str:
    """Return the whole page.

    Args:
        title: of the page.
        lead: a line beneath it.
        parts: name of the place, heading and sections of each.
    """
    links = "".join(
        f'<li><a href="#{section.name}">{escape(section.title)}</a></li>'
        for _, _, sections in parts[:1]
        for section in sections
    ) + "".join(f'<li><a href="#{name}">{escape(head)}</a></li>' for name, head, _ in parts[1:])
    body = [f"<h1>{escape(title)}</h1>", paragraph(lead, "soft")]
    body.append(f'<nav aria-label="Contents"><ul>{links}</ul></nav>')
    for name, heading, sections in parts:
        body.append(f'<h2 id="{name}">{escape(heading)}</h2>')
        for section in sections:
            body.append(f'<h3 id="{section.name}">{escape(section.title)}</h3>')
            body += _blocks(section.blocks)
    template = Template(files("pyrovae.report").joinpath("page.html").read_text("utf-8"))
    return template.substitute(title=escape(title), body="\n".join(body))


def _blocks(blocks: Sequence[str | Drawn]) -> list[str]:
    """Return blocks, those figures that follow one another in one grid."""
    found: list[str] = []
    row: list[str] = []
    for block in [*blocks, ""]:
        if isinstance(block, Drawn):
            row.append(figure(block))
            continue
        if row:
            found.append(f'<div class="figures">{"".join(row)}</div>')
            row = []
        found.append(block)
    return found
