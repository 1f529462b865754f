"""The table of mutants, `mutants.toml`."""

import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Mutant(NamedTuple):
    """One change to a file, and a test that must fail for it.

    Args:
        file: path below the root of the project.
        old: text that occurs exactly once in the file.
        new: what takes its place.
        test: path of a test file below the root, or of one test in it, `path::test`.
    """

    file: str
    old: str
    new: str
    test: str

    def mutated(self, root: Path = ROOT) -> str:
        """The changed text of the file. Raises `ValueError` where the old text does not occur exactly once."""
        text = (root / self.file).read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.file}: the old text occurs {count} times, not once: {self.old!r}")
        return text.replace(self.old, self.new)


def read_mutants() -> list[Mutant]:
    """All entries, in the order of the file."""
    content = tomllib.loads((Path(__file__).parent / "mutants.toml").read_text(encoding="utf-8"))
    return [Mutant(**entry) for entry in content["mutant"]]
