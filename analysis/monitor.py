"""Log how alike tokens are, layer by layer, while a model trains."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib import colormaps
from torch import Tensor, nn

from bamboo.errors import InputError
from bamboo.loggers import log_picture

from .architectures import Prefix, Stack, find_prefix, find_stack, part_of
from .captures import State, capture
from .inputs import words_of
from .measures.similarity_split import sample_sums, split
from .profiling import profile

ENCODERS = ("mae.encoder", "encoder", "model", "backbone", "network")
LOGGED = {
    "similarity": "token_similarity",
    "similarity_between": "between_similarity",
    "similarity_excess": "excess_similarity",
}
PIXELS = 8  # of the picture, per layer and point in time
TIMES = 200  # in the picture, at most


class SimilarityMonitor(Callback):
    """Logs the token similarity of the residual stream, within and between samples, every so many optimizer steps.

    It looks at the ordinary forward pass of that step, so it costs one more pass over each state in one step of
    `every_n_steps`; the host waits for the device at these steps alone, and neither gradients nor the random stream are
    touched. Class token, registers, padding and special tokens do not count. Under masked
    pretraining it sees the visible patches. Logged are, for the chosen layers and the samples of all processes,
    `similarity/layer_<i>` (within samples), `similarity_between/layer_<i>` (of different samples) and
    `similarity_excess/layer_<i>`, (within - between) / (1 - between), which is smoothing; the last two need two samples
    or more. For TensorBoard there is `similarity/layers_by_time` too, a picture with layers upwards, time to the right
    and similarity within samples from 0 (dark) to 1 (bright).

    Args:
        every_n_steps: optimizer steps between two looks.
        layers: layers to draw curves of, 0 the embedding, negative from the end; by default five, evenly spaced.
        blocks: path of the list of blocks in the module, where it cannot be found.
        held_out: look at so many whole held-out samples of the data module, before the step and after the last one,
            instead of at what the model is trained on.
        points: looks over the whole of training, evenly spaced in log steps, instead of `every_n_steps`: before the
            first step, after the last one where samples are `held_out`, and so many at most. Where time ends the run
            each step looked at is half as large again as the one before.

    Raises:
        InputError: at the start of training, where there is no list of blocks to look at, or texts come without
            their `special_tokens_mask`.

    `history` is by measure of `LOGGED`, then by look at `steps`, then by layer.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        layers: Sequence[int] | None = None,
        blocks: str | None = None,
        held_out: int = 0,
        points: int | None = None,
    ) -> None:
        if every_n_steps < 1:
            raise InputError(f"every_n_steps must be positive, got {every_n_steps}")
        self.every_n_steps, self.layers, self.blocks = every_n_steps, layers, blocks
        self.held_out, self.points = held_out, points
        self.steps: list[int] = []
        self.history: dict[str, list[list[float]]] = {name: [] for name in LOGGED.values()}
        self._looking = ExitStack()
        self._step = 0
        self._sums: dict[int, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the blocks, the steps to look at and the held-out samples."""
        self.module = find_encoder(pl_module) if self.blocks is None else pl_module
        self.stack: Stack = find_stack(self.module, self.blocks)
        self.prefix: Prefix = find_prefix(self.module)
        depth = len(self.stack.blocks)
        chosen = self.layers or np.linspace(0, depth, 5).round().astype(int).tolist()
        wrong = [layer for layer in chosen if not -depth - 1 <= layer <= depth]
        if wrong:
            raise InputError(f"layer {wrong[0]} of SimilarityMonitor does not exist: there are {depth} blocks")
        self.chosen = sorted({layer % (depth + 1) for layer in chosen})
        self.total = trainer.estimated_stepping_batches
        self.due = set(log_steps(self.total, self.points)) if self.points else None
        self.samples = list(_held_out(trainer, self.held_out)) if self.held_out else []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look, or start to look, if this step is due; of accumulated batches the first is looked at."""
        step = trainer.global_step
        due = step % self.every_n_steps == 0 if self.due is None else step in self.due
        if not due or step in self.steps[-1:]:
            return
        if self.held_out:
            self._look_at_held_out(trainer, pl_module)
            return
        self._step, counted = step, _counted(batch)

        def reducer(state: State) -> None:
            if state.position == "stream" and state.layer not in self._sums:  # the first pass of the step
                self._sums[state.layer] = self._measure(state.tokens, counted)

        self._looking.enter_context(capture(self.module, reducer, self.stack.path))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop looking, and log; look at held-out samples once more after the last step."""
        self._looking.close()
        if self._sums:
            sums = torch.stack([self._sums[layer] for layer in sorted(self._sums)])
            self._sums = {}
            similarity = split(trainer.strategy.reduce(sums, reduce_op="sum"))
            self._log(trainer, self._step, {name: part.tolist() for name, part in similarity.items()})
        if self.held_out and trainer.global_step == self.total and self.total not in self.steps[-1:]:
            self._look_at_held_out(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at held-out samples once more where it was not known which step is the last."""
        if self.points and self.held_out and trainer.global_step not in self.steps[-1:]:
            self._look_at_held_out(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hooks behind."""
        self._looking.close()

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, so that a resumed run goes on with its picture."""
        return {"steps": self.steps, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what an interrupted run has seen; older checkpoints know similarity within samples alone."""
        history = state_dict["history"]
        if isinstance(history, list):
            unknown = [[math.nan] * len(layers) for layers in history]
            history = {name: history if name == "token_similarity" else [*unknown] for name in LOGGED.values()}
        self.history = history
        self.steps = state_dict.get("steps") or [state_dict["last_step"]] * len(history["token_similarity"])

    def _look_at_held_out(self, trainer: Trainer, module: Any) -> None:
        batches = [
            module.pixels(batch["image"].to(module.device)) if "image" in batch else batch for batch in self.samples
        ]
        seen = profile(self.module, batches, list(LOGGED.values()), samples=self.held_out, blocks=self.blocks)
        self._log(trainer, trainer.global_step, {name: seen.curve(name).mean.tolist() for name in LOGGED.values()})

    def _log(self, trainer: Trainer, step: int, similarity: Mapping[str, list[float]]) -> None:
        """Keep and log similarities by layer."""
        self.steps.append(step)
        for name, looks in self.history.items():
            looks.append(similarity[name])
        named = {f"{tag}/layer_{i:02d}": similarity[name][i] for tag, name in LOGGED.items() for i in self.chosen}
        logs = {name: value for name, value in named.items() if math.isfinite(value)}
        for logger in trainer.loggers:
            logger.log_metrics(logs, step=step)
        log_picture(trainer, "similarity/layers_by_time", self.picture(), step)

    def picture(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Similarity within samples as colours (layers, times, 3), the embedding at the bottom.

        Each value is a square of pixels. Of a long history evenly spaced times are shown.
        """
        seen = np.asarray(self.history["token_similarity"])
        times = np.linspace(0, len(seen) - 1, min(len(seen), TIMES)).round().astype(int)
        table = seen[times].T[::-1].clip(0, 1)
        colours = (colormaps["viridis"](table)[..., :3] * 255).round().astype(np.uint8)
        return np.repeat(np.repeat(colours, PIXELS, 0), PIXELS, 1)

    def _measure(self, tokens: Tensor, counted: Tensor | None) -> Tensor:
        """The sums (width + 4) of the batch that its split needs."""
        if counted is not None and counted.shape == tokens.shape[:2]:
            return sample_sums(tokens, counted).sum(0)
        return sample_sums(tokens[:, self.prefix.length :]).sum(0)


def log_steps(total: float, points: int) -> list[int]:
    """Whole numbers of steps from 0 to `total`, evenly spaced in the logarithm from 1 on: `points`, or fewer if short.

    Of a run whose end is not known, powers of 1.5.
    """
    known = 0 < total < math.inf
    places = np.geomspace(total, 1, max(points - 1, 1)) if known else 1.5 ** np.arange(60)
    return sorted({0, *places.round().astype(int).tolist()})


def find_encoder(module: nn.Module) -> nn.Module:
    """The part of a LightningModule that holds the encoder, or the module itself."""
    parts = (part_of(module, path) for path in ENCODERS)
    return next((part for part in parts if isinstance(part, nn.Module)), module)


def _counted(batch: Any) -> Tensor | None:
    """Which tokens of a batch of texts count; None for images."""
    if not isinstance(batch, Mapping) or not isinstance(batch.get("input_ids"), Tensor):
        return None
    ids = batch["input_ids"]
    read: Tensor = batch.get("attention_mask", torch.ones_like(ids)).bool()
    return words_of(read, batch.get("special_tokens_mask"))


def _held_out(trainer: Any, samples: int) -> Iterator[Any]:
    """Batches of the first held-out samples, evenly spread where the data can do that."""
    data = trainer.datamodule
    loader = data.probe_loaders(samples)[1] if hasattr(data, "probe_loaders") else data.val_dataloader()
    taken = 0
    for batch in loader:
        yield batch
        taken += len(next(value for value in batch.values() if isinstance(value, Tensor)))
        if taken >= samples:
            return
