"""Reading models from any source, and writing them in the formats of others: timm, Hugging Face, the reference MAE."""

from bamboo.checkpoints.exporting import export as export
from bamboo.checkpoints.exporting import loading_calls as loading_calls
from bamboo.checkpoints.loading import Report as Report
from bamboo.checkpoints.loading import load_classifier as load_classifier
from bamboo.checkpoints.loading import load_encoder as load_encoder
from bamboo.checkpoints.loading import load_mae as load_mae
from bamboo.checkpoints.loading import pixel_scale as pixel_scale
from bamboo.checkpoints.model_card import check_card as check_card
from bamboo.checkpoints.model_card import write_card as write_card
from bamboo.checkpoints.reading import Head as Head
from bamboo.checkpoints.sources import find_source as find_source
from bamboo.files import read_file as read_file
