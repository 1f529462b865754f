"""One page that holds everything about a comparison and opens anywhere, without a network."""

import base64
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bamboo.files import atomic_write

from .definitions import DEFINITIONS, describe
from .figures import Section
from .intervals import RESAMPLES, say_first
from .profiles import Comparison

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
COLUMNS = {
    "model": "model",
    "depth": "blocks",
    "samples": "samples",
    "last": "similarity at the last block",
    "interval": "95 % interval",
    "after_norm": "after the final norm",
    "between": "between samples",
    "excess": "excess",
    "passes_0.5": "passes 0.5 at block",
    "passes_0.9": "passes 0.9 at block",
    "slope": "slope over depth",
}


def write_report(path: Path, comparison: Comparison, sections: Sequence[Section]) -> Path:
    """Write a comparison as one HTML page with everything inside it; it appears complete or not at all.

    Args:
        path: the page, in the folder that the figures were saved in.
        comparison: the profiles.
        sections: the figures, in order.
    """
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(_page(comparison, sections, path.parent)) + "\n", encoding="utf-8")
    return path


def _page(comparison: Comparison, sections: Sequence[Section], folder: Path) -> Iterator[str]:
    names = ", ".join(profile.label for profile in comparison.profiles)
    yield "<!DOCTYPE html>"
    yield f'<html lang="en"><head><meta charset="utf-8"><title>Over-smoothing: {html.escape(names)}</title>'
    yield '<link rel="icon" href="data:,">'  # or a browser asks a server for one
    yield f'<meta name="viewport" content="width=device-width"><style>{CSS}</style></head><body>'
    yield "<h1>How alike tokens grow with depth</h1>"
    yield f'<p class="lead">{html.escape(names)}</p>'
    yield "<h2>Summary</h2>"
    yield html_table(list(COLUMNS.values()), [_summary(row) for row in comparison.summary()])
    yield (
        "<p>Similarity is the mean cosine of all pairs of tokens of a sample, between samples that of tokens of "
        "different ones; excess, (similarity − between) / (1 − between), is what remains for smoothing. Intervals are "
        f"95 % percentile bootstraps over samples ({RESAMPLES} resamples). The slope is the least-squares change over "
        "the whole depth.</p>"
    )
    for profile in comparison.profiles:
        yield from (f'<p class="note">{html.escape(profile.label)}: {html.escape(note)}</p>' for note in profile.notes)
    for section in sections:
        yield f"<h2>{html.escape(section.heading)}</h2>"
        yield html_figure(section, folder)
    yield "<h2>Definitions</h2>"
    yield "<p>X has the n tokens x<sub>i</sub> that count as rows, m is their mean. A is an attention map, "
    yield "HC[X] = X − 1mᵀ. All is computed in fp32.</p>"
    yield html_table(["measure", "definition", "how to read it"], _definitions(comparison))
    yield "<h2>Settings</h2>"
    yield html_table(*_settings(comparison, "settings"))
    yield "<h2>Versions</h2>"
    yield html_table(*_settings(comparison, "versions"))
    yield "</body></html>"


def _summary(row: Mapping[str, Any]) -> list[str]:
    row = dict(row)
    if "low" in row:
        row["interval"] = f"{row['low']:.3f} to {row['high']:.3f}"
    for name in ("passes_0.5", "passes_0.9"):
        row[name] = say_first(row.get(name))
    return [_text(row.get(name, "")) for name in COLUMNS]


def _definitions(comparison: Comparison) -> list[list[str]]:
    measured = {describe(name).title for profile in comparison.profiles for _, name in profile.measured}
    found = [definition for definition in DEFINITIONS.values() if definition.title in measured]
    return [[definition.title, definition.formula, definition.reading] for definition in found]


def _settings(comparison: Comparison, what: str) -> tuple[list[str], list[list[str]]]:
    told = [getattr(profile, what) for profile in comparison.profiles]
    names = list(dict.fromkeys(name for one in told for name in one))
    rows = [[name.replace("_", " "), *(_text(one.get(name, "")) for one in told)] for name in names]
    return ["", *(profile.label for profile in comparison.profiles)], rows


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


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
