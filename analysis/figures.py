"""What the report of studies still draws its page with, until it takes `pages`."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d8dee4; }
p.lead { color: #57606a; margin-top: .2rem; }
p.note { background: #fff8e6; border-left: 3px solid #d99e00; padding: .3rem .7rem; }
table { border-collapse: collapse; font-size: .9rem; margin: .8rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #d8dee4; padding: .3rem .7rem; text-align: left; vertical-align: top; }
th { background: #f6f8fa; font-weight: 600; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #57606a; font-size: .9rem; }
"""


class Section(NamedTuple):
    """A figure with its heading and caption; `name` is that of its files."""

    name: str
    heading: str
    caption: str
    figure: Figure


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, numbers to the right."""

    def cell(text: str) -> str:
        kind = ' class="number"' if text.replace(".", "").replace("-", "").isdigit() else ""
        return f"<td{kind}>{html.escape(text)}</td>"

    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def html_figure(section: Section, folder: Path) -> str:
    """A saved figure as an image in the page: drawn lines as SVG, pictures as PNG."""
    kind = "png" if any(axis.images for axis in section.figure.axes) else "svg"
    data = base64.b64encode((folder / f"{section.name}.{kind}").read_bytes()).decode()
    mime, text = "image/svg+xml" if kind == "svg" else "image/png", html.escape(section.caption)
    width = round(96 * section.figure.get_figwidth())  # its own size, whatever the resolution
    image = f'<img alt="{text}" width="{width}" src="data:{mime};base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
