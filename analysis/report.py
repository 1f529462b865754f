"""The report of a comparison: which figures and tables it has, in order, and what is said beside them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .maps import Maps, plot_maps
from .measures.definitions import DEFINITIONS, describe
from .pages import Section, Table, write_page
from .plots import SHARES, plot_curves, plot_shares, plot_spectra
from .profiles import Comparison, Profile

SIMILARITIES = ("token_similarity", "between_similarity", "excess_similarity")
BANDS = "Lines are means over samples, bands 95 % intervals; a mark at the end is the state after the final norm."
DASHED = " Dashed: the mean of five networks of the same architecture, freshly initialised, and their range."
OF_SHARES = (
    "Shares of the energy of unit tokens, which add up to one. Token similarity (the line) is common + sample, but for "
    "the cosine of a token with itself. What is common to all samples is no smoothing, however large: the share of the "
    "sample is what over-smoothing feeds."
)
OF_SPECTRA = "Share of the energy by block and ring of frequency; ring 0 is the mean token, which over-smoothing feeds."
OF_SUMMARY = (
    "Similarity is the mean cosine of all pairs of tokens of a sample after the last block and after the final norm, "
    "between samples that of tokens of different ones; excess, (similarity − between) / (1 − between), is what remains "
    "for smoothing. Intervals of means over samples are Student's t. It passes a level at the first block whose mean "
    "is above it. The slope is the least-squares change over the whole depth."
)
OF_DEFINITIONS = (
    "X has the n tokens x_i that count as rows, m is their mean. A is an attention map, HC[X] = X − 1mᵀ. All is "
    "computed in fp32."
)
SUMMARY = {
    "model": "model",
    "depth": "blocks",
    "samples": "samples",
    "last": "similarity",
    "interval": "95 % interval",
    "after_norm": "after norm",
    "between": "between",
    "excess": "excess",
    "passes_0.5": "passes 0.5",
    "passes_0.9": "passes 0.9",
    "slope": "slope",
}


def write_report(path: Path, comparison: Comparison, maps: Sequence[Maps] = ()) -> list[Path]:
    """Write all figures of a comparison and one page that holds them; the paths of all, the page first."""
    profiles = comparison.profiles
    head, *rows = summary_rows(comparison)
    sections = [
        Section("Summary", OF_SUMMARY, table=Table(head, rows)),
        *_figures(profiles, maps),
        Section("Definitions", OF_DEFINITIONS, table=_definitions(profiles)),
        Section("Settings", table=_settings(profiles, "settings")),
        Section("Versions", table=_settings(profiles, "versions")),
    ]
    notes = [f"{profile.label}: {note}" for profile in profiles for note in profile.notes]
    names = ", ".join(profile.label for profile in profiles)
    return write_page(path, "How alike tokens grow with depth", names, sections, notes)


def summary_rows(comparison: Comparison) -> list[list[str]]:
    """Heads, and a row for each model: similarity after the last block, where it passes 0.5 and 0.9, and its slope."""
    rows = [list(SUMMARY.values())]
    for summary in comparison.summary():
        if "last" in summary:
            summary["interval"] = f"{summary['low']:.3f} to {summary['high']:.3f}"
            for name in ("passes_0.5", "passes_0.9"):
                summary[name] = {None: "never", 0: "starts above"}.get(summary[name], summary[name])
        rows.append([_text(summary.get(name, "")) for name in SUMMARY])
    return rows


def _figures(profiles: Sequence[Profile], maps: Sequence[Maps]) -> Iterator[Section]:
    measured = {measure for profile in profiles for _, measure in profile.measured}
    caption = BANDS + (DASHED if any(profile.baseline for profile in profiles) else "")
    relative = len({profile.depth for profile in profiles}) > 1
    if "common_share" in measured:
        yield Section("What similarity is made of", OF_SHARES, plot_shares(profiles), "shares")
    similar = [name for name in SIMILARITIES if name in measured]
    if similar:
        heading = "Similarity within samples, between them, and in excess of that" if len(similar) > 1 else "Similarity"
        yield Section(heading, caption, plot_curves(profiles, similar, relative), "similarity")
    others = [name for name in DEFINITIONS if name in measured and name not in (*SHARES, *SIMILARITIES)]
    if others:
        yield Section("All other measures", caption, plot_curves(profiles, others, relative), "measures")
    if relative and (similar or others):
        figure = plot_curves(profiles, [*similar, *others], relative=False)
        yield Section("All measures over absolute depth", caption, figure, "absolute_depth")
    if "spectrum/0" in measured:
        yield Section("Spectra", OF_SPECTRA, plot_spectra(profiles), "spectra")
    for number, model in enumerate(maps, start=1):
        row, column = model.centre
        text = f"Cosine of each patch to the marked one (row {row}, column {column}) and to the mean patch, by block."
        yield Section(f"Token-similarity maps: {model.label}", text, plot_maps(model), f"maps_{number}")


def _definitions(profiles: Sequence[Profile]) -> Table:
    titles = {describe(name).title for profile in profiles for _, name in profile.measured}
    measured = [definition for definition in DEFINITIONS.values() if definition.title in titles]
    rows = [[definition.title, definition.formula, definition.reading] for definition in measured]
    return Table(["measure", "definition", "how to read it"], rows)


def _settings(profiles: Sequence[Profile], kind: str) -> Table:
    columns = [getattr(profile, kind) for profile in profiles]
    names = dict.fromkeys(name for settings in columns for name in settings)
    rows = [[name.replace("_", " "), *(_text(settings.get(name, "")) for settings in columns)] for name in names]
    return Table(["", *(profile.label for profile in profiles)], rows)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
