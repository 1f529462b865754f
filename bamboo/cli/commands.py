"""The verbs that do one thing and end. Signatures and docstrings are the command line: `bamboo VERB --help`."""

import shlex
from pathlib import Path
from typing import Any, Literal

from bamboo import shapes as costs
from bamboo.errors import InputError
from bamboo.shapes import DECODER, SHAPES, Patches, default_patch_size, find_shape
from bamboo.tables import table

MASK_RATIO = 0.75
SOURCES_NOTE = """\
The Base pair is triangulated from public configurations; Large and Huge follow from "half the width, four times the
depth", which keeps the parameters. The paper's own table of shapes could not be obtained."""
LEVINE_NOTE = """\
It is a fit to autoregressive language models, its constants quoted second-hand; MAE need not agree with it."""


def shapes(
    *,
    budget: str | None = None,
    head_dim: int = 64,
    equal: Literal["parameters", "flops"] = "parameters",
    image_size: int = 224,
) -> None:
    """Print the named shapes, or the shapes that cost as much as one of them.

    Args:
        budget: a named shape, to list the ladder from it to half its width at equal cost.
        head_dim: width of a head on the ladder.
        equal: what the shapes of a ladder have in common.
        image_size: side of the image that FLOPs are counted for.
    """
    if budget is None:
        _print_named(image_size)
    else:
        _print_ladder(budget, head_dim, equal, Patches.of(image_size, default_patch_size(budget)))


def _print_named(image_size: int) -> None:
    rows = [
        ["shape", "depth x width", "heads", "patch", "blocks", "encoder", "full", "masked", "decoder", "decoder"],
        ["", "", "", "px", "M params", "M params", "GFLOPs", "GFLOPs", "M params", "GFLOPs"],
    ]
    for name, shape in SHAPES.items():
        patches = Patches.of(image_size, default_patch_size(name))
        visible = patches.visible(MASK_RATIO)
        numbers = [
            *(shape.parameters / 1e6, costs.encoder_parameters(shape, patches) / 1e6),
            *(costs.encoder_flops(shape, patches) / 1e9, costs.encoder_flops(shape, patches, visible) / 1e9),
            costs.decoder_parameters(DECODER, shape, patches) / 1e6,
            costs.decoder_flops(DECODER, shape, patches, visible, patches.count - visible) / 1e9,
        ]
        rows.append(
            [name, str(shape), str(shape.heads), str(patches.patch_size), *(f"{number:.1f}" for number in numbers)]
        )
    print(table(rows))
    print(
        f"\nFLOPs of one forward pass over a {image_size} px image; a multiply-accumulate counts as two. Masked: "
        f"{MASK_RATIO:.0%} of the\npatches hidden. The decoder is MAE's, {DECODER} with {DECODER.heads} heads.\n"
        + SOURCES_NOTE
    )


def _print_ladder(budget: str, head_dim: int, equal: Literal["parameters", "flops"], patches: Patches) -> None:
    base, visible = find_shape(budget), patches.visible(MASK_RATIO)
    rows = [
        ["depth x width", "heads", "blocks", "", "full", "", "masked"],
        ["", "", "M params", "", "GFLOPs", "", "GFLOPs"],
    ]
    for shape in costs.ladder(base, head_dim, equal, patches.count + 1):
        flops, masked = costs.encoder_flops(shape, patches), costs.encoder_flops(shape, patches, visible)
        rows.append(
            [
                *(str(shape), str(shape.heads), f"{shape.parameters / 1e6:.1f}"),
                *(f"{shape.parameters / base.parameters - 1:+.1%}", f"{flops / 1e9:.1f}"),
                *(f"{flops / costs.encoder_flops(base, patches) - 1:+.1%}", f"{masked / 1e9:.1f}"),
            ]
        )
    depth, width = costs.levine_optimum(base.parameters)
    print(table(rows))
    print(
        f"\nThe depth-width law of Levine et al. 2020 puts its optimum for {base.parameters / 1e6:.0f} M parameters at "
        f"{depth:.0f} x {width:.0f}.\n" + LEVINE_NOTE
    )


def reconstruct(checkpoint: Path, images: list[Path], *, out: Path, seed: int = 0) -> None:
    """Show what a masked autoencoder makes of images: one PNG for each, input, masked, prediction and paste-up.

    Args:
        checkpoint: a masked autoencoder: a checkpoint of this project, a reference MAE file or a Hugging Face ViTMAE.
        images: image files of any size; each is resized and cropped to the size of the model.
        out: folder for the pictures.
        seed: seed of the masks.
    """
    from tqdm import tqdm

    from bamboo.checkpoints import load_mae, pixel_scale
    from bamboo.vision.images import read_image
    from bamboo.vision.reconstruction import note_for, reconstruct, save_panel
    from bamboo.vision.views import evaluation_view

    mae, scale = load_mae(checkpoint), pixel_scale(checkpoint)
    height, width = mae.encoder.patch_embed.img_size
    for image in tqdm(images, unit="image"):
        picture = evaluation_view(read_image(image, mae.encoder.patch_embed.proj.in_channels), (height, width))
        pictures = reconstruct(mae, scale, picture[None], seed)
        save_panel(pictures, out / f"{image.stem}_reconstruction.png", note_for(mae))
    print(f"{len(images)} pictures in {out}: {note_for(mae)}")


def fill(
    sentence: str,
    *,
    model: str,
    top: int | None = None,
    tokens: int | None = None,
    sample: bool = False,
    temperature: float | None = None,
    seed: int = 0,
) -> None:
    """Print the likeliest words for every [MASK] of a sentence, or how a causal model goes on with it.

    Args:
        sentence: text with [MASK] where a word is to be guessed; for a causal model the beginning of a text.
        model: a checkpoint of language modelling, a Hugging Face folder, or hf:NAME.
        top: words for each mask, by default 5.
        tokens: that a causal model adds at most, by default 30.
        sample: draw each of them by its probability, in place of the most probable one.
        temperature: what logits are divided by in drawing, by default 1.
        seed: of the draws.
    """
    from bamboo.text.checkpoints import load_text
    from bamboo.text.continuing import continue_text
    from bamboo.text.encoder import is_causal
    from bamboo.text.filling import fill as guess
    from bamboo.text.filling import filled_in

    opened = load_text(model)
    if is_causal(opened.model.config):
        if top is not None or (temperature is not None and not sample):
            raise InputError("--top is for [MASK], and --temperature for drawn tokens, by --sample")
        drawing: dict[str, Any] = {"sample": sample, "temperature": 1.0 if temperature is None else temperature}
        amount = 30 if tokens is None else tokens
        text = continue_text(opened.model, opened.tokenizer, sentence, amount, **drawing, seed=seed)
        print(*opened.notes, text, sep="\n")
        return
    if sample or tokens is not None or temperature is not None:
        raise InputError(f"{model} fills in [MASK]: --tokens, --sample and --temperature are for causal models")
    filled = guess(opened.model, opened.tokenizer, sentence, 5 if top is None else top)
    print(*opened.notes, filled_in(sentence, filled), sep="\n")
    for number, guesses in enumerate(filled, 1):
        rows = zip(guesses.words, guesses.probabilities, strict=True)
        print(f"[MASK] {number}: " + ", ".join(f"{word} {probability:.1%}" for word, probability in rows))


def export(
    checkpoint: Path,
    *,
    out: Path,
    format: Literal["auto", "timm", "hf", "reference"] = "auto",
    license: str | None = None,
) -> None:
    """Write a checkpoint so that others can load it, with a model card, the README.md of the folder.

    Args:
        checkpoint: what to export.
        out: folder to write into.
        format: `timm` for the image encoder, or a classifier with its head, which transformers reads too; `hf` for
            transformers' own ViTMAEForPreTraining, ViTForImageClassification, or a masked language model or text
            classifier with its tokenizer; `reference` for the MAE release, without a card; `auto` is `timm`, and `hf`
            for text.
        license: licence to state in the card, as Hugging Face's hub names it: mit, apache-2.0 and so on.
    """
    from bamboo.checkpoints import check_card, find_source, loading_calls, write_card
    from bamboo.checkpoints import export as write

    if format == "reference":
        if license is not None:
            raise InputError("format reference has no model card that could state a licence: leave --license out")
        print("\n".join(f"wrote {path}" for path in write(checkpoint, format, out)))
        return
    check_card(out, license)  # before anything is written
    if find_source(checkpoint).kind == "text":
        paths = _export_text(checkpoint, out, format)
    else:
        paths = write(checkpoint, "timm" if format == "auto" else format, out)
    paths.append(write_card(checkpoint, out, license))
    print("\n".join(f"wrote {path}" for path in paths))
    print("\n  ".join(["load it by", *loading_calls(out)]))
    print(f"share it by\n  hf upload NAMESPACE/NAME {shlex.quote(str(out))}")


def _export_text(checkpoint: Path, out: Path, format: str) -> list[Path]:
    from bamboo.text.checkpoints import export_text

    if format not in ("auto", "hf"):
        raise InputError(f"{checkpoint} is a text model, which is exported as hf, not as {format}")
    return export_text(checkpoint, out)[1]
