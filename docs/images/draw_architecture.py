"""Draw architecture.png: one image, one text and one study on their way, with the shapes that the code gives them.

python docs/images/draw_architecture.py [OUT.png]
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms.functional import center_crop, resize

from bamboo.fit.compose import compose, find_config, select
from bamboo.shapes import Shape
from bamboo.text.encoder import build_config, build_model
from bamboo.text.masking import masked_count
from bamboo.vision.mae import build_mae
from bamboo.vision.pixels import PixelScale, patchify
from bamboo.vision.reconstruction import reconstruct

GREEN, GREY = "#dcead6", "#f2f2f2"
Box = tuple[str, str] | Tensor
"""A title with what lies under it, or a picture (3, H, W)."""


def size(tensor: Tensor) -> str:
    """The shape of a batch of one, with a letter for the batch."""
    return " x ".join(["B", *map(str, tensor.shape[1:])])


def image_row() -> list[Box]:
    """A photograph through bamboo-base."""
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None]
    crop = center_crop(resize(photo, [224], antialias=True), [224, 224])
    mae, pixels = build_mae("bamboo-base"), PixelScale(3)
    shapes: dict[str, str] = {}
    mae.encoder.norm.register_forward_hook(lambda *call: shapes.update(encoded=size(call[2])))
    with torch.no_grad():
        output = mae(pixels(crop), torch.rand(1, 196))
    pictures = reconstruct(mae, pixels, crop)[0]
    return [
        photo[0],
        pictures[0],
        ("patches", size(patchify(crop, 16))),
        pictures[1],
        (f"encoder\n{len(mae.encoder.blocks)} blocks", f"visible tokens\n{shapes['encoded']}"),
        (f"decoder\n{len(mae.decoder.blocks)} blocks", f"hidden patches\n{size(output.predicted)}"),
        ("loss", "squared error\nper patch,\nstandardised"),
    ]


def text_row() -> list[Box]:
    """A block of tokens through the encoder of the text quickstart."""
    quickstart = compose(find_config("pretrain/text_quickstart"))
    options: dict[str, Any] = select(quickstart, "model.init_args")
    length: int = select(quickstart, "data.init_args.block_length")
    config = build_config(shape=Shape(**options["shape"]), vocab_size=options["vocab_size"])
    model = build_model(config)
    ids = torch.randint(5, config.vocab_size, (1, length))
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    return [
        ("documents", "a folder,\na file, or glosses"),
        ("tokens", "of a tokenizer\ntrained on them"),
        ("blocks", f"[CLS] ... [SEP]\n{size(ids)}"),
        ("masked", "15 %: 8 of 10 [MASK],\n1 another, 1 the same"),
        (f"encoder\n{config.num_hidden_layers} blocks", size(states[-1])),
        ("head", f"hidden tokens alone\nB * {masked_count(length, 0.15)} x {config.vocab_size}"),
        ("loss", "cross-entropy"),
    ]


def study_row() -> list[Box]:
    """What a study goes through; there is nothing here to measure."""
    return [
        ("study.yaml", "shapes, objectives,\naxes, seeds"),
        ("cells", "one for each\ncombination"),
        ("train", "bamboo fit,\nresumable"),
        ("then", "fine-tune,\nwhere asked"),
        ("measure", "similarity by layer,\naccuracy, cost"),
        ("table", "one row a cell:\ncells.csv"),
        ("verdicts", "claims by rule,\nreport.html"),
    ]


def draw(rows: dict[str, Sequence[Box]], path: Path) -> None:
    """One row of boxes after the other, with arrows between them."""
    figure = Figure(figsize=(15, 2.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), max(map(len, rows.values())))
    for line, (title, row) in zip(axes, rows.items(), strict=True):
        line[0].set_title(title, loc="left", fontsize=12, fontweight="bold")
        for place, (axis, box) in enumerate(zip(line, row, strict=True)):
            axis.axis("off")
            if isinstance(box, Tensor):
                axis.imshow(box.permute(1, 2, 0).numpy())
            else:
                axis.set(xlim=(0, 1), ylim=(0, 1))
                colour = GREEN if "blocks" in box[0] and "coder" in box[0] else GREY
                axis.add_patch(FancyBboxPatch((0.08, 0.12), 0.84, 0.76, "round,pad=0.04", facecolor=colour))
                axis.text(0.5, 0.72, box[0], ha="center", va="center", fontsize=12)
                axis.text(0.5, 0.34, box[1], ha="center", va="center", fontsize=9)
            if place:
                axis.annotate("", (0.02, 0.5), (-0.14, 0.5), "axes fraction", arrowprops={"arrowstyle": "->"})
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    torch.manual_seed(0)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("architecture.png")
    draw({"One image": image_row(), "One text": text_row(), "One study": study_row()}, out)
