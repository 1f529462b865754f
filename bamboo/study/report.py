"""The report of a study: one page that holds everything, beside the tables and figures that it was made of."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bamboo.analysis.pages import Cell, Section, Table, write_page
from bamboo.files import read_json, write_json

from .claims import not_asked
from .courses import RECENT
from .folders import DIFFERENCES
from .judging import RULE, Judgement, judge
from .pictures import plot_maps, plot_reconstructions
from .plots import ALONG, plot_course, plot_layers, plot_lengths, plot_numbers, plot_pairs
from .results import FINETUNED, NUMBERS, SHARES, TRAIN, UNTRAINED, VISIBLE, WHOLE, Outcome, Results, write_tables

MAIN = (
    *("similarity", "excess", "excess_visible", "excess_finetuned", "effective_rank"),
    *("loss", "perplexity", "masked_accuracy", "next_accuracy", "accuracy"),
    *("nearest_neighbours_projected", "linear_probe", "linear_probe_projected"),
)
EXCESS = ("excess", "excess_before_last", "excess_normed", "excess_visible", "excess_finetuned")
LOOKS = {"holds": "good", "contradicted": "bad"}
INTERVALS = "Dots are seeds, lines their means, bars 95 % intervals of the mean over seeds (Student's t)."

SCORES = {
    "Accuracy against depth": (
        "accuracy",
        ["accuracy"],
        "Held-out accuracy: masked objectives after fine-tuning, supervised ones as trained.",
    ),
    "Frozen features against depth": (
        "frozen_features",
        [
            *("nearest_neighbours", "linear_probe", "effective_rank"),
            *("nearest_neighbours_projected", "linear_probe_projected"),
        ],
        "The encoder before any fine-tuning: nearest neighbours after the final norm, the best layer for a linear "
        "probe, both also on features that one fixed random matrix projects to the narrowest shape's width, and the "
        "effective rank of the tokens of a sample after the last block.",
    ),
    "The objective without labels against depth": (
        "masked_objective",
        ["loss", "masked_accuracy", "next_accuracy"],
        "How well the hidden part of held-out samples, or the next token, is predicted.",
    ),
}
"""By heading: the name of the figure's files, the numbers in it, and what it shows."""

PAYS = ("accuracy", "masked_accuracy", "next_accuracy", "linear_probe")
"""Numbers that are set against excess similarity."""


def write_report(results: Results, out: Path) -> list[Path]:
    """Write tables, study.json, figures and report.html into a folder; the paths of all, the page first."""
    judgements = judge(results)
    cells = [
        {"cell": outcome.cell.name, "state": outcome.state, "reason": outcome.reason, "numbers": outcome.numbers}
        for outcome in results.outcomes
    ]
    claims = [asdict(judgement) for judgement in judgements]
    write_json(out / "study.json", {"study": results.study.to_dict(), "rule": RULE, "claims": claims, "cells": cells})
    shapes = [f"{label} ({shape.parameters:,} parameters)" for label, shape in results.study.shapes.items()]
    lead = (
        f"Blocks of {', '.join(shapes)}; "
        f"objectives {', '.join(results.study.objectives)}; {len(results.study.seeds)} seeds; "
        f"{len(results.done)} of {len(results.outcomes)} cells finished."
    )
    title, sections = f"Depth against width: {results.study.name}", list(_sections(results, judgements, out))
    page, *figures = write_page(out / "report.html", title, lead, sections, notes(results))
    return [page, *write_tables(results, out), out / "study.json", *figures]


def notes(results: Results) -> list[str]:
    """What a reader must know before believing a mean: cells that failed or are not there."""
    failed = [outcome for outcome in results.outcomes if outcome.state == "failed"]
    fates = {True: "diverged and is in no mean, but in the claims", False: "failed and is in no mean"}
    lines = [f"{outcome.cell.name} {fates[outcome.diverged]}: {outcome.reason}" for outcome in failed]
    missing = [outcome.cell.name for outcome in results.outcomes if outcome.state in ("waiting", "begun")]
    if missing:
        some = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        lines.append(f"{len(missing)} cells are not finished and in no mean: {some}")
    if results.study.allow_unequal:
        lines.append(f"the shapes need not be equal in {results.study.equal} here: allow_unequal is set")
    widths = {outcome.numbers.get("projected_width") for outcome in results.done} - {None}
    if len(widths) > 1:
        some = " and ".join(f"{width:g}" for width in sorted(filter(None, widths)))
        lines.append(
            f"probes at equal width are of widths {some}, for a narrower shape came later: they do not compare"
        )
    return [*lines, *_at_an_end(results), *not_asked(results)]


def _sections(results: Results, judgements: Sequence[Judgement], out: Path) -> Iterator[Section]:
    rule = f"{RULE} Similarity is that over whole held-out samples."
    yield Section("What the numbers say of the claims", rule, table=_claims(judgements))
    if results.done:
        yield from _similarity(results)
        yield from _scores(results)
        yield from _lengths(results)
        yield from _pictures(results)
    text = "Means over seeds; in brackets the lowest and the highest."
    yield Section("All cells, by shape", text, table=_means(results))
    text = "Numbers of a cell are in result.json of its folder, layer by layer in profile/profile.csv."
    yield Section("All cells", text, table=_cells(results, out))
    if results.done:
        text = (
            "Time of one optimizer step, and the memory that its forward pass keeps for the backward pass, at equal "
            f"parameters. Bytes are counted; time is of the machine that ran them, as busy as it was. {INTERVALS}"
        )
        figure = plot_numbers(results, ["step_seconds", "activation_bytes"])
        yield Section("Cost against depth", text, figure, "cost")
    yield from _setup(results, out)
    yield Section("Settings", table=Table(["", ""], list(_settings(results))))


def _setup(results: Results, out: Path) -> Iterator[Section]:
    """What differs between the objectives, and every run that chose a value, with its cost."""
    if (out / DIFFERENCES).is_file():
        head, *rows = read_json(out / DIFFERENCES)["table"]
        yield Section("What differs between the objectives", "Besides the objective itself.", table=Table(head, rows))
    tries = [
        [name, *_tried(run), "chosen" if run["values"] == content["chosen"] else ""]
        for name, content in _tuning(results).items()
        for run in content["runs"]
    ]
    if tries:
        text = (
            f"Each combination was trained with the first seed for {results.study.tune.share:.0%} of the budget; the "
            "lowest loss on images taken from the training set chooses for all seeds."
        )
        head = ["objective and shape", "values", "validation loss", "seconds", ""]
        yield Section("Tuning", text, table=Table(head, tries))


def _tuning(results: Results) -> dict[str, Any]:
    """What was tried and chosen, by objective, shape and axes."""
    folders = dict.fromkeys(outcome.folder.parent.parent / "tuning" for outcome in results.done)
    return {path.stem: read_json(path) for folder in folders for path in sorted(folder.glob("*.json"))}


def _at_an_end(results: Results) -> Iterator[str]:
    """Where a chosen number is the lowest or the highest of those tried, so that the best may lie outside of them."""
    for name, content in _tuning(results).items():
        for key, value in content["chosen"].items():
            tried = [run["values"][key] for run in content["runs"]]
            if len({*tried}) > 1 and isinstance(value, int | float) and value in (min(tried), max(tried)):
                end = "lowest" if value == min(tried) else "highest"
                yield f"{name} was trained with {key.split('.')[-1]} {value:g}, the {end} that was tried"


def _tried(run: Mapping[str, Any]) -> list[str]:
    values = ", ".join(f"{name.split('.')[-1]} {value}" for name, value in run["values"].items())
    loss = run["reason"] if run["loss"] is None else f"{run['loss']:.4f}"
    return [values, loss, f"{run['seconds']:.0f}" if "seconds" in run else ""]


def _similarity(results: Results) -> Iterator[Section]:
    smoothing = "excess_similarity" if results.has("excess") else "token_similarity"
    rows = {smoothing: {WHOLE: "-", UNTRAINED: "--", FINETUNED: ":"}}
    if results.has("linear_probe"):
        rows["linear_probe"] = {WHOLE: "-"}
    text = (
        "What the tokens of a held-out sample share after each block beyond what all samples have in common, and how "
        "often a linear probe of that layer's features is right. Lines are means over seeds, bands reach from the "
        "lowest seed to the highest."
    )
    yield Section("Smoothing and probes, layer by layer", text, plot_layers(results, rows), "layers")
    if excess := [name for name in EXCESS if results.has(name)]:
        text = f"After the last block, whole samples, where nothing else is said. {INTERVALS} Dashed: before training."
        yield Section("Excess similarity against depth", text, plot_numbers(results, excess), "excess_against_depth")
    text = (
        "Mean cosine of all pairs of tokens after each block, over whole held-out samples, whatever all samples have "
        "in common included. Lines are means over seeds, bands reach from the lowest seed to the highest."
    )
    figure = plot_layers(results, {"token_similarity": {WHOLE: "-", UNTRAINED: "--"}})
    yield Section("Similarity over depth", text, figure, "similarity_over_depth")
    text = f"Similarity after the last block of each shape, at equal parameters. {INTERVALS} Dashed: before training."
    figure = plot_numbers(results, ["similarity"])
    yield Section("Last-layer similarity against depth", text, figure, "similarity_against_depth")
    yield from _courses(results)
    text = "The same as above on training samples, and on the share of patches that masked training sees."
    figure = plot_layers(results, {smoothing: {WHOLE: "-", TRAIN: ":", VISIBLE: "-."}})
    yield Section("Training samples, and the visible share", text, figure, "similarity_elsewhere")


def _courses(results: Results) -> Iterator[Section]:
    """Excess similarity along training, or raw similarity where a cell of an earlier version has no other."""
    courses = [outcome.course for outcome in results.done]
    excess = all(np.isfinite(course.similarity["excess_similarity"]).all() for course in courses)
    measure = "excess_similarity" if excess else "token_similarity"
    for against, name in ALONG.items():
        if any(np.isfinite(getattr(course, against)).any() for course in courses):
            text = (
                f"{measure.replace('_', ' ').capitalize()} after the last block while training goes on, on whole "
                "held-out samples whatever training masks. Thin lines are seeds, thick ones their mean. Loss is the "
                f"mean over {RECENT} training batches, FLOPs are those of training up to there, forward and backward."
            )
            figure = plot_course(results, measure, against)
            yield Section(f"Similarity along training, against {name}", text, figure, f"similarity_by_{against}")


def _scores(results: Results) -> Iterator[Section]:
    for heading, (name, numbers, text) in SCORES.items():
        if measured := [number for number in numbers if results.has(number)]:
            yield Section(heading, f"{text} {INTERVALS}", plot_numbers(results, measured), name)
    if results.has("excess") and (measured := [number for number in PAYS if results.has(number)]):
        text = "Does less smoothing pay? A dot is a finished cell, the larger the deeper its shape."
        yield Section("Scores against smoothing", text, plot_pairs(results, "excess", measured), "scores_by_excess")


def _lengths(results: Results) -> Iterator[Section]:
    lengths = sorted({length for outcome in results.done for length in outcome.lengths})
    if not lengths:
        return
    rows = []
    for series in results.series:
        for label in results.study.shapes:
            losses = [outcome.lengths for outcome in results.of(series, label)]
            by_length = [[loss[length] for loss in losses if length in loss] for length in lengths]
            rows.append([series.label, label, *(_mean("loss", values) for values in by_length)])
    text = (
        "Loss of the last tokens of windows of held-out text, the same tokens at every length. Lines are means over "
        "seeds, bands reach from the lowest seed to the highest."
    )
    head = ["objective", "shape", *(f"{length:,}" for length in lengths)]
    yield Section("Loss by length of text", text, plot_lengths(results), "lengths", Table(head, rows))


def _pictures(results: Results) -> Iterator[Section]:
    """Of the cells of the first seed that has any, for cells of one seed hold out the same images."""
    seed = min((outcome.cell.seed for outcome in results.done), key=results.study.seeds.index)
    paths = {outcome.cell: outcome.folder / "pictures.npz" for outcome in results.done if outcome.cell.seed == seed}
    drawn = {cell: dict(np.load(path)) for cell, path in paths.items() if path.is_file()}
    rebuilt = {cell: arrays for cell, arrays in drawn.items() if "reconstructions" in arrays}
    where = f"Cells of seed {seed}; for the other seeds see pictures.npz in their folders."
    if rebuilt:
        text = f"Held-out images, what the mask leaves of them, and what each cell makes of that. {where}"
        yield Section("Reconstructions of the same images", text, plot_reconstructions(rebuilt), "reconstructions")
    for number in range(min((len(arrays["images"]) for arrays in drawn.values()), default=0)):
        text = f"Cosine of each patch to the one in the frame, by relative depth. {where}"
        heading = f"Similarity maps of the same image, {number + 1}"
        yield Section(heading, text, plot_maps(drawn, number), f"maps_{number + 1}")


def _claims(judgements: Sequence[Judgement]) -> Table:
    verdict = ("verdict", "effect", "95 % interval", "p", "p (Holm)", "margin", "seeds", "seeds needed")
    head = ("claim", "judged on", *verdict, "of", "evidence")
    rows = [
        [
            judgement.statement,
            judgement.series,
            Cell(judgement.verdict, LOOKS.get(judgement.verdict, "open")),
            "" if judgement.effect is None else f"{judgement.effect:+.4f}",
            judgement.interval,
            *("" if p is None else f"{p:.4f}" for p in (judgement.p, judgement.p_holm)),
            f"{judgement.margin:g}",
            " and ".join(str(count) for count in dict.fromkeys(map(len, judgement.seeds.values()))),
            judgement.seeds_needed,
            f"{judgement.quantity}, {judgement.contrast}",
            judgement.evidence,
        ]
        for judgement in judgements
    ]
    return Table(head, rows)


def _means(results: Results) -> Table:
    names = [name for name in MAIN if results.has(name)]
    rows = []
    for series in results.series:
        for label in results.study.shapes:
            count = f"{len(results.of(series, label))} of {len(results.study.seeds)}"
            means = [_mean(name, [*results.values(series, label, name).values()]) for name in names]
            rows.append([series.label, label, count, *means])
    return Table(["objective", "shape", "seeds", *(NUMBERS[name] for name in names)], rows)


def _mean(name: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    ends = f" ({_show(name, min(values))} to {_show(name, max(values))})" if len(values) > 1 else ""
    return _show(name, float(np.mean(values))) + ends


def _show(name: str, value: float) -> str:
    """A number as people read it."""
    if name in SHARES:
        return f"{100 * value:.1f} %"
    if name == "activation_bytes":
        return f"{value / 1e6:.1f} MB"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1 else f"{value:.3f}"


def _cells(results: Results, out: Path) -> Table:
    names = [name for name in NUMBERS if results.has(name)]
    rows = [_cell(outcome, names, out) for outcome in results.outcomes]
    costs = ["FLOPs of training", "of what follows", "ms per step", "seconds"]
    return Table(["cell", "state", *(NUMBERS[name] for name in names), *costs], rows)


def _cell(outcome: Outcome, names: Sequence[str], out: Path) -> list[Cell]:
    folder = outcome.folder.relative_to(out) if outcome.folder.is_relative_to(out) else outcome.folder
    link = f"{folder}/result.json" if outcome.state == "done" else ""
    texts = [_show(name, outcome.numbers[name]) if name in outcome.numbers else "" for name in names]
    texts += [f"{outcome.cost[name]:.3g}" if name in outcome.cost else "" for name in ("flops_train", "flops_then")]
    texts.append(f"{1000 * outcome.cost['step_seconds']:.1f}" if "step_seconds" in outcome.cost else "")
    texts.append(f"{outcome.seconds:.0f}" if outcome.cost else "")
    look = "failed" if outcome.state == "failed" else ""
    return [Cell(outcome.cell.name, look, link), Cell(outcome.state, look), *(Cell(t, look or "number") for t in texts)]


def _settings(results: Results) -> Iterator[list[str]]:
    study = results.study.to_dict()
    yield from ([name, str(study[name])] for name in ("seeds", "axes", "threads", "launch") if name in study)
    for name, value in study["evaluation"].items():
        yield [
            f"evaluation: {name.replace('_', ' ')}",
            ", ".join(map(str, value)) if isinstance(value, list) else str(value),
        ]
    for name, objective in results.study.objectives.items():
        for stage, config in ((name, objective.config), (f"{name}, then", objective.then)):
            if config:
                trainer = config["trainer"]
                budget = {key: trainer[key] for key in ("max_epochs", "max_steps", "precision") if key in trainer}
                yield [stage, f"{config['model']['class_path']}: {budget}"]
    yield ["devices", ", ".join(sorted({outcome.device for outcome in results.done}))]
