"""Classification of images: fine-tuning, linear and attentive probes, and training from scratch, all one module."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from bamboo.compiling import Compile
from bamboo.errors import Diverged, InputError
from bamboo.optimizers import layer_decay_groups
from bamboo.recipes import Recipe
from bamboo.shapes import Shape
from bamboo.training import TrainingModule, plain_arguments
from bamboo.vision.encoder import (
    AttentionKind,
    Init,
    encode,
    flops_of,
    in_todays_words,
    options_of,
    patches_of,
    set_norm_eps,
    shape_of,
)
from bamboo.vision.heads import Pool, attach_head, set_drop_path
from bamboo.vision.image_data import ImageData
from bamboo.vision.kv_compression import KVCompression
from bamboo.vision.pixels import PixelScale
from bamboo.vision.views import seed_streams

from .building import SCRATCH, ImageSize, keep_head_of, learning_rates, make_encoder
from .classes import Matching

FINE_TUNING = Recipe(base_lr=5e-4, min_lr=1e-6, warmup_epochs=5, weight_decay=0.05, betas=(0.9, 0.999))
"""What He et al. 2022 fine-tune ViT-B with."""


class Classifier(TrainingModule):
    """A ViT with a head, trained whole or, with `freeze`, above a frozen encoder.

    Every draw of a step (mixup, drop path) is a pure function of the seed, the epoch, the step and the process.

    Args:
        num_classes: classes to tell apart, as many as the data have. A checkpoint's classes are those of the data by
            name: in another order they are matched, and other names are an error.
        encoder: what to start from: anything that `bamboo.checkpoints.load_encoder` reads, or `scratch`. Training
            needs it; evaluating a checkpoint of this class does not.
        shape: depth, width and heads, or a name; by default those of the encoder, which must agree.
        image_size: height and width in pixels; one number for a square.
        patch_size: side of a patch in pixels; by default that of the encoder, which must agree.
        in_chans: channels of an image.
        pool: what the head sees: `avg`, `token` or `map`, see `bamboo.vision.heads.attach_head`.
        freeze: train what stands above the encoder alone.
        batch_norm: a batch norm without weights before the head.
        head_init_std: of the head's weights at the start.
        drop_path: probability that a branch of the last block is left out; lower blocks have less.
        layer_decay: learning rate of a layer over that of the layer above, in a network of `layer_decay_depth` blocks.
        layer_decay_depth: number of blocks that `layer_decay` is written for; at another depth the layer at the same
            relative depth has the same rate, see `bamboo.optimizers.layer_decay_groups`.
        mixup: parameter of the beta distribution that images are mixed by (Zhang et al. 2018), 0 for none.
        cutmix: likewise for pasted rectangles (Yun et al. 2019); with both, each takes half of the batches.
        label_smoothing: share of a label that is spread over all classes.
        recipe: learning rate, schedule and optimizer.
        seed: of mixup and drop path.
        mean: mean of each channel on a scale of 0 to 1; by default as in the encoder.
        std: standard deviation of each channel, likewise.
        layer_norm_eps: epsilon of every LayerNorm; by default as in the encoder.
        compile: compile each block where there is a GPU; or `graphs`, see `bamboo.compiling.Compile`.
        grad_checkpointing: trade a second forward pass of the blocks for their memory.
        init: how fresh weights are drawn, as for the masked autoencoder.
        layer_scale: as for the masked autoencoder; a pretrained encoder keeps what it has, and must agree.
        attention: likewise; `plain` asks for nothing of a pretrained encoder.
        kv_compression: let the upper blocks attend to fewer keys and values than there are tokens, see
            `bamboo.vision.kv_compression.KVCompression`. A pretrained encoder that does not gets new weights for that,
            which start as a mean; one that does keeps what it has, and must agree.
        keep_head: where the encoder is that of a classifier, start from its head too, and call classes as it does.

    Raises:
        InputError: where two of these contradict each other or the encoder.
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str | Path | None = None,
        shape: str | Shape | None = None,
        image_size: ImageSize = 224,
        patch_size: int | None = None,
        in_chans: int = 3,
        pool: Pool = "avg",
        freeze: bool = False,
        batch_norm: bool = False,
        head_init_std: float = 2e-5,
        drop_path: float = 0.0,
        layer_decay: float = 1.0,
        layer_decay_depth: int = 12,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
        recipe: Recipe = FINE_TUNING,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        layer_norm_eps: float | None = None,
        compile: Compile = False,
        grad_checkpointing: bool = False,
        init: Init = "mae",
        layer_scale: float | None = None,
        attention: AttentionKind = "plain",
        kv_compression: KVCompression | None = None,
        keep_head: bool = False,
    ) -> None:
        arguments = plain_arguments(locals())
        super().__init__(recipe)
        if freeze and (drop_path or layer_decay != 1):
            raise InputError(
                "with freeze there is nothing for drop_path and layer_decay to act on: set them to 0 and 1"
            )
        options: dict[str, Any] = {"init": init, "layer_scale": layer_scale, "attention": attention}
        options["kv_compression"] = kv_compression
        self.model, scale = make_encoder(encoder, shape, image_size, patch_size, in_chans, **options)
        self.shape, self.patches = shape_of(self.model), patches_of(self.model)
        own = scale.statistics()
        self.pixels = PixelScale(in_chans, mean or own["mean"], std or own["std"])
        set_norm_eps(self.model, layer_norm_eps)
        self.save_hyperparameters({**arguments, **self._sizes()})
        attach_head(self.model, num_classes, pool, batch_norm, head_init_std)
        self._fresh_head = next(self.model.head.parameters()).detach().clone()
        set_drop_path(self.model, drop_path)
        self.model.set_grad_checkpointing(grad_checkpointing)
        _freeze(self.model, freeze)
        self.train()  # a loaded encoder is in evaluation mode
        self.num_classes, self.has_weights = num_classes, encoder is not None
        self.classes, self._named = [str(number) for number in range(num_classes)], keep_head
        if keep_head:
            self.classes = keep_head_of(encoder, self.model)
        self._data: tuple[list[str], str | None, list[int]] | None = (
            None  # classes, class map, numbers of those present
        )
        self.matching: Matching | None = None
        self.freeze_encoder, self.seed, self.compile_blocks = freeze, seed, compile
        self.layer_decay, self.layer_decay_depth = layer_decay, layer_decay_depth
        self.label_smoothing, self.mixing = label_smoothing, _mixing(mixup, cutmix, label_smoothing, num_classes)
        self.val_loss, self.val_samples = MeanMetric(), SumMetric()
        self.top1, self.top5 = (
            MulticlassAccuracy(num_classes, min(k, num_classes), average="micro", validate_args=False) for k in (1, 5)
        )

    def _sizes(self) -> dict[str, Any]:
        """Arguments as they turned out to be; a checkpoint has its weights and needs no encoder."""
        return {
            "encoder": None,
            "keep_head": False,
            "shape": asdict(self.shape),
            **asdict(self.patches),
            **options_of(self.model),
            **self.pixels.statistics(),
            "layer_norm_eps": self.model.blocks[0].norm1.eps,
        }

    def setup(self, stage: str) -> None:
        """Check the model against the data, and compile the blocks in place."""
        if stage == "fit" and not self.has_weights and not self.trainer.ckpt_path:
            hint = f"--model.init_args.encoder CHECKPOINT, or {SCRATCH!r} for fresh weights"
            raise InputError(f"there is no encoder to start from: give {hint}")
        data = getattr(self.trainer, "datamodule", None)
        self._data = self.matching = None
        # Without a class map predictions are not compared with labels.
        if data is not None and (stage != "predict" or getattr(data, "class_map", None)):
            self._check_data(data)
        if stage in ("validate", "predict") and not self.trainer.ckpt_path and self._head_is_fresh():
            raise InputError("the head of this classifier is untrained: give its checkpoint as --ckpt_path")
        self.compile_on_gpu(self.model.blocks)

    def _head_is_fresh(self) -> bool:
        return torch.equal(next(self.model.head.parameters()).detach().cpu(), self._fresh_head)

    def _check_data(self, data: Any) -> None:
        class_map = getattr(data, "class_map", None)
        if not data.num_classes:
            raise InputError("the data have no classes: expected one sub-folder of images per class")
        if data.num_classes != self.num_classes and not class_map:
            raise InputError(
                f"the data have {data.num_classes} classes and the model {self.num_classes}: "
                f"set model.init_args.num_classes to {data.num_classes}"
            )
        if self.mixing and data.batch_size % 2:
            raise InputError(f"mixup and cutmix pair images: data.init_args.batch_size {data.batch_size} must be even")
        labels = data.sources.val.labels if isinstance(data, ImageData) else torch.arange(data.num_classes).numpy()
        if labels.min() < 0:
            raise InputError(
                f"{(labels < 0).sum()} of {len(labels)} images to validate on have no label: leave them out"
            )
        self._data = list(data.classes), class_map, np.unique(labels).tolist()
        if not class_map:
            self._match_classes(self.classes if self._named else list(data.classes))
        elif self._named or not self.trainer.ckpt_path:  # else the checkpoint is yet to say what it calls its classes
            self._match_classes(self.classes)

    def _match_classes(self, classes: list[str]) -> None:
        """Let the logits stand for `classes`. Raises `InputError` where the data have other ones."""
        self.classes, self._named, self.matching = classes, True, None
        if self._data is not None:
            data, class_map, present = self._data
            if class_map is None:
                self.matching = Matching.by_name(classes, data)
                return
            self.matching = Matching.by_map(classes, data, class_map, present)
            if self.trainer.is_global_zero:
                print(self.matching)

    def _own_labels(self, labels: Tensor) -> Tensor:
        return labels if self.matching is None else self.matching.labels(labels)

    def _scores(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of the classes that compete. Raises `Diverged` where one is not finite."""
        logits: Tensor = self(images)
        if not logits.isfinite().all():
            raise Diverged("the answers of the classifier are not finite: its weights have diverged")
        return logits if self.matching is None else self.matching.competing(logits)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) in fp32 of byte images (B, C, H, W), or of standardised floats."""
        expected = (self.patches.in_chans, *self.patches.image_size)
        if images.shape[1:] != expected:
            raise InputError(
                f"the data gives images of (channels, height, width) {tuple(images.shape[1:])} and the model expects "
                f"{expected}: set image_size and in_chans alike under data.init_args and model.init_args"
            )
        logits: Tensor = self.run(self._logits, self.pixels(images))
        return logits.float()

    def _logits(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of standardised images."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            features = encode(self.model, images)
        logits: Tensor = self.model.forward_head(features)
        return logits

    def compute(self, batch: Mapping[str, Any], batch_idx: int, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of a batch; in training of mixed images against mixed and smoothed labels."""
        images, labels = batch["image"], self._own_labels(batch["label"])
        if self.mixing is None or stage != "train":
            smoothing = self.label_smoothing if stage == "train" else 0.0
            return F.cross_entropy(self(images), labels, label_smoothing=smoothing), {}
        mixed, target = self.mixing(self.pixels(images), labels)
        return F.cross_entropy(self(mixed), target), {}

    def on_train_start(self) -> None:
        """Fix the schedule, and show what learning rate each layer has at its peak."""
        super().on_train_start()
        if self.trainer.is_global_zero:
            print(learning_rates(self.trainer.optimizers[0].param_groups, self.peak_lr))

    def seed_step(self, seed: int) -> None:
        """Start the random streams of a step anew, those too from which timm mixes images."""
        seed_streams(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, by layer, and by whether there is weight decay."""
        weight_decay = self.recipe.weight_decay
        return layer_decay_groups(self.model, self.layer_decay, weight_decay, self.layer_decay_depth)

    def on_validation_epoch_start(self) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Count right answers; every sample counts once, and a batch may be empty."""
        images, labels = batch["image"], self._own_labels(batch["label"])
        if len(images):
            logits = self._scores(images)
            self.val_loss.update(F.cross_entropy(logits, labels), weight=len(images))
            self.top1.update(logits, labels)
            self.top5.update(logits, labels)
        self.val_samples.update(len(images))
        self.log("val/top1", self.top1, prog_bar=True)
        self.log("val/top5", self.top5)
        self.log("val/loss", self.val_loss)
        self.log("val/samples", self.val_samples)

    def on_validation_epoch_end(self) -> None:
        """Log the speed over all processes, reading of the images included."""
        self.log("val/images_per_s", self.val_samples.compute() / (time.perf_counter() - self._since))

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """The number, the label, and the five most probable classes of each image with their probabilities, (B,) each.

        A class is a number of the model's `classes`, the label one of the data's.
        """
        shares = self._scores(batch["image"]).softmax(dim=1)
        answers = {"number": batch["index"], "label": batch["label"]}
        for place, (probability, predicted) in enumerate(zip(*(part.T for part in shares.topk(self.top5.top_k)))):  # noqa: B905
            suffix = f"_{place + 1}" if place else ""
            answers |= {f"predicted{suffix}": predicted, f"probability{suffix}": probability}
        return answers

    def flops_per_sample(self) -> int:
        """FLOPs of one training step on one image: a backward pass costs as much as two forward passes."""
        return flops_of(self.model) * (1 if self.freeze_encoder else 3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the names of the classes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["classes"] = self.classes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the names of the classes from the run.

        Raises:
            InputError: for a checkpoint of another model, or of other classes than those of the data.
        """
        saved = {"kv_compression": None, **in_todays_words(checkpoint.get("hyper_parameters", {}))}
        sizes = ("num_classes", "shape", "image_size", "patch_size", "in_chans", "pool", "batch_norm")
        for key in (*sizes, "layer_scale", "attention", "kv_compression"):
            if saved.get(key) != self.hparams[key]:
                raise InputError(
                    f"the checkpoint has {key} {saved.get(key)} and the configuration {self.hparams[key]}: "
                    "give the configuration that it was trained by"
                )
        super().on_load_checkpoint(checkpoint)
        self.has_weights = True
        self._match_classes(list(checkpoint["classes"]))


def _freeze(model: VisionTransformer, freeze: bool) -> None:
    """Train everything, positions too, or what stands above the encoder alone."""
    model.requires_grad_(not freeze)
    for part in (model.head, model.fc_norm, model.attn_pool):
        if part is not None:
            part.requires_grad_(True)


def _mixing(mixup: float, cutmix: float, label_smoothing: float, num_classes: int) -> Mixup | None:
    if min(mixup, cutmix) < 0 or not 0 <= label_smoothing < 1:
        raise InputError("mixup and cutmix must not be negative, and label_smoothing must be at least 0 and below 1")
    if not (mixup or cutmix):
        return None
    return Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
