"""All laws that a set of runs allows, as a table, JSON and CSV."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bamboo.errors import InputError
from bamboo.files import atomic_write

from .batches import BatchLaw, best_batch, learning_rate_law
from .estimates import Estimate
from .loss import Holdout, LossFit, fit_loss, holdout_error
from .published import PUBLISHED
from .runs import Run, tuned

COLUMNS = ("name", "parameters", "data", "batch_size", "learning_rate", "loss", "compute", "seed")
Law = TypeVar("Law")


class Row(NamedTuple):
    """A quantity with its interval."""

    quantity: str
    value: Estimate


@dataclass(frozen=True, eq=False)
class Report:
    """What could be fitted, and in `missing`, by name, what the runs lack for the rest.

    Args:
        runs: all of them.
        fit: of the best-tuned runs of each N and D.
        holdout: the same without the largest.
        at_data: best batch size at fixed data.
        at_compute: best batch size at fixed compute.
        rates: best learning rate against batch size.
        missing: why something above is None, or has no law.
    """

    runs: tuple[Run, ...]
    fit: LossFit | None
    holdout: Holdout | None
    at_data: BatchLaw | None
    at_compute: BatchLaw | None
    rates: BatchLaw | None
    missing: dict[str, str]

    def rows(self) -> Iterator[Row]:
        """The numbers of the report, in order."""
        if self.fit:
            for name, value in self.fit.estimates.items():
                yield Row(name, value)
            for side, value in zip(("N", "D"), self.fit.exponents, strict=True):
                yield Row(f"best {side}: exponent in compute", value)
        for name, letter, found in (("data", "D", self.at_data), ("compute", "C", self.at_compute)):
            if found and found.law:
                yield Row(f"best batch at fixed {name}: exponent in {letter}", found.law.exponent)
                yield Row(f"best batch at fixed {name}: prefactor", found.law.prefactor)
        if self.rates and self.rates.law:
            yield Row("best learning rate: exponent in batch size", self.rates.law.exponent)

    def notes(self) -> Iterator[str]:
        """What a reader of the numbers should know."""
        if self.fit:
            spread = float(self.fit.residuals.std())
            yield f"{len(self.fit.runs)} of {len(self.runs)} runs fitted; residuals {100 * spread:.2g} % of the loss"
            yield from self.fit.notes
        if self.holdout:
            held = self.holdout
            inside = sum(p.low <= run.loss <= p.high for p, run in zip(held.predicted, held.held, strict=True))
            count = f"{len(held.held)} run{'s' * (len(held.held) > 1)}"
            yield (
                f"held out: {count} with up to {held.reach:.3g} times the compute of the others, predicted to "
                f"{held.error:.2g} % of the loss, {inside} inside the law's 95 % interval"
            )
        for found in (self.at_data, self.at_compute, self.rates):
            if found and found.law and found.note:
                yield found.note
        for name, reason in self.missing.items():
            yield f"no {name}: {reason}"

    def text(self) -> str:
        """A table for the terminal, and under it notes and sources."""
        sources: dict[tuple[str, str], int] = {}
        table = [("quantity", "ours", "95 % interval", "published")]
        for quantity, value in self.rows():
            numbers = PUBLISHED.get(quantity, ())
            marks = [sources.setdefault((p.source, p.evidence), len(sources) + 1) for p in numbers]
            beside = ", ".join(f"{p.value} [{mark}]" for p, mark in zip(numbers, marks, strict=True))
            table.append((quantity, f"{value.value:.4g}", f"{value.low:.4g} to {value.high:.4g}", beside))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(t.ljust(width) for t, width in zip(row, widths, strict=True)).rstrip() for row in table]
        known = [f"[{mark}] {source}; known from {evidence}" for (source, evidence), mark in sources.items()]
        told = ["published, all of language models and in tokens:", *known] if known else []
        return "\n".join([*(["", *lines] if len(lines) > 1 else []), "", *self.notes(), *([""] if told else []), *told])

    def save(self, folder: Path) -> list[Path]:
        """Write scaling.json, the laws, and scaling.csv, the runs with what the law says of them."""
        paths = [folder / "scaling.json", folder / "scaling.csv"]
        with atomic_write(paths[0]) as temporary:
            temporary.write_text(json.dumps(self._content(), indent=1, allow_nan=False))
        with atomic_write(paths[1]) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow((*COLUMNS, "fitted", "held_out", "law"))
            fitted = set(map(id, self.fit.runs)) if self.fit else set()
            held = set(map(id, self.holdout.held)) if self.holdout else set()
            for run in self.runs:
                law = float(self.fit.loss(run.parameters, run.data)) if self.fit else ""
                writer.writerow((*(_cell(run, c) for c in COLUMNS), int(id(run) in fitted), int(id(run) in held), law))
        return paths

    def _content(self) -> dict[str, Any]:
        laws = {"data": self.at_data, "compute": self.at_compute, "learning_rate": self.rates}
        held = self.holdout
        return {
            "runs": len(self.runs),
            "numbers": {row.quantity: row.value._asdict() for row in self.rows()},
            "published": {name: [p._asdict() for p in numbers] for name, numbers in PUBLISHED.items()},
            "flops_per_parameter_and_sample": self.fit and self.fit.flops,
            "optima": {
                name: [{**o.__dict__, "settings": list(o.settings), "losses": list(o.losses)} for o in law.optima]
                for name, law in laws.items()
                if law
            },
            "held_out": held
            and [
                {"name": run.name, "loss": run.loss, "predicted": guess._asdict(), "error_percent": float(error)}
                for run, guess, error in zip(held.held, held.predicted, held.errors, strict=True)
            ],
            "notes": list(self.notes()),
        }


def _cell(run: Run, column: str) -> Any:
    value = getattr(run, column)
    return "" if value is None else value


def analyse(
    runs: Sequence[Run], holdout: int = 1, resamples: int = 400, seed: int = 0, progress: bool = False
) -> Report:
    """Every law that the runs allow.

    Args:
        runs: finished runs.
        holdout: how many of the largest pairs of N and D to predict from the others.
        resamples: of each bootstrap.
        seed: of each bootstrap.
        progress: show progress bars.

    Raises:
        InputError: where no law at all can be fitted, with what the first lacks.
    """
    missing: dict[str, str] = {}

    def attempt(name: str, fit: Callable[[], Law]) -> Law | None:
        try:
            return fit()
        except InputError as error:
            missing[name] = str(error)
            return None

    best = tuned(runs)
    fit = attempt("loss law", lambda: fit_loss(best, resamples, seed, progress=progress))
    held = None
    if fit:
        held = attempt(
            "held-out prediction", lambda: holdout_error(best, holdout, None, resamples, seed, progress=progress)
        )
    at_data = attempt("best batch at fixed data", lambda: best_batch(runs, "data", resamples, seed))
    at_compute = attempt("best batch at fixed compute", lambda: best_batch(runs, "compute", resamples, seed))
    rates = attempt("learning rate law", lambda: learning_rate_law(runs, resamples, seed))
    if not (fit or at_data or at_compute or rates):
        raise InputError("; ".join(missing.values()))
    lawless = {
        "law of the best batch at fixed data": at_data,
        "law of the best batch at fixed compute": at_compute,
        "law of the learning rate": rates,
    }
    missing |= {name: found.note for name, found in lawless.items() if found and not found.law}
    return Report(tuple(runs), fit, held, at_data, at_compute, rates, missing)
