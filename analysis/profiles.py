"""What profiling gives: numbers per sample, layer and measure, with statistics, tables, plots and files."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bamboo.errors import InputError, unknown

from .intervals import Array, Estimates, bootstrap, first_above, slope
from .recorder import Key
from .similarity_split import Pooled

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

FORMAT = 1
COLUMNS = ("model", "layer", "position", "measure", "mean", "low", "high", "n")
DEFAULT_PLOT = ("token_similarity", "high_frequency_ratio", "update_ratio")


class Curve(NamedTuple):
    """A measure over layers: mean over samples, ends of its 95 % interval, and samples that count."""

    layers: list[int]
    mean: Array
    low: Array
    high: Array
    samples: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Profile:
    """The profile of one model.

    Args:
        label: what the model is called in tables and legends.
        depth: number of blocks.
        keys: (position, measure, layer) of each column of `values`.
        values: (samples, columns); NaN where a measure is undefined for a sample. States are not kept.
        settings: how it was made.
        versions: of the software.
        notes: what a reader should know, such as states that were NaN.
        baseline: whether the model is freshly initialised, for comparison.
        pooled: numbers of all samples together, which have no value of one sample.
    """

    label: str
    depth: int
    keys: tuple[Key, ...]
    values: NDArray[np.float32]
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    baseline: bool = False
    pooled: dict[Key, Pooled] = field(default_factory=dict)

    @cached_property
    def statistics(self) -> Estimates:
        """Mean, low and high end of the 95 % interval, and number of samples of each column."""
        return bootstrap(self.values, self.settings.get("seed", 0))

    @property
    def measured(self) -> list[tuple[str, str]]:
        """All (position, measure) in it, in the order in which they appear in a pass."""
        return list(dict.fromkeys((key.position, key.measure) for key in (*self.keys, *self.pooled)))

    def curve(self, measure: str = "token_similarity", position: str = "stream") -> Curve:
        """A measure over layers. Raises `InputError` where it was not measured."""
        if not self.has(measure, position):
            raise unknown("curve", f"{position}:{measure}", [f"{at}:{name}" for at, name in self.measured])
        points = sorted((key.layer, *numbers) for key, *numbers in self._numbers() if key[:2] == (position, measure))
        layers, mean, low, high, samples = zip(*points, strict=True)
        ends = np.asarray(low), np.asarray(high)
        return Curve(list(layers), np.asarray(mean), *ends, np.asarray(samples, dtype=np.int64))

    def _numbers(self) -> Iterator[tuple[Any, ...]]:
        """Key, mean, low, high and number of samples of everything that was measured."""
        yield from zip(self.keys, *(part.tolist() for part in self.statistics), strict=True)
        yield from ((key, *value) for key, value in self.pooled.items())

    def has(self, measure: str, position: str = "stream") -> bool:
        """Whether there is such a curve."""
        return (position, measure) in self.measured

    def told(self, notes: Sequence[str], baseline: bool, **settings: Any) -> "Profile":
        """The same profile with more said about how it was made."""
        merged = {**settings, **self.settings}
        return replace(self, notes=(*notes, *self.notes), baseline=baseline, settings=merged)

    def summary(self) -> dict[str, Any]:
        """Similarity at the last layer, where it passes 0.5 and 0.9, and its slope over depth."""
        result: dict[str, Any] = {"model": self.label, "depth": self.depth, "samples": len(self.values)}
        if not self.has("token_similarity"):
            return result
        curve = self.curve()
        result |= {"last": float(curve.mean[-1]), "low": float(curve.low[-1]), "high": float(curve.high[-1])}
        if self.has("token_similarity", "norm"):
            result["after_norm"] = float(self.curve(position="norm").mean[-1])
        for name in ("between", "excess"):
            if self.has(f"{name}_similarity"):
                result[name] = float(self.curve(f"{name}_similarity").mean[-1])
        passes = {f"passes_{level}": first_above(curve.layers, curve.mean, level) for level in (0.5, 0.9)}
        return result | passes | {"slope": slope(curve.layers, curve.mean)}

    def to_pandas(self) -> "DataFrame":
        """The long table: one row per model, layer, position and measure."""
        return Comparison((self,)).to_pandas()

    def plot(self, measures: Sequence[str] = DEFAULT_PLOT) -> "Figure":
        """Curves of these measures over relative depth."""
        return Comparison((self,)).plot(measures)

    def save(self, folder: str | Path) -> list[Path]:
        """Write profile.json, profile.csv and samples.npz (the numbers of each sample) into a folder."""
        return Comparison((self,)).save(folder)

    @classmethod
    def load(cls, folder: str | Path, label: str | None = None) -> "Profile":
        """Read what `save` wrote; of several models in one folder name one by its label."""
        profiles = Comparison.load(folder).profiles
        if label is None and len(profiles) > 1:
            raise InputError(
                f"{folder} holds {len(profiles)} profiles, name one: {', '.join(p.label for p in profiles)}"
            )
        found = {profile.label: profile for profile in profiles}
        if label is not None and label not in found:
            raise unknown("profile", label, found)
        return profiles[0] if label is None else found[label]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Profiles of several models side by side, in one table, one plot and one folder."""

    profiles: tuple[Profile, ...]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The long table, under the names of `COLUMNS`; low and high are the ends of the 95 % interval."""
        for profile in self.profiles:
            for key, mean, low, high, count in profile._numbers():
                yield profile.label, key.layer, key.position, key.measure, mean, low, high, count

    def summary(self) -> list[dict[str, Any]]:
        """A summary of each model: see `Profile.summary`."""
        return [profile.summary() for profile in self.profiles]

    def to_pandas(self) -> "DataFrame":
        """The long table. Raises `InputError` where pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise InputError("to_pandas needs pandas: pip install pandas, or read profile.csv") from error
        return pandas.DataFrame(list(self.rows()), columns=list(COLUMNS))

    def plot(self, measures: Sequence[str] = DEFAULT_PLOT) -> "Figure":
        """Curves of these measures over relative depth, one colour per model, dashed for a fresh model."""
        from .plots import plot_curves

        return plot_curves(self.profiles, measures)

    def save(self, folder: str | Path) -> list[Path]:
        """Write profile.json, profile.csv and samples.npz; each appears complete or not at all."""
        from bamboo.files import atomic_write

        folder = Path(folder)
        paths = [folder / "samples.npz", folder / "profile.csv", folder / "profile.json"]
        with atomic_write(paths[0]) as temporary, temporary.open("wb") as binary:
            arrays: dict[str, Any] = {f"profile_{i}": p.values for i, p in enumerate(self.profiles)}
            np.savez_compressed(binary, **arrays)
        with atomic_write(paths[1]) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            table.writerows(self.rows())
        with atomic_write(paths[2]) as temporary:
            content = {"format": FORMAT, "profiles": [_as_dict(profile) for profile in self.profiles]}
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return paths[::-1]

    @classmethod
    def load(cls, folder: str | Path) -> "Comparison":
        """Read what `save` wrote. Raises `InputError` where there is none, or not of this format."""
        path = Path(folder) / "profile.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            with np.load(Path(folder) / "samples.npz") as samples:
                values = [samples[f"profile_{i}"] for i in range(len(content["profiles"]))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder} holds no profile that can be read ({error})") from error
        if content.get("format") != FORMAT:
            raise InputError(f"{path} is of format {content.get('format')}, expected {FORMAT}")
        return cls(tuple(_from_dict(told, rows) for told, rows in zip(content["profiles"], values, strict=True)))


def compare(profiles: Mapping[str, Profile]) -> Comparison:
    """Profiles side by side, under the labels that they are given here."""
    if not profiles:
        raise InputError("nothing to compare: give at least one profile")
    return Comparison(tuple(replace(profile, label=label) for label, profile in profiles.items()))


def _as_dict(profile: Profile) -> dict[str, Any]:
    """Everything but the numbers of each sample, as plain data; NaN becomes null."""
    curves = []
    for position, measure in profile.measured:
        curve = profile.curve(measure, position)
        numbers = {name: _plain(getattr(curve, name)) for name in ("mean", "low", "high")}
        curves.append(
            {"position": position, "measure": measure, "layers": curve.layers, **numbers, "n": curve.samples.tolist()}
        )
    return {
        "label": profile.label,
        "baseline": profile.baseline,
        "depth": profile.depth,
        "samples": len(profile.values),
        "summary": {
            k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in profile.summary().items()
        },
        "settings": profile.settings,
        "versions": profile.versions,
        "notes": profile.notes,
        "keys": profile.keys,
        "pooled": [[*key, *_plain(value[:3]), value.samples] for key, value in profile.pooled.items()],
        "curves": curves,
    }


def _plain(numbers: Iterable[float]) -> list[float | None]:
    return [float(number) if np.isfinite(number) else None for number in numbers]


def _from_dict(told: Mapping[str, Any], values: NDArray[np.float32]) -> Profile:
    return Profile(
        label=told["label"],
        depth=told["depth"],
        keys=tuple(Key(*key) for key in told["keys"]),
        values=values,
        settings=told["settings"],
        versions=told["versions"],
        notes=tuple(told["notes"]),
        baseline=told["baseline"],
        pooled={
            Key(*key): Pooled._make([*(np.nan if x is None else x for x in (mean, low, high)), count])
            for *key, mean, low, high, count in told.get("pooled", ())  # not in files of earlier versions
        },
    )
