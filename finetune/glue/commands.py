"""`bamboo glue` and `bamboo glue-compare`: from an encoder to a table of scores, and from two tables to one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bamboo.errors import InputError

if TYPE_CHECKING:
    from .recipes import Setting
    from .runs import Plan, Run
    from .tasks import Task


def glue(
    encoder: str,
    *,
    data: str,
    out: Path,
    tasks: list[str] = ["all"],  # noqa: B006 (never changed)
    seeds: int = 5,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    search: bool = False,
    from_mnli: bool = False,
    max_length: int = 128,
    dropout: float = 0.1,
    layer_decay: float = 1.0,
    precision: Literal["auto", "32", "bf16"] = "auto",
    workers: int | None = None,
    samples: int | None = None,
    keep_models: bool = False,
    submission: Path | None = None,
) -> None:
    """Fine-tune a text encoder on the tasks of GLUE under several seeds, and write a table of its scores.

    Each task and seed is kept as soon as it is finished: an interrupted command, typed again, goes on where it was.

    Args:
        encoder: a checkpoint of this project, a Hugging Face folder, or hf:NAME.
        data: folder of the GLUE download or of its parquet or JSON-lines forms, or a hub name such as nyu-mll/glue.
        out: folder for scores.json, scores.csv, scores.md, scores.png and scores.svg, and for what is finished.
        tasks: cola sst2 mrpc stsb qqp mnli qnli rte wnli, or all for the eight without wnli.
        seeds: number of seeds, 0, 1 and so on; one more can be added later. With --search the first one chooses the
            setting and is not counted.
        epochs: passes over the training set, 5 by default.
        batch_size: texts or pairs of a step, 16 by default.
        lr: learning rate at the peak, 4e-5 by default, after a warm-up of a tenth and before a cosine to 0.
        search: choose lr, batch size and epochs for each task on its dev set, over the 18 settings of BERT.
        from_mnli: start MRPC, STS-B and RTE from the model fine-tuned on MNLI under the same seed.
        max_length: tokens of a text or pair, special ones included; the rest is cut off, and what the encoder does not
            read.
        dropout: every dropout probability that the encoder has.
        layer_decay: learning rate of a layer over that of the layer above, written for 12 layers; 1 for none.
        precision: fp32, or bf16 autocast; auto is bf16 on a GPU that has it.
        workers: tasks and seeds at a time; one per GPU by default, one without a GPU.
        samples: texts of each split at most, evenly spread, for a quick look.
        keep_models: keep each model as a Hugging Face folder below OUT/models, from now on.
        submission: folder for submission.zip, the test-set predictions of the seed with the median dev score. It needs
            all tasks, wnli included, and the diagnostic set; models are kept for it.

    Raises:
        InputError: where the encoder, the data or an option cannot be used, in one line.
    """
    from bamboo.analysis.model_sources import name_of

    from .runs import Plan
    from .scores import collect, markdown, write_scores
    from .sweep import sweep
    from .tasks import find_tasks

    chosen, setting = find_tasks(tasks), _setting(search, lr=lr, batch_size=batch_size, epochs=epochs)
    keep_models = keep_models or submission is not None
    plan = Plan(encoder, data, max_length, dropout, layer_decay, precision, samples, from_mnli, keep_models)
    _check_options(plan, chosen, seeds, search)
    if submission is not None:
        _check_tests(chosen, data)
    _check_encoder(plan)
    sizes = {task.name: _sizes(task, plan) for task in chosen}
    examples = {name: size["train"] for name, size in sizes.items()}
    runs, failures = sweep(plan, chosen, range(seeds), out, examples, setting, workers)
    if not runs:
        name, reason = next(iter(failures.items()))
        raise InputError(f"nothing was finished: {name} failed: {reason}")
    scores = collect(name_of(encoder), (run.read(out) for run in runs), sizes)
    paths = write_scores(scores, out)
    print(f"\n{markdown(scores)}\n", *(f"wrote {path}" for path in paths), sep="\n")
    if search:
        print("the setting of each task is what seed 0 scored best with; seed 0 is not counted")
    if failures:
        names = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise InputError(f"{len(failures)} of the runs failed, and are run again by the same command: {names}")
    if submission is not None:
        print(f"wrote {_submit(plan, runs, out, submission)}")


def glue_compare(run_a: Path, run_b: Path, *, out: Path | None = None) -> None:
    """Set the scores of two encoders side by side: the difference per task with its interval, and a test of it.

    Args:
        run_a: folder of a `bamboo glue`.
        run_b: another one, on the same data.
        out: folder for comparison.csv, comparison.md, comparison.png and comparison.svg.

    Raises:
        InputError: where a folder holds no scores, or the two cannot be compared.
    """
    from .comparison import comparison_table, write_comparison
    from .scores import Scores

    runs = [Scores.read(run) for run in (run_a, run_b)]
    names = [run_a.resolve().name, run_b.resolve().name]
    labels = names if names[0] != names[1] else [str(run_a), str(run_b)]
    print(comparison_table(runs, labels))
    for path in write_comparison(runs, labels, out) if out else ():
        print(f"wrote {path}")


def _setting(search: bool, **options: Any) -> "Setting | None":
    from .recipes import Setting

    chosen = {name: value for name, value in options.items() if value is not None}
    if search and chosen:
        raise InputError(f"with --search, {' and '.join(chosen)} are chosen for each task: leave them out")
    return None if search else Setting(**chosen)


def _check_options(plan: "Plan", tasks: Sequence["Task"], seeds: int, search: bool) -> None:
    if plan.samples is not None and plan.samples < 1:
        raise InputError(f"samples must be positive, got {plan.samples}")
    if plan.max_length < 4:
        raise InputError(f"max_length must be at least 4, got {plan.max_length}")
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}")
    if search and seeds < 2:
        raise InputError("with --search the first seed chooses and is not counted: give --seeds 2 or more")
    if plan.from_mnli and search:
        raise InputError("--from-mnli and --search do not go together: which of the searched models to start from?")
    if plan.from_mnli and "mnli" not in {task.name for task in tasks}:
        raise InputError("--from-mnli needs mnli among the tasks")


def _check_tests(tasks: Sequence["Task"], data: str) -> None:
    """Raises `InputError` for a test set of the benchmark that is missing or not whole, before anything starts."""
    from .reading import read_split
    from .submission import FILES

    for name, (task, split) in FILES.items():
        if task.name not in {"ax", *(task.name for task in tasks)}:
            raise InputError(f"--submission needs all files, and {name} is of {task.name}: give --tasks all wnli")
        rows = len(read_split(task, data, split).first)
        if rows != task.rows[split]:
            raise InputError(
                f"{name} needs the {task.rows[split]:,} rows of the official test set, and there are {rows:,}"
            )


def _check_encoder(plan: "Plan") -> None:
    """Open the encoder once, so that a wrong one shows before anything starts."""
    from bamboo.text.checkpoints import check_exportable

    from .encoders import longest_text, open_encoder
    from .layer_decay import layer_groups

    model, _, notes, _ = open_encoder(plan.encoder, 2, plan.dropout)
    if plan.keep_models or plan.from_mnli:
        check_exportable(model.config)
    layer_groups(model, plan.layer_decay, 0.0)
    longest = longest_text(model.config)
    if longest is not None and plan.max_length > longest:
        notes = (*notes, f"texts are cut at {longest} tokens: the encoder reads no more")
    print(f"{plan.encoder}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters", *notes, sep="\n  ")


def _sizes(task: "Task", plan: "Plan") -> dict[str, Any]:
    """Numbers of examples and majority baselines of a task, see `bamboo.finetune.glue.scores.collect`."""
    from .data import subset
    from .metrics import majority_baseline
    from .reading import read_split

    train, *dev = (subset(read_split(task, plan.data, split), plan.samples) for split in ("train", *task.eval_splits))
    splits = dict(zip(task.eval_splits, dev, strict=True))
    return {
        "train": len(train.first),
        "dev": {name: len(split.first) for name, split in splits.items()},
        "majority": {
            name: majority_baseline(task, train.labels or [], split.labels or []) for name, split in splits.items()
        },
    }


def _submit(plan: "Plan", runs: Sequence["Run"], out: Path, folder: Path) -> Path:
    """Write the predictions of the seed with the median score; of an even number of seeds, the better of the two."""
    from .data import AX
    from .runs import predict_tests
    from .submission import write_submission
    from .tasks import DIAGNOSTIC, TASKS

    predictions = {}
    for name in {run.task: None for run in runs}:
        ranked = sorted((run for run in runs if run.task == name), key=lambda run: run.read(out)["score"] or 0.0)
        for split, rows in predict_tests(plan, ranked[len(ranked) // 2], out).items():
            key = (DIAGNOSTIC, "test") if split == AX else (TASKS[name], split)
            predictions[key] = (rows["ids"], rows["predictions"])
    return write_submission(predictions, folder)
