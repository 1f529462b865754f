"""The data of one task of GLUE, tokenised once and batched by length."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from bamboo.data import SampledData
from bamboo.errors import InputError
from bamboo.sampling import Loader, evenly_spread

from .batches import Batches, EvalBatches, TrainBatches, tokenise
from .encoders import longest_text, tells_pairs_apart
from .reading import Examples, MissingData, read_split, read_texts
from .tasks import DIAGNOSTIC, OWN, TASKS, find_tasks, plain

AX = "ax"
"""What the split of the diagnostic sentences is called among MNLI's, whose model predicts them."""

log = logging.getLogger(__name__)


class GlueData(SampledData):
    """One task, tokenised by the encoder of the module that trains on it; batches are those of `Batches`.

    Args:
        root: the data: the official download, the parquet or JSON-lines forms, or a hub name.
        task: name of the task.
        batch_size: texts or pairs per process and step of training.
        max_length: tokens of a text or pair, special ones included, which are cut there or where the encoder ends.
        max_tokens: tokens of a batch of validation, padding included.
        samples: texts to train on, and of each split to evaluate on, at most, evenly spread, for a quick look; test
            splits are whole.
        seed: of the order.

    Raises:
        InputError: where one of these cannot be.
    """

    def __init__(
        self,
        root: str | Path,
        task: str = "cola",
        batch_size: int = 16,
        max_length: int = 128,
        max_tokens: int = 8192,
        samples: int | None = None,
        seed: int = 0,
    ):
        super().__init__(batch_size, 0, seed)
        (self.task,) = find_tasks([task])
        self.root, self.samples = root, samples
        self.max_length, self.max_tokens = max_length, max_tokens
        self.eval_names, self.test_names = self.task.eval_splits, self.task.test_splits
        self._read: dict[str, tuple[Batches, list[Any]]] = {}
        if min(batch_size, max_tokens, 1 if samples is None else samples) < 1 or max_length < 4:
            raise InputError(
                "batch_size, max_tokens and samples must be positive and max_length at least 4, got "
                f"{batch_size}, {max_tokens}, {samples} and {max_length}"
            )

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenise, so that bad input shows before anything starts."""
        super().setup(stage)
        longest = longest_text(self.trainer.lightning_module.model.config)  # type: ignore[union-attr]
        if longest is not None and self.max_length > longest:
            log.warning("texts are cut at %d tokens, not %d: the encoder reads no more", longest, self.max_length)
            self.max_length = longest
        splits = {"fit": ("train", *self.eval_names), "predict": self.test_names}.get(stage or "", self.eval_names)
        for split in splits:
            self.split(split)
        if stage == "predict" and self.test_names == TASKS["mnli"].test_splits:
            with suppress(MissingData):  # it was not downloaded
                self.split(AX)
                self.test_names = (*self.test_names, AX)

    def split(self, name: str) -> tuple[Batches, list[Any]]:
        """The texts of a split, read at the first use, and their ids."""
        if name not in self._read:
            module: Any = self.trainer.lightning_module  # type: ignore[union-attr]
            whole = name in self.test_names or name == AX
            examples = subset(self.read(name), None if whole else self.samples)
            tokenizer, config = module.tokenizer, module.model.config
            apart = tells_pairs_apart(config)
            tokens = tokenise(tokenizer, examples.first, examples.second, self.max_length, apart)
            pad = (config.pad_token_id or 0) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            self._read[name] = (Batches(tokens, examples.labels, pad, tokenizer.padding_side), examples.ids)
        return self._read[name]

    def read(self, split: str) -> Examples:
        """The texts of a split, as they are."""
        task, split = (DIAGNOSTIC, "test") if split == AX else (self.task, split)
        return read_split(task, self.root, split)

    def predict_source(self) -> list[list[Any]]:
        """The ids of the texts that are predicted, by data loader."""
        return [self.split(name)[1] for name in self.test_names]

    def train_dataloader(self) -> Loader:
        """Shuffled batches of texts of like length."""
        batches, _ = self.split("train")
        sampler = TrainBatches(batches, self.batch_size, self.seed, *self.processes)
        self._train_loader = Loader(batches, batch_size=None, sampler=sampler, **self.loader_options())
        if self._restored:
            self._train_loader.load_state_dict(self._restored)
        return self._train_loader

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Every text of the splits to evaluate on, once over all processes."""
        return [self.eval_batches(split) for split in self.eval_names]

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """Every text of the test splits, once over all processes."""
        return [self.eval_batches(split) for split in self.test_names]

    def eval_batches(self, split: str) -> DataLoader[Any]:
        """Batches of a split by length, the longest first."""
        batches, _ = self.split(split)
        sampler = EvalBatches(batches, self.max_tokens, *self.processes)
        return DataLoader(batches, batch_size=None, sampler=sampler, **self.loader_options())


class TextFiles(GlueData):
    """Texts of one's own, for the classes of the module that reads them; batches are those of `Batches`.

    A file is a .tsv as in GLUE, without quoting, a .csv as of a spreadsheet, both with a header, or JSON lines.

    Args:
        train: the file to train on, in which every class of the model occurs.
        val: the file to evaluate on.
        predict: the file to predict, which needs no labels.
        text: column of the text.
        pair: column of the second of a pair of texts.
        label: column of the names of the classes.
        task: name of the task of the module.
        **options: arguments of `GlueData`.

    Raises:
        InputError: where one of these cannot be, or a label is no class of the model.
    """

    def __init__(
        self,
        train: Path | None = None,
        val: Path | None = None,
        predict: Path | None = None,
        text: str = "text",
        pair: str | None = None,
        label: str = "label",
        task: str = OWN,
        **options: Any,
    ):
        super().__init__(root="", task="cola", **options)
        self.files = {"train": train, "dev": val, "test": predict}
        self.columns, self.task_name = (text, pair, label), task
        self.eval_names, self.test_names = ("dev",), ("test",)

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenise, for the classes of the model."""
        self.task = self.trainer.lightning_module.task  # type: ignore[union-attr, assignment]
        if plain(self.task_name) != self.task.name:
            raise InputError(f"the model is for {self.task.name} and the texts are for {self.task_name}")
        super().setup(stage)

    def read(self, split: str) -> Examples:
        """The texts of a file."""
        path, (text, pair, label) = self.files[split], self.columns
        if path is None:
            option = {"dev": "val", "test": "predict"}.get(split, split)
            raise InputError(f"no texts: give --data.init_args.{option} FILE.tsv, .csv or .jsonl")
        examples = read_texts(self.task, Path(path), text, pair, None if split == "test" else label)
        absent = [name for number, name in enumerate(self.task.labels) if number not in (examples.labels or ())]
        if split == "train" and absent:
            raise InputError(f"{path}: no text of class {', '.join(absent)}, which the model has")
        return examples


def subset(examples: Examples, samples: int | None) -> Examples:
    """So many examples at most, evenly spread; all of them for None."""
    rows = evenly_spread(len(examples.first), samples)
    columns: list[Any] = [part if part is None else [part[row] for row in rows] for part in examples]
    return Examples(*columns)
