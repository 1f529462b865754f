"""The report of a study: one page that holds everything, beside the tables and figures that it was made of."""

import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bamboo.analysis.figures import Section
from bamboo.analysis.plots import save_figure
from bamboo.analysis.report import CSS, html_figure, html_table
from bamboo.files import atomic_write

from .claims import RULE, Judgement, judge
from .figures import draw_all
from .results import NUMBERS, SHARES, Outcome, Results, write_tables

MORE_CSS = """
td.verdict { font-weight: 600; white-space: nowrap; } td.holds { color: #0a6b2f; } td.does { color: #b42318; }
tr.failed td { background: #fdf0ee; }
"""
MAIN = ("similarity", "effective_rank", "loss", "masked_accuracy", "accuracy", "nearest_neighbours", "linear_probe")


def write_report(results: Results, out: Path) -> list[Path]:
    """Write tables, claims.json, figures and report.html into a folder; the paths of all."""
    judged, sections = judge(results), draw_all(results)
    paths = write_tables(results, out)
    paths.append(_write_json(results, judged, out / "study.json"))
    for section in sections:
        paths += save_figure(section.figure, out / section.name)
    page = out / "report.html"
    with atomic_write(page) as temporary:
        text = "\n".join(_page(results, judged, sections, out))
        temporary.write_text(text + "\n", encoding="utf-8")
    return [page, *paths]


def _write_json(results: Results, judged: Sequence[Judgement], path: Path) -> Path:
    cells = [
        {"cell": one.cell.name, "state": one.state, "reason": one.reason, "numbers": one.numbers}
        for one in results.outcomes
    ]
    told = {"study": results.study.to_dict(), "rule": RULE, "claims": [one.to_dict() for one in judged], "cells": cells}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _page(results: Results, judged: Sequence[Judgement], sections: Sequence[Section], out: Path) -> Iterator[str]:
    study = results.study
    yield "<!DOCTYPE html>"
    yield f'<html lang="en"><head><meta charset="utf-8"><title>Depth against width: {html.escape(study.name)}</title>'
    yield '<link rel="icon" href="data:,">'
    yield f'<meta name="viewport" content="width=device-width"><style>{CSS}{MORE_CSS}</style></head><body>'
    yield f"<h1>Depth against width: {html.escape(study.name)}</h1>"
    yield f'<p class="lead">{html.escape(_lead(results))}</p>'
    yield from (f'<p class="note">{html.escape(note)}</p>' for note in notes(results))
    yield "<h2>What the numbers say of the claims</h2>"
    yield _claims(judged)
    yield f"<p>{html.escape(RULE)} Similarity is that after the last block, over whole held-out samples.</p>"
    drawn, last = list(sections), [section for section in sections if section.name == "cost"]
    for section in drawn:
        if section not in last:
            yield f"<h2>{html.escape(section.heading)}</h2>"
            yield html_figure(section, out)
    yield "<h2>All cells</h2>"
    yield "<p>Means over seeds; in brackets the lowest and the highest.</p>"
    yield html_table(*_means(results))
    yield "<p>Every cell. Its numbers are in result.json of its folder, layer by layer in profile/profile.csv.</p>"
    yield _cells(results, out)
    for section in last:
        yield f"<h2>{html.escape(section.heading)}</h2>"
        yield html_figure(section, out)
    yield "<h2>Settings</h2>"
    yield html_table(["", ""], _settings(results))
    yield "</body></html>"


def _lead(results: Results) -> str:
    study, count = results.study, len(results.outcomes)
    shapes = ", ".join(f"{label} ({shape.parameters:,} parameters)" for label, shape in study.shapes.items())
    return (
        f"Blocks of {shapes}; objectives {', '.join(study.objectives)}; {len(study.seeds)} seeds; "
        f"{len(results.done)} of {count} cells finished."
    )


def notes(results: Results) -> list[str]:
    """What a reader must know before believing a mean: cells that failed or are not there."""
    failed = [one for one in results.outcomes if one.state == "failed"]
    found = [f"{one.cell.name} failed and is in no mean: {one.reason}" for one in failed]
    missing = [one.cell.name for one in results.outcomes if one.state in ("waiting", "begun")]
    if missing:
        some = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        found.append(f"{len(missing)} cells are not finished and in no mean: {some}")
    if results.study.allow_unequal:
        found.append("the shapes need not be equal in parameters here: allow_unequal is set")
    return found


def _claims(judged: Sequence[Judgement]) -> str:
    head = ("claim", "judged on", "verdict", "trend per doubling of depth", "95 % interval", "seeds", "means by shape")
    rows = []
    for one in judged:
        ends = "" if one.low is None else f"{one.low:+.3f} to {one.high:+.3f}"
        seeds = f"{len(one.seeds)} of {one.asked}"
        trend = "" if one.trend is None else f"{one.trend:+.3f}"
        cells = [one.claim, one.objective, one.verdict, trend, ends, seeds, one.evidence]
        kind = f"verdict {one.verdict.split()[0]}"
        rows.append(
            "".join(
                f'<td class="{kind}">{html.escape(text)}</td>' if place == 2 else f"<td>{html.escape(text)}</td>"
                for place, text in enumerate(cells)
            )
        )
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _means(results: Results) -> tuple[list[str], list[list[str]]]:
    names = [name for name in MAIN if results.has(name)]
    rows = []
    for series in results.series:
        for label in results.study.shapes:
            found = {name: [*results.values(series, label, name).values()] for name in names}
            count = len(results.of(series, label))
            rows.append(
                [
                    series.label,
                    label,
                    f"{count} of {len(results.study.seeds)}",
                    *(_mean(n, v) for n, v in found.items()),
                ]
            )
    return ["objective", "shape", "seeds", *(NUMBERS[name] for name in names)], rows


def _mean(name: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    ends = f" ({show(name, min(values))} to {show(name, max(values))})" if len(values) > 1 else ""
    return show(name, float(np.mean(values))) + ends


def show(name: str, value: float) -> str:
    """A number as people read it."""
    if name in SHARES:
        return f"{100 * value:.1f} %"
    if name == "activation_bytes":
        return f"{value / 1e6:.1f} MB"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1 else f"{value:.3f}"


def _cells(results: Results, out: Path) -> str:
    names = [name for name in NUMBERS if results.has(name)]
    head = ["cell", "state", *(NUMBERS[name] for name in names), "ms per step", "seconds"]
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(_cell(one, names, out) for one in results.outcomes)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _cell(one: Outcome, names: Sequence[str], out: Path) -> str:
    texts = [show(name, one.numbers[name]) if name in one.numbers else "" for name in names]
    if one.cost:
        spent = sum(value for name, value in one.cost.items() if name.startswith("seconds_"))
        texts += [f"{1000 * one.cost['step_seconds']:.1f}" if "step_seconds" in one.cost else "", f"{spent:.0f}"]
    numbers = "".join(f'<td class="number">{text}</td>' for text in texts)
    folder = one.folder.relative_to(out) if one.folder.is_relative_to(out) else one.folder
    name = html.escape(one.cell.name)
    link = f'<a href="{html.escape(str(folder))}/result.json">{name}</a>' if one.state == "done" else name
    state = "failed" if one.state == "failed" else ""
    return f'<tr class="{state}"><td>{link}</td><td>{one.state}</td>{numbers}</tr>'


def _settings(results: Results) -> Iterator[list[str]]:
    told: dict[str, Any] = results.study.to_dict()
    for name in ("seeds", "axes", "threads", "launch"):
        if told.get(name):
            yield [name, str(told[name])]
    for name, value in told["evaluation"].items():
        yield [f"evaluation: {name.replace('_', ' ')}", ", ".join(value) if isinstance(value, list) else str(value)]
    for name, objective in results.study.objectives.items():
        for stage, config in (("", objective.config), (", then", objective.then)):
            if config:
                trainer = config["trainer"]
                budget = {key: trainer[key] for key in ("max_epochs", "max_steps", "precision") if key in trainer}
                yield [f"{name}{stage}", f"{config['model']['class_path']}: {budget}"]
    devices = sorted({one.device for one in results.done})
    yield ["devices", ", ".join(devices)]
