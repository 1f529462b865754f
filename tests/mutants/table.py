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

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: {old}  ->  {new}  [{self.test.rpartition('/')[2]}]"

    def problem(self) -> str:
        """Why the file cannot be changed so; empty where it can."""
        path = ROOT / self.file
        count = path.read_text(encoding="utf-8").count(self.old) if path.is_file() else 0
        if count != 1:
            return f"the old text occurs {count} times in {self.file}, not once"
        return "the new text is the old one" if self.new == self.old else ""

    def mutated(self) -> str:
        """The changed text of the file."""
        return (ROOT / self.file).read_text(encoding="utf-8").replace(self.old, self.new)


def read_mutants() -> list[Mutant]:
    """All entries, in the order of the file."""
    content = tomllib.loads((Path(__file__).parent / "mutants.toml").read_text(encoding="utf-8"))
    return [Mutant(**entry) for entry in content["mutant"]]
