"""The table of GLUE's tasks: everything that reads, scores or writes them derives from it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bamboo.errors import InputError, unknown

ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
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
        labels: the classes' names in the order of their ids; empty for regression (a similarity from 0 to 5).
        rows: official number of rows of every split: `train`, `dev`, `test`, or `dev_matched` and so on.
        texts: the one or two columns of text in the Hugging Face data set.
        metrics: in the order in which they are reported.
        codes: how the benchmark's own files, and submissions, write the labels, in the order of their ids.
        columns: the columns of text, then of the label, in the benchmark's own files; by default `texts` and `label`.
        header: the columns of the files of train and dev where these have no header line.
        ragged: whether a release has rows of train and dev cut in two, which are to be skipped.
        folder: of the official download, by default `title`.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    rows: Mapping[str, int] = field(hash=False)
    texts: tuple[str, ...] = PAIR
    metrics: tuple[str, ...] = ("accuracy",)
    codes: tuple[str, ...] = ("0", "1")
    columns: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    ragged: bool = False
    folder: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", self.columns or (*self.texts, "label"))
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


def _rows(train: int, dev: int, test: int) -> dict[str, int]:
    return {"train": train, "dev": dev, "test": test}


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "cola",
            "CoLA",
            labels=("unacceptable", "acceptable"),
            rows=_rows(8551, 1043, 1063),
            texts=("sentence",),
            metrics=("matthews",),
            header=("source", "label", "mark", "sentence"),
        ),
        Task("sst2", "SST-2", labels=("negative", "positive"), rows=_rows(67349, 872, 1821), texts=("sentence",)),
        Task(
            "mrpc",
            "MRPC",
            labels=("not_equivalent", "equivalent"),
            rows=_rows(3668, 408, 1725),
            metrics=("f1", "accuracy"),
            columns=("#1 String", "#2 String", "Quality"),
        ),
        Task(
            "stsb",
            "STS-B",
            labels=(),
            rows=_rows(5749, 1500, 1379),
            metrics=("pearson", "spearman"),
            codes=(),
            columns=(*PAIR, "score"),
        ),
        Task(
            "qqp",
            "QQP",
            labels=("not_duplicate", "duplicate"),
            rows=_rows(363846, 40430, 390965),
            texts=("question1", "question2"),
            metrics=("f1", "accuracy"),
            columns=("question1", "question2", "is_duplicate"),
            ragged=True,
        ),
        Task(
            "mnli",
            "MNLI",
            labels=NLI,
            rows={"train": 392702, "dev_matched": 9815, "dev_mismatched": 9832}
            | {"test_matched": 9796, "test_mismatched": 9847},
            texts=("premise", "hypothesis"),
            codes=NLI,
            columns=(*PAIR, "gold_label"),
        ),
        Task(
            "qnli",
            "QNLI",
            labels=ENTAILMENT,
            rows=_rows(104743, 5463, 5463),
            texts=("question", "sentence"),
            codes=ENTAILMENT,
        ),
        Task("rte", "RTE", labels=ENTAILMENT, rows=_rows(2490, 277, 3000), codes=ENTAILMENT),
        # The other way round than QNLI and RTE.
        Task("wnli", "WNLI", labels=("not_entailment", "entailment"), rows=_rows(635, 71, 146)),
    )
}

EIGHT = tuple(name for name in TASKS if name != "wnli")
"""The tasks that averages are taken over."""

# Test sentences for a model trained on MNLI: part of a whole submission, but nothing to train on or to average.
DIAGNOSTIC = Task(
    "ax",
    "AX",
    labels=NLI,
    rows={"test": 1104},
    texts=("premise", "hypothesis"),
    metrics=("matthews",),
    codes=NLI,
    columns=(*PAIR, "label"),
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
    return Task(OWN, OWN, tuple(classes), _rows(0, 0, 0), texts=("text",), codes=tuple(classes))


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
    keys: list[str] = []
    for name in names:
        if plain(name) not in (*TASKS, "all"):
            raise unknown("task", name, (*TASKS, "all"))
        keys += EIGHT if plain(name) == "all" else [plain(name)]
    return tuple(TASKS[key] for key in dict.fromkeys(keys))
