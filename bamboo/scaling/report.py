"""All laws that a set of runs allows, as a table, JSON and CSV."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd

from bamboo.errors import InputError
from bamboo.files import atomic_write

from .bootstrap import Estimate
from .loss import Holdout, LossFit, fit_loss, holdout_error
from .optima import Optima, best_batch, learning_rate_law
from .published import PUBLISHED
from .runs import tuned

TITLES = {
    "best_batch_at_data": ("best batch at fixed data", "D"),
    "best_batch_at_compute": ("best batch at fixed compute", "C"),
    "learning_rate": ("best learning rate", "batch size"),
}
"""Title and variable of each law of best settings."""

Law = TypeVar("Law")


@dataclass(frozen=True, eq=False)
class Report:
    """What could be fitted, and in `missing`, by name, what the runs lack for the rest.

    Args:
        runs: all of them.
        fit: of the best-tuned runs of each N and D.
        holdout: the same without the largest.
        optima: best settings by the names of `TITLES`.
        missing: why something above is absent, or has no law.
    """

    runs: pd.DataFrame
    fit: LossFit | None
    holdout: Holdout | None
    optima: dict[str, Optima]
    missing: dict[str, str]

    def numbers(self) -> dict[str, Estimate]:
        """The numbers of the report by quantity, in order."""
        numbers: dict[str, Estimate] = {}
        if self.fit:
            best = zip("ND", self.fit.exponents, strict=True)
            numbers = self.fit.estimates | {f"best {side}: exponent in compute": value for side, value in best}
        for name, found in self.optima.items():
            title, variable = TITLES[name]
            if found.law:
                numbers[f"{title}: exponent in {variable}"] = found.law.exponent
                if name != "learning_rate":  # whose prefactor is that of the middle of all sizes
                    numbers[f"{title}: prefactor"] = found.law.prefactor
        return numbers

    def notes(self) -> Iterator[str]:
        """What a reader of the numbers should know."""
        if self.fit:
            spread = 100 * float(self.fit.residuals.std())
            yield f"{len(self.fit.runs)} of {len(self.runs)} runs fitted; residuals {spread:.2g} % of the loss"
            yield from self.fit.notes()
        if self.holdout:
            held = self.holdout.held
            count = f"{len(held)} run{'s' * (len(held) > 1)}"
            inside = held["loss"].between(held["low"], held["high"]).sum()
            yield (
                f"held out: {count} with up to {self.holdout.reach:.3g} times the compute of the others, predicted to "
                + (f"{self.holdout.error:.2g} % of the loss, {inside} inside the law's 95 % interval")
            )
        yield from (found.note for found in self.optima.values() if found.law and found.note)
        yield from (f"no {name}: {reason}" for name, reason in self.missing.items())

    def text(self) -> str:
        """A table for the terminal, and under it notes and sources."""
        numbers = self.numbers()
        published = [p for quantity in numbers for p in PUBLISHED.get(quantity, ())]
        sources = [*dict.fromkeys((p.source, p.evidence) for p in published)]
        table = pd.DataFrame({"quantity": [*numbers]}, dtype=str)
        table["fitted"] = [f"{e.value:.4g}" for e in numbers.values()]
        table["95 % interval"] = [f"{e.low:.4g} to {e.high:.4g}" for e in numbers.values()]
        table["published"] = [
            ", ".join(f"{p.text} [{sources.index((p.source, p.evidence)) + 1}]" for p in PUBLISHED.get(quantity, ()))
            for quantity in numbers
        ]
        left = table.apply(lambda column: column.str.ljust(column.str.len().max()))
        parts = [left.to_string(index=False, justify="left")] if numbers else []
        parts.append("\n".join(self.notes()))
        if sources:
            known = (f"[{i}] {source}; known from {evidence}" for i, (source, evidence) in enumerate(sources, 1))
            parts.append("\n".join(["published, all of language models and in tokens:", *known]))
        return "\n\n".join(parts)

    def save(self, folder: Path) -> list[Path]:
        """Write scaling.json, the laws, and scaling.csv, the runs with what the law says of them."""
        columns = ["name", "loss", "predicted", "low", "high", "error_percent"]
        content = {
            "runs": len(self.runs),
            "numbers": {quantity: value._asdict() for quantity, value in self.numbers().items()},
            "published": {quantity: [p._asdict() for p in numbers] for quantity, numbers in PUBLISHED.items()},
            "flops_per_parameter_and_sample": self.fit and self.fit.flops,
            "optima": {
                name: found.table.drop(columns="parabola").to_dict("records") for name, found in self.optima.items()
            },
            "held_out": self.holdout and self.holdout.held[columns].to_dict("records"),
            "notes": [*self.notes()],
        }
        fitted = self.fit.runs.index if self.fit else []
        held = self.holdout.held.index if self.holdout else []
        law = self.fit.loss(self.runs["parameters"], self.runs["data"]) if self.fit else None
        index = self.runs.index
        runs = self.runs.assign(fitted=index.isin(fitted).astype(int), held_out=index.isin(held).astype(int), law=law)
        paths = [folder / "scaling.json", folder / "scaling.csv"]
        with atomic_write(paths[0]) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False))
        with atomic_write(paths[1]) as temporary:
            runs.to_csv(temporary, index=False)
        return paths


def analyse(
    runs: pd.DataFrame, holdout: int = 1, resamples: int = 400, seed: int = 0, progress: bool = False
) -> Report:
    """Every law that the runs allow.

    Args:
        runs: as `check_runs` gives them, with a unique index.
        holdout: how many of the largest pairs of N and D to predict from the others.
        resamples: of each bootstrap.
        seed: of each bootstrap.
        progress: show progress bars.

    Raises:
        InputError: where no law at all can be fitted, with what each lacks.
    """
    missing: dict[str, str] = {}

    def attempt(name: str, law: Callable[[], Law]) -> Law | None:
        try:
            return law()
        except InputError as error:
            missing[name] = str(error)
            return None

    best = tuned(runs)
    fit = attempt("loss law", lambda: fit_loss(best, resamples, seed, progress=progress))
    held = attempt("held-out prediction", lambda: holdout_error(best, holdout, resamples, seed, progress))
    if not fit:
        missing.pop("held-out prediction")
    found = {
        "best_batch_at_data": attempt("best batch at fixed data", lambda: best_batch(runs, "data", resamples, seed)),
        "best_batch_at_compute": attempt(
            "best batch at fixed compute", lambda: best_batch(runs, "compute", resamples, seed)
        ),
        "learning_rate": attempt("learning rate law", lambda: learning_rate_law(runs, resamples, seed)),
    }
    optima = {name: law for name, law in found.items() if law}
    if not (fit or optima):
        raise InputError("; ".join(missing.values()))
    missing |= {f"law of the {TITLES[name][0]}": law.note for name, law in optima.items() if not law.law}
    return Report(runs, fit, held, optima, missing)
