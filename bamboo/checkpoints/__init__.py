"""Reading models from any source, and writing them in the formats of others: timm, Hugging Face, the reference MAE."""

from bamboo.checkpoints.exporting import export, loading_calls
from bamboo.checkpoints.loading import Report, load_classifier, load_encoder, load_mae, pixel_scale
from bamboo.checkpoints.reading import Head
from bamboo.checkpoints.sources import find_source
from bamboo.files import read_file

__all__ = [
    "Head",
    "Report",
    "export",
    "find_source",
    "load_classifier",
    "load_encoder",
    "load_mae",
    "loading_calls",
    "pixel_scale",
    "read_file",
]
