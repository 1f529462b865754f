"""Reading models from any source, and writing them in the formats of others: timm, Hugging Face, the reference MAE."""

from bamboo.checkpoints.classifiers import Head, load_classifier, read_head
from bamboo.checkpoints.exporting import export, huggingface_class, timm_call
from bamboo.checkpoints.loading import Report, load_encoder, load_mae, pixel_scale
from bamboo.files import read_file

__all__ = [
    "Head",
    "Report",
    "export",
    "huggingface_class",
    "load_classifier",
    "load_encoder",
    "load_mae",
    "pixel_scale",
    "read_file",
    "read_head",
    "timm_call",
]
