"""Reports: one HTML page with figures and tables inside it, which opens anywhere without a network."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jinja2
from matplotlib.figure import Figure

from bamboo.files import write_text

from .plots import save_figure


class Cell(NamedTuple):
    """A cell of a table: `kind` is `number`, `good`, `bad`, `open` or `failed`, for its look; `link` a relative URL."""

    text: str
    kind: str = ""
    link: str = ""


class Table(NamedTuple):
    """A table. Cells may be plain texts, of which numbers are set to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a page: a heading, then whichever there is of a table, a figure and a text.

    The text is the caption of the figure, or a paragraph below the table; `name` is that of the figure's files.
    """

    heading: str
    text: str = ""
    figure: Figure | None = None
    name: str = ""
    table: Table | None = None


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section], notes: Iterable[str] = ()) -> list[Path]:
    """Write a page and, beside it, its figures as PNG and SVG: the paths of all, the page first.

    `lead` is a line below the title, and `notes` are what a reader should know first, each in a box. The page appears
    complete or not at all.
    """
    figures: list[Path] = []
    pictures = []
    for section in sections:
        if section.figure is not None:
            figures += save_figure(section.figure, path.parent / section.name)
        pictures.append(section.figure and _picture(section.figure, path.parent / section.name))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = _cell
    page = environment.get_template("page.html").render(
        title=title, lead=lead, notes=notes, sections=zip(sections, pictures, strict=True)
    )
    return [write_text(path, page), *figures]


def _picture(figure: Figure, path: Path) -> dict[str, object]:
    """A saved figure as the attributes of an image in the page: drawn lines as SVG, pictures as PNG."""
    kind, mime = ("png", "png") if any(axis.images for axis in figure.axes) else ("svg", "svg+xml")
    data = base64.b64encode(path.with_name(f"{path.name}.{kind}").read_bytes()).decode()
    # Its own size in CSS pixels, whatever the resolution.
    return {"width": round(96 * figure.get_figwidth()), "src": f"data:image/{mime};base64,{data}"}


def _cell(cell: str | Cell) -> Cell:
    if isinstance(cell, Cell):
        return cell
    return Cell(cell, "number" if cell.replace(".", "").replace("-", "").isdigit() else "")
