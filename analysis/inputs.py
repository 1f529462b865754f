"""From a batch of any common form to a forward pass, at full or at masked length, and the layout of its tokens."""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from bamboo.errors import InputError
from bamboo.seeds import derive_seed
from bamboo.vision.encoder import block_states, check_maskable, embed
from bamboo.vision.pixels import PixelScale, patchify

from .architectures import Prefix, find_prefix

Tokens = Literal["patches", "all"]


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W), or texts: `ids` and `read` (B, T), and `special`, true for [CLS], [SEP] and the like."""

    images: Tensor | None = None
    ids: Tensor | None = None
    read: Tensor | None = None
    special: Tensor | None = None
    skipped: tuple[str, ...] = ()

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with every tensor changed, such as cut or moved to a device."""
        tensors = {name: getattr(self, name) for name in ("images", "ids", "read", "special")}
        changed = {name: change(tensor) for name, tensor in tensors.items() if tensor is not None}
        return replace(self, **changed)  # type: ignore[arg-type]

    def fingerprints(self) -> list[int]:
        """A number of 32 bits for each sample that follows from its content alone."""
        if self.images is not None:
            samples = list(self.images.cpu())
        else:
            assert self.ids is not None
            assert self.read is not None
            samples = [ids[read] for ids, read in zip(self.ids.cpu(), self.read.cpu(), strict=True)]
        return [zlib.crc32(sample.contiguous().numpy().tobytes()) for sample in samples]


def read_batch(batch: Any) -> Batch:
    """A batch of a loader: images, alone or first in a tuple, or a dictionary (`image`, `pixel_values` or `input_ids`).

    Raises:
        InputError: where it holds neither images nor texts.
    """
    skipped: tuple[str, ...] = ()
    if isinstance(batch, Mapping):
        if "input_ids" in batch:
            read = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
            special = batch.get("special_tokens_mask")
            return Batch(ids=batch["input_ids"], read=read, special=None if special is None else special.bool() & read)
        skipped = tuple(map(str, batch.get("skipped", ())))
        batch = batch.get("image", batch.get("pixel_values"))
    images = batch[0] if isinstance(batch, list | tuple) else batch
    if not isinstance(images, Tensor) or images.dim() != 4:
        kind = f"tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"a batch holds a {kind}: expected images (B, C, H, W), or a dictionary with 'input_ids'")
    return Batch(images=images, skipped=skipped)


def words_of(read: Tensor, special: Tensor | None) -> Tensor:
    """Which tokens (B, T) of texts count: those that are read and are not [CLS], [SEP] and the like."""
    if special is None:
        raise InputError(
            "a batch of texts has no special_tokens_mask, so [CLS] and [SEP] would count as words: tokenise with "
            "return_special_tokens_mask=True, or profile with tokens='all'"
        )
    return read & ~special.bool()


def reads_text(model: nn.Module) -> bool:
    """Whether a model takes token numbers rather than images."""
    return getattr(model, "main_input_name", "pixel_values") == "input_ids"


@dataclass(frozen=True)
class Layout:
    """Which tokens of a batch are what.

    Args:
        start: tokens before this one do not count.
        mask: (batch, tokens from `start` on), true where a token counts; None where all do.
        read: (batch, tokens), true for all but padding; None where there is no padding.
        has_class: whether token 0 is a class token that does not count.
        registers: tokens that do not count after the class token.
        image: height and width of an image in pixels, None for a text.
        in_order: whether neighbouring tokens are neighbours in the image or text.
    """

    start: int = 0
    mask: Tensor | None = None
    read: Tensor | None = None
    has_class: bool = False
    registers: int = 0
    image: tuple[int, int] | None = None
    in_order: bool = True

    def grid(self, count: int) -> tuple[int, int] | None:
        """Rows and columns of `count` patches, None for a text; `InputError` where they make no grid over the image."""
        if self.image is None:
            return None
        height, width = self.image
        rows = max(round(math.sqrt(count * height / width)), 1)
        if count % rows:
            raise InputError(
                f"{count} tokens make no grid of patches over images of {height}x{width}: "
                "say with prefix= how many tokens come before the patches"
            )
        return rows, count // rows


class Feeder:
    """Runs a model on batches, and says what its tokens are; the arguments are those of `profile`.

    Raises:
        InputError: where the model cannot be masked.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: Tokens = "patches",
        mask_ratio: float = 0.0,
        seed: int = 0,
        prefix: int | None = None,
    ):
        self.model, self.tokens, self.mask_ratio, self.seed = model, tokens, mask_ratio, seed
        self.prefix = find_prefix(model) if prefix is None else Prefix(prefix > 0, max(prefix - 1, 0))
        self.scale: PixelScale | None = None
        if not 0 <= mask_ratio < 1:
            raise InputError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}")
        if mask_ratio and not _masks_itself(model):
            check_maskable(model)

    def layout(self, batch: Batch) -> Layout:
        """Which tokens of a batch are what."""
        if self.tokens == "all":
            return Layout(mask=batch.read, read=batch.read, in_order=batch.images is None)
        if batch.images is None:
            assert batch.read is not None
            words = words_of(batch.read, batch.special)
            return Layout(mask=words, read=batch.read, has_class=bool((batch.read & ~words)[:, 0].all()))
        height, width = batch.images.shape[2:]
        start, in_order = self.prefix.length, not self.mask_ratio
        return Layout(start, None, None, *self.prefix, image=(height, width), in_order=in_order)

    def run(self, batch: Batch, fingerprints: list[int]) -> None:
        """One forward pass of the model without its head."""
        if (batch.images is None) != reads_text(self.model):
            reads, data = ("texts", "images") if batch.images is not None else ("images", "texts")
            raise InputError(f"{type(self.model).__name__} reads {reads}, and the data are {data}")
        base: Any = getattr(self.model, "base_model", self.model)
        if batch.images is None:
            assert batch.read is not None
            base(input_ids=batch.ids, attention_mask=batch.read.long())
            return
        images = self._standardise(batch.images)
        if _masks_itself(self.model):
            self._run_vit_mae(base, images, fingerprints)
        elif self.mask_ratio:
            self._run_masked(images, fingerprints)
        else:
            getattr(self.model, "forward_features", base)(images)

    def _standardise(self, images: Tensor) -> Tensor:
        """Bytes to floats by the mean and deviation that the model was trained with; floats pass unchanged."""
        if self.scale is None:
            config = getattr(self.model, "pretrained_cfg", None) or {}
            known = len(config.get("mean", ())) == images.shape[1]
            statistics = (config["mean"], config["std"]) if known else ()
            self.scale = PixelScale(images.shape[1], *statistics).to(images.device)
        return self.scale(images)  # type: ignore[no-any-return]

    def _run_masked(self, images: Tensor, fingerprints: list[int]) -> None:
        encoder = check_maskable(self.model)
        patches = patchify(images, encoder.patch_embed.patch_size[0])
        order = self._noise(fingerprints, patches.shape[1]).argsort(1).to(images.device)
        keep = order[:, : int(patches.shape[1] * (1 - self.mask_ratio))]
        *_, last = block_states(encoder, embed(encoder, patches, keep), keep)
        encoder.norm(last)

    def _run_vit_mae(self, base: Any, images: Tensor, fingerprints: list[int]) -> None:
        """transformers' own masked autoencoder always masks: its ratio is set for the pass, and its noise given."""
        count = base.embeddings.patch_embeddings.num_patches
        noise = self._noise(fingerprints, count) if self.mask_ratio else torch.arange(count).repeat(len(images), 1)
        trained_ratio, base.config.mask_ratio = base.config.mask_ratio, self.mask_ratio
        try:
            base(images, noise=noise.to(images.device))
        finally:
            base.config.mask_ratio = trained_ratio

    def _noise(self, fingerprints: list[int], count: int) -> Tensor:
        """Random numbers (batch, count), of each sample by its content."""
        seeds = (derive_seed(self.seed, "profile mask", fingerprint) for fingerprint in fingerprints)
        return torch.stack([torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _masks_itself(model: nn.Module) -> bool:
    return getattr(getattr(model, "config", None), "model_type", "") == "vit_mae"


def encoder_of(model: nn.Module) -> nn.Module:
    """The part of a model that is profiled: the encoder of a masked autoencoder, else the model itself."""
    encoder = getattr(getattr(model, "mae", model), "encoder", None)
    return encoder if isinstance(encoder, VisionTransformer) else model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's own mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
