"""What profiling gives: numbers per sample, layer and measure, with statistics, tables, plots and files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bamboo.errors import InputError, unknown
from bamboo.files import atomic_write, write_json, write_text

from .measures.similarity_split import Pooled
from .recording import Key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1
COLUMNS = ("model", "layer", "position", "measure", "mean", "low", "high", "n")
FIELDS = ("label", "baseline", "depth", "settings", "versions")  # of a profile, which JSON holds as they are
DEFAULT_PLOT = ("token_similarity", "high_frequency_ratio", "update_ratio")

Array = NDArray[np.float64]


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
        values: (samples, columns); NaN where a measure is undefined for a sample.
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
    def statistics(self) -> pd.DataFrame:
        """Mean, low and high end of its 95 % interval (Student's t), and number n of samples, of each column.

        Values that are not finite are left out; of one sample there is no interval.
        """
        values = pd.DataFrame(self.values, dtype=np.float64).replace([np.inf, -np.inf], np.nan)
        mean, count = values.mean(), values.count()
        reach = stats.t.ppf(0.975, count - 1) * values.sem()
        return pd.DataFrame({"mean": mean, "low": mean - reach, "high": mean + reach, "n": count})

    @cached_property
    def table(self) -> pd.DataFrame:
        """The long table, one row for each layer, position and measure, under the names of `COLUMNS`."""
        numbers = [*self.statistics.itertuples(index=False, name=None), *self.pooled.values()]
        keys = (*self.keys, *self.pooled)
        rows = [
            (self.label, key.layer, key.position, key.measure, *row) for key, row in zip(keys, numbers, strict=True)
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    @cached_property
    def measured(self) -> list[tuple[str, str]]:
        """All (position, measure) in it, in the order in which they appear in a pass."""
        return list(dict.fromkeys((key.position, key.measure) for key in (*self.keys, *self.pooled)))

    def has(self, measure: str, position: str = "stream") -> bool:
        """Whether there is such a curve."""
        return (position, measure) in self.measured

    def curve(self, measure: str = "token_similarity", position: str = "stream") -> Curve:
        """A measure over layers. Raises `InputError` where it was not measured."""
        if not self.has(measure, position):
            raise unknown("curve", f"{position}:{measure}", [f"{at}:{name}" for at, name in self.measured])
        chosen = (self.table["position"] == position) & (self.table["measure"] == measure)
        rows = self.table[chosen].sort_values("layer")
        mean, low, high = (rows[name].to_numpy() for name in ("mean", "low", "high"))
        return Curve(rows["layer"].tolist(), mean, low, high, rows["n"].to_numpy())

    def summary(self) -> dict[str, Any]:
        """Similarity at the last layer, where it passes 0.5 and 0.9 (a layer or None), and its slope over depth."""
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
        for level in (0.5, 0.9):
            above = np.flatnonzero(curve.mean >= level)
            result[f"passes_{level}"] = curve.layers[above[0]] if len(above) else None
        known = np.isfinite(curve.mean)
        depth = np.asarray(curve.layers)[known] / max(curve.layers)
        result["slope"] = float(stats.linregress(depth, curve.mean[known]).slope) if known.sum() > 1 else np.nan
        return result

    def to_pandas(self) -> pd.DataFrame:
        """The long table: one row per model, layer, position and measure."""
        return self.table.copy()

    def plot(self, measures: Sequence[str] = DEFAULT_PLOT) -> "Figure":
        """Curves of these measures over relative depth."""
        return Comparison((self,)).plot(measures)

    def save(self, folder: str | Path) -> list[Path]:
        """Write profile.json, profile.csv and samples.npz (the numbers of each sample) into a folder."""
        return Comparison((self,)).save(folder)

    @classmethod
    def load(cls, folder: str | Path, label: str | None = None) -> "Profile":
        """Read what `save` wrote; of several models in one folder name one by its label."""
        profiles = {profile.label: profile for profile in Comparison.load(folder).profiles}
        if label is None:
            if len(profiles) > 1:
                raise InputError(f"{folder} holds {len(profiles)} profiles, name one: {', '.join(profiles)}")
            label = next(iter(profiles))
        if label not in profiles:
            raise unknown("profile", label, profiles)
        return profiles[label]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Profiles of several models side by side, in one table, one plot and one folder."""

    profiles: tuple[Profile, ...]

    def summary(self) -> list[dict[str, Any]]:
        """A summary of each model: see `Profile.summary`."""
        return [profile.summary() for profile in self.profiles]

    def to_pandas(self) -> pd.DataFrame:
        """The long table of all models; low and high are the ends of the 95 % interval."""
        return pd.concat([profile.table for profile in self.profiles], ignore_index=True)

    def plot(self, measures: Sequence[str] = DEFAULT_PLOT) -> "Figure":
        """Curves of these measures over relative depth, one colour per model, dashed for a fresh model."""
        from .plots import plot_curves

        return plot_curves(self.profiles, measures)

    def save(self, folder: str | Path) -> list[Path]:
        """Write profile.json, profile.csv and samples.npz; each appears complete or not at all."""
        folder = Path(folder)
        paths = [folder / "profile.json", folder / "profile.csv", folder / "samples.npz"]
        with atomic_write(paths[2]) as temporary, temporary.open("wb") as binary:
            arrays: dict[str, Any] = {f"profile_{i}": profile.values for i, profile in enumerate(self.profiles)}
            np.savez_compressed(binary, **arrays)
        write_text(paths[1], self.to_pandas().to_csv(index=False, na_rep="nan"))
        write_json(paths[0], {"format": FORMAT, "profiles": [_as_dict(profile) for profile in self.profiles]})
        return paths

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
        pairs = zip(content["profiles"], values, strict=True)
        return cls(tuple(_from_dict(profile, samples) for profile, samples in pairs))


def compare(profiles: Mapping[str, Profile]) -> Comparison:
    """Profiles side by side, under the labels that they are given here."""
    if not profiles:
        raise InputError("nothing to compare: give at least one profile")
    return Comparison(tuple(replace(profile, label=label) for label, profile in profiles.items()))


def across_networks(profiles: Sequence[Profile]) -> Profile:
    """One profile of networks that differ in their weights alone: means over them, from the lowest to the highest."""
    first = profiles[0]
    place = ["position", "measure", "layer"]
    means = pd.concat([profile.table for profile in profiles]).groupby(place, sort=False)
    spread = means.agg(mean=("mean", "mean"), low=("mean", "min"), high=("mean", "max"), n=("n", "min"))
    pooled = {Key(*key): Pooled(*row) for key, row in zip(spread.index, spread.itertuples(index=False), strict=True)}
    notes = tuple(dict.fromkeys(note for profile in profiles for note in profile.notes))
    return replace(first, keys=(), values=first.values[:, :0], notes=notes, pooled=pooled)


def _as_dict(profile: Profile) -> dict[str, Any]:
    """Everything but the numbers of each sample, as JSON has it; NaN becomes null."""
    curves = []
    for position, measure in profile.measured:
        layers, *numbers, samples = profile.curve(measure, position)
        mean, low, high = map(_nulled, numbers)
        place = {"position": position, "measure": measure, "layers": layers}
        curves.append({**place, "mean": mean, "low": low, "high": high, "n": samples.tolist()})
    summary = {name: _nulled([n])[0] if isinstance(n, float) else n for name, n in profile.summary().items()}
    return {
        **{name: getattr(profile, name) for name in (*FIELDS, "notes", "keys")},
        "samples": len(profile.values),
        "summary": summary,
        "pooled": [[*key, *_nulled(value[:3]), value.samples] for key, value in profile.pooled.items()],
        "curves": curves,
    }


def _nulled(numbers: Iterable[float]) -> list[float | None]:
    return [float(number) if np.isfinite(number) else None for number in numbers]


def _from_dict(saved: Mapping[str, Any], values: NDArray[np.float32]) -> Profile:
    fields = {name: saved[name] for name in FIELDS}
    keys, notes, pooled = tuple(Key(*key) for key in saved["keys"]), tuple(saved["notes"]), {}
    for *key, mean, low, high, samples in saved.get("pooled", ()):  # not in files of earlier versions
        mean, low, high = (np.nan if number is None else number for number in (mean, low, high))
        pooled[Key(*key)] = Pooled(mean, low, high, samples)
    return Profile(**fields, keys=keys, values=values, notes=notes, pooled=pooled)
