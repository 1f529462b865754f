"""All laws that a set of runs allows, as a table, JSON and CSV."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bamboo.errors import InputError
from bamboo.files import write_json, write_text
from bamboo.tables import table

from .bootstrap import Estimate
from .loss import PREDICTED, Holdout, LossFit, fit_loss, holdout_error
from .optima import Optima, best_batch, learning_rate_law
from .published import PUBLISHED
from .runs import tuned

TITLES = {
    "best_batch_at_data": ("best batch at fixed data", "D"),
    "best_batch_at_compute": ("best batch at fixed compute", "C"),
    "learning_rate": ("best learning rate", "batch size"),
}
"""Title and variable of each law of best settings."""


@dataclass(frozen=True, eq=False)
class Report:
    """What could be fitted to the best-tuned runs of each N and D, and in `missing` what the runs lack for the rest."""

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
        for name, optima in self.optima.items():
            title, variable = TITLES[name]
            if optima.law:
                numbers[f"{title}: exponent in {variable}"] = optima.law.exponent
                if name != "learning_rate":  # whose prefactor is that of the middle of all sizes
                    numbers[f"{title}: prefactor"] = optima.law.prefactor
        return numbers

    def notes(self) -> Iterator[str]:
        """What a reader of the numbers should know."""
        if self.fit:
            spread = 100 * float(self.fit.residuals.std())
            yield f"{len(self.fit.runs)} of {len(self.runs)} runs fitted; residuals {spread:.2g} % of the loss"
            yield from self.fit.notes()
        if self.holdout:
            _, held, error, reach = self.holdout
            yield (
                f"held out: {len(held)} run{'s' * (len(held) > 1)} with up to {reach:.3g} times the compute of the "
                f"others, predicted to {error:.2g} % of the loss, "
                f"{held['loss'].between(held['low'], held['high']).sum()} inside the law's 95 % interval"
            )
        yield from (optima.note for optima in self.optima.values() if optima.law and optima.note)
        yield from (f"no {name}: {reason}" for name, reason in self.missing.items())

    def text(self) -> str:
        """A table for the terminal, and under it notes and sources."""
        sources: list[tuple[str, str]] = []
        rows = [("quantity", "fitted", "95 % interval", "published")]
        for quantity, (value, low, high) in self.numbers().items():
            published = PUBLISHED.get(quantity, ())
            sources += [s for s in dict.fromkeys(p[3:] for p in published) if s not in sources]
            beside = ", ".join(f"{p.text} [{sources.index(p[3:]) + 1}]" for p in published)
            rows.append((quantity, f"{value:.4g}", f"{low:.4g} to {high:.4g}", beside))
        known = [f"[{i}] {source}; known from {evidence}" for i, (source, evidence) in enumerate(sources, 1)]
        below = ["", "published, all of language models and in tokens:", *known] if known else []
        return "\n".join([*([table(rows), ""] if len(rows) > 1 else []), *self.notes(), *below])

    def save(self, folder: Path) -> list[Path]:
        """Write scaling.json, the laws, and scaling.csv, the runs with what the law says of them."""
        held = self.holdout and self.holdout.held
        tables = {name: optima.table.drop(columns="parabola") for name, optima in self.optima.items()}
        content = {
            "runs": len(self.runs),
            "numbers": {quantity: value._asdict() for quantity, value in self.numbers().items()},
            "published": {quantity: [p._asdict() for p in numbers] for quantity, numbers in PUBLISHED.items()},
            "flops_per_parameter_and_sample": self.fit and self.fit.flops,
            "optima": {name: best.to_dict("records") for name, best in tables.items()},
            "held_out": None if held is None else held[["name", "loss", *PREDICTED]].to_dict("records"),
            "notes": [*self.notes()],
        }
        runs = self.runs.assign(fitted=0, held_out=0, law=None)
        if self.fit:
            runs.loc[self.fit.runs.index, "fitted"] = 1
            runs["law"] = self.fit.loss(runs["parameters"], runs["data"])
        if held is not None:
            runs.loc[held.index, "held_out"] = 1
        table = write_text(folder / "scaling.csv", runs.to_csv(index=False))
        return [write_json(folder / "scaling.json", content), table]


def analyse(runs: pd.DataFrame, holdout: int = 1, resamples: int = 400, seed: int = 0) -> Report:
    """Every law that the runs allow, and how well it predicts those of the `holdout` largest pairs of N and D.

    Raises:
        InputError: where no law at all can be fitted, with what each lacks.
    """
    best, missing, fitted = tuned(runs), {}, {}
    laws: dict[str, Callable[[], Any]] = {
        "loss law": lambda: fit_loss(best, resamples, seed),
        "held-out prediction": lambda: holdout_error(best, holdout, resamples, seed),
        "best_batch_at_data": lambda: best_batch(runs, "data", resamples, seed),
        "best_batch_at_compute": lambda: best_batch(runs, "compute", resamples, seed),
        "learning_rate": lambda: learning_rate_law(runs, resamples, seed),
    }
    for name, law in laws.items():
        try:
            fitted[name] = law()
        except InputError as error:
            missing[TITLES.get(name, (name,))[0]] = str(error)
    if "loss law" in missing:
        missing.pop("held-out prediction", None)  # for the same reason
    if not fitted:
        raise InputError("; ".join(missing.values()))
    optima = {name: fitted[name] for name in TITLES if name in fitted}
    missing |= {f"law of the {TITLES[name][0]}": law.note for name, law in optima.items() if not law.law}
    return Report(runs, fitted.get("loss law"), fitted.get("held-out prediction"), optima, missing)
