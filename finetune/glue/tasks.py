"""The table of GLUE's tasks: everything that reads, scores or writes them derives from it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bamboo.errors import InputError, unknown

ENTAILMENT = ("entailment", "not_entailment")
DIGITS = ("0", "1")
NLI = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class Task:
    """One task of the GLUE benchmark (Wang et al. 2019, arXiv 1804.07461).

    Names, labels and their order, and the rows of every split are those of the card of the Hugging Face data set
    `nyu-mll/glue`, which are those of the files that gluebenchmark.com hands out: the second release of QNLI, and of
    QQP the one without the rows that line breaks had cut in two.

    Args:
        name: as typed and in tables; also the name of the configuration of the Hugging Face data set.
        title: the official spelling; submissions' files are named after it.
        texts: the one or two columns of text in the Hugging Face data set.
        labels: the classes' names in the order of their ids; empty for regression (a similarity from 0 to 5).
        metrics: in the order in which they are reported.
        rows: official number of rows of every split: `train`, `dev`, `test`, or `dev_matched` and so on.
        columns: the columns of text, then of the label, in the benchmark's own files.
        codes: how the benchmark's own files, and submissions, write the labels, in the order of their ids.
        header: the columns of the files of train and dev where these have no header line.
        ragged: whether a release has rows of train and dev cut in two, which are to be skipped.
        folder: of the official download, where it is not `title`.
    """

    name: str
    title: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: Mapping[str, int] = field(hash=False)
    columns: tuple[str, ...]
    codes: tuple[str, ...]
    header: tuple[str, ...] = ()
    ragged: bool = False
    folder: str = ""

    def __post_init__(self) -> None:
        """The folder is named as the task unless said otherwise."""
        object.__setattr__(self, "folder", self.folder or self.title)

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number and not a class."""
        return not self.labels

    @property
    def num_outputs(self) -> int:
        """Width of the head: the number of classes, 1 for regression."""
        return max(len(self.labels), 1)

    @property
    def eval_splits(self) -> tuple[str, ...]:
        """The splits that have labels and are not trained on."""
        return tuple(split for split in self.rows if split.startswith("dev"))

    @property
    def test_splits(self) -> tuple[str, ...]:
        """The splits whose labels the benchmark keeps to itself."""
        return tuple(split for split in self.rows if split.startswith("test"))


_PAIR = ("sentence1", "sentence2")


def _rows(train: int, dev: int, test: int) -> dict[str, int]:
    return {"train": train, "dev": dev, "test": test}


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="cola",
            title="CoLA",
            texts=("sentence",),
            labels=("unacceptable", "acceptable"),
            metrics=("matthews",),
            rows=_rows(8551, 1043, 1063),
            columns=("sentence", "label"),
            codes=DIGITS,
            header=("source", "label", "mark", "sentence"),
        ),
        Task(
            name="sst2",
            title="SST-2",
            texts=("sentence",),
            labels=("negative", "positive"),
            metrics=("accuracy",),
            rows=_rows(67349, 872, 1821),
            columns=("sentence", "label"),
            codes=DIGITS,
        ),
        Task(
            name="mrpc",
            title="MRPC",
            texts=_PAIR,
            labels=("not_equivalent", "equivalent"),
            metrics=("f1", "accuracy"),
            rows=_rows(3668, 408, 1725),
            columns=("#1 String", "#2 String", "Quality"),
            codes=DIGITS,
        ),
        Task(
            name="stsb",
            title="STS-B",
            texts=_PAIR,
            labels=(),
            metrics=("pearson", "spearman"),
            rows=_rows(5749, 1500, 1379),
            columns=(*_PAIR, "score"),
            codes=(),
        ),
        Task(
            name="qqp",
            title="QQP",
            texts=("question1", "question2"),
            labels=("not_duplicate", "duplicate"),
            metrics=("f1", "accuracy"),
            rows=_rows(363846, 40430, 390965),
            columns=("question1", "question2", "is_duplicate"),
            codes=DIGITS,
            ragged=True,
        ),
        Task(
            name="mnli",
            title="MNLI",
            texts=("premise", "hypothesis"),
            labels=NLI,
            metrics=("accuracy",),
            rows={
                "train": 392702,
                "dev_matched": 9815,
                "dev_mismatched": 9832,
                "test_matched": 9796,
                "test_mismatched": 9847,
            },
            columns=(*_PAIR, "gold_label"),
            codes=NLI,
        ),
        Task(
            name="qnli",
            title="QNLI",
            texts=("question", "sentence"),
            labels=ENTAILMENT,
            metrics=("accuracy",),
            rows=_rows(104743, 5463, 5463),
            columns=("question", "sentence", "label"),
            codes=ENTAILMENT,
        ),
        Task(
            name="rte",
            title="RTE",
            texts=_PAIR,
            labels=ENTAILMENT,
            metrics=("accuracy",),
            rows=_rows(2490, 277, 3000),
            columns=(*_PAIR, "label"),
            codes=ENTAILMENT,
        ),
        Task(
            name="wnli",
            title="WNLI",
            texts=_PAIR,
            labels=("not_entailment", "entailment"),  # the other way round than QNLI and RTE
            metrics=("accuracy",),
            rows=_rows(635, 71, 146),
            columns=(*_PAIR, "label"),
            codes=DIGITS,
        ),
    )
}

# Test sentences for a model trained on MNLI: part of a whole submission, but nothing to train on or to average.
DIAGNOSTIC = Task(
    name="ax",
    title="AX",
    texts=("premise", "hypothesis"),
    labels=NLI,
    metrics=("matthews",),
    rows={"test": 1104},
    columns=(*_PAIR, "label"),
    codes=NLI,
    folder="diagnostic",
)


OWN = "texts"
"""What the task of a person's own texts is called."""


def own_task(classes: Sequence[str]) -> Task:
    """The task of naming one of these classes for a text or a pair of texts of one's own.

    Raises:
        InputError: where there are fewer than two classes, or one comes twice.
    """
    if len(set(classes)) < max(2, len(classes)):
        raise InputError(f"classes must be two or more different names, got {', '.join(classes) or 'none'}")
    return Task(OWN, OWN, ("text",), tuple(classes), ("accuracy",), _rows(0, 0, 0), ("text", "label"), tuple(classes))


def plain(name: str) -> str:
    """A name without case, hyphens and underscores: `STS-B`, `sts_b` and `stsb` are one."""
    return name.lower().replace("-", "").replace("_", "")


def find_tasks(names: Iterable[str]) -> tuple[Task, ...]:
    """The tasks of these names, each once, in the order given.

    Args:
        names: as in `TASKS` or in the official spelling, in any case; `all` is the eight that averages are taken
            over, which leave WNLI out.

    Raises:
        InputError: for a name that no task has.
    """
    found: dict[str, Task] = {}
    for name in names:
        if plain(name) == "all":
            found |= {key: task for key, task in TASKS.items() if key != "wnli"}
        elif plain(name) in TASKS:
            found[plain(name)] = TASKS[plain(name)]
        else:
            raise unknown("task", name, (*TASKS, "all"))
    return tuple(found.values())
