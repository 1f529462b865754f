"""From a batch of any common form to a forward pass, at full or at masked length, and the layout of its tokens."""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
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
from .recorder import Layout

Tokens = Literal["patches", "all"]


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W), or texts: `ids` and `read` (B, T), and `special`, true for [CLS], [SEP] and the like."""

    images: Tensor | None = None
    ids: Tensor | None = None
    read: Tensor | None = None
    special: Tensor | None = None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        given = self.images if self.images is not None else self.ids
        return 0 if given is None else len(given)

    def first(self, count: int) -> "Batch":
        """The first samples of the batch."""
        parts = {name: getattr(self, name) for name in ("images", "ids", "read", "special")}
        return replace(self, **{name: part[:count] for name, part in parts.items() if part is not None})

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        parts = {name: getattr(self, name) for name in ("images", "ids", "read", "special")}
        return replace(self, **{name: part.to(device) for name, part in parts.items() if part is not None})

    def fingerprints(self) -> list[int]:
        """A number of 32 bits for each sample that follows from its content alone."""
        if self.images is not None:
            return [zlib.crc32(image.contiguous().numpy().tobytes()) for image in self.images.cpu()]
        assert self.ids is not None
        assert self.read is not None
        rows = zip(self.ids.cpu(), self.read.cpu(), strict=True)
        return [zlib.crc32(ids[read].numpy().tobytes()) for ids, read in rows]


def read_batch(batch: Any) -> Batch:
    """A batch of a loader: images, alone or first in a tuple, or a dictionary (`image`, `pixel_values` or `input_ids`).

    Raises:
        InputError: where it holds neither images nor texts.
    """
    if isinstance(batch, Mapping):
        if "input_ids" in batch:
            read = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
            special = batch.get("special_tokens_mask")
            return Batch(ids=batch["input_ids"], read=read, special=None if special is None else special.bool() & read)
        images = batch.get("image", batch.get("pixel_values"))
        skipped = tuple(map(str, batch.get("skipped", ())))
    else:
        images, skipped = batch[0] if isinstance(batch, list | tuple) else batch, ()
    if not isinstance(images, Tensor) or images.dim() != 4:
        found = f"tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"a batch holds a {found}: expected images (B, C, H, W), or a dictionary with 'input_ids'")
    return Batch(images=images, skipped=skipped)


def words_of(read: Tensor, special: Tensor | None) -> Tensor:
    """Which tokens (B, T) of texts count: those that are read and are not [CLS], [SEP] and the like.

    Raises:
        InputError: where a batch does not say which those are.
    """
    if special is None:
        raise InputError(
            "a batch of texts has no special_tokens_mask, so [CLS] and [SEP] would count as words: tokenise with "
            "return_special_tokens_mask=True, or profile with tokens='all'"
        )
    return read & ~special.bool()


def reads_text(model: nn.Module) -> bool:
    """Whether a model takes token numbers rather than images."""
    return getattr(model, "main_input_name", "pixel_values") == "input_ids"


class Feeder:
    """Runs a model on batches, and says what its tokens are.

    Args:
        model: the model.
        tokens: count `patches` (in texts: words) alone, or `all`, class token and registers included.
        mask_ratio: share of patches to leave out, as in masked pretraining; 0 for whole images.
        seed: of the masks, which follow from it and from the content of a sample.
        prefix: number of tokens before the patches, the class token first, where they cannot be found.

    Raises:
        InputError: where the model cannot be masked.
    """

    def __init__(self, model: nn.Module, tokens: Tokens, mask_ratio: float, seed: int, prefix: int | None = None):
        self.model, self.tokens, self.mask_ratio, self.seed = model, tokens, mask_ratio, seed
        self.prefix = find_prefix(model) if prefix is None else Prefix(prefix > 0, max(prefix - 1, 0))
        self.scale: PixelScale | None = None
        if not 0 <= mask_ratio < 1:
            raise InputError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}")
        if mask_ratio and not _masks_itself(model):
            check_maskable(model)

    def layout(self, batch: Batch) -> Layout:
        """Which tokens of a batch are what."""
        every = self.tokens == "all"
        if batch.images is None:
            assert batch.read is not None
            if every:
                return Layout(mask=batch.read, read=batch.read, has_class=False)
            words = words_of(batch.read, batch.special)
            has_class = bool((batch.read & ~words)[:, 0].all())
            return Layout(mask=words, read=batch.read, has_class=has_class)
        if every:
            return Layout(in_order=False)
        has_class, registers = self.prefix
        size = (batch.images.shape[2], batch.images.shape[3])
        return Layout(self.prefix.length, None, None, has_class, registers, size, in_order=not self.mask_ratio)

    def run(self, batch: Batch, fingerprints: list[int]) -> None:
        """One forward pass of the model without its head."""
        if batch.images is None:
            if not reads_text(self.model):
                raise InputError(f"{type(self.model).__name__} reads images, and the data are texts")
            base = getattr(self.model, "base_model", self.model)
            base(input_ids=batch.ids, attention_mask=batch.read.long() if batch.read is not None else None)
            return
        if reads_text(self.model):
            raise InputError(f"{type(self.model).__name__} reads texts, and the data are images")
        images = self.standardise(batch.images)
        if _masks_itself(self.model):
            self._run_vit_mae(images, fingerprints)
        elif self.mask_ratio:
            self._run_masked(images, fingerprints)
        else:
            base = getattr(self.model, "forward_features", getattr(self.model, "base_model", self.model))
            base(images)

    def standardise(self, images: Tensor) -> Tensor:
        """Bytes to floats by the mean and deviation that the model was trained with; floats pass unchanged."""
        if self.scale is None:
            told = getattr(self.model, "pretrained_cfg", None) or {}
            known = len(told.get("mean", ())) == images.shape[1]
            self.scale = PixelScale(images.shape[1], told["mean"] if known else None, told["std"] if known else None)
            self.scale.to(images.device)
        return self.scale(images)  # type: ignore[no-any-return]

    def _run_masked(self, images: Tensor, fingerprints: list[int]) -> None:
        encoder = check_maskable(self.model)
        patches = patchify(images, encoder.patch_embed.patch_size[0])
        order = self._noise(fingerprints, patches.shape[1]).argsort(1).to(images.device)
        tokens = embed(encoder, patches, order[:, : int(patches.shape[1] * (1 - self.mask_ratio))])
        *_, last = block_states(encoder, tokens)
        encoder.norm(last)

    def _run_vit_mae(self, images: Tensor, fingerprints: list[int]) -> None:
        """transformers' own masked autoencoder always masks: its ratio is set, and its noise given."""
        base: Any = getattr(self.model, "base_model", self.model)
        count = base.embeddings.patch_embeddings.num_patches
        noise = self._noise(fingerprints, count) if self.mask_ratio else torch.arange(count).repeat(len(images), 1)
        with _setting(base.config, "mask_ratio", self.mask_ratio):
            base(images, noise=noise.to(images.device))

    def _noise(self, fingerprints: list[int], count: int) -> Tensor:
        def row(fingerprint: int) -> Tensor:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "profile mask", fingerprint))
            return torch.rand(count, generator=generator)

        return torch.stack([row(fingerprint) for fingerprint in fingerprints])


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


def precision_context(precision: Literal["32", "bf16"], device: torch.device) -> Any:
    """Autocast to bf16, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def _setting(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
