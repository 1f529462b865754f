"""Pictures and texts for the loggers of a run: TensorBoard, Weights & Biases, and CSV, which gets files beside it."""

from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image

from bamboo.files import atomic_write, write_text


def log_picture(trainer: Trainer, name: str, picture: NDArray[np.uint8], step: int) -> None:
    """Log a picture (H, W, 3) on the first process; loggers that can show none are passed over."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, step, dataformats="HWC")
        elif isinstance(logger, CSVLogger):
            with atomic_write(_file(logger, name, step, "png")) as temporary:
                Image.fromarray(picture).save(temporary, "PNG")
        elif hasattr(logger, "log_image"):  # as that of Weights & Biases has it
            logger.log_image(name, [picture], step=step)


def log_text(trainer: Trainer, name: str, lines: list[str], step: int) -> None:
    """Log lines of text on the first process; loggers that can show none are passed over."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, "\n\n".join(lines), step)
        elif isinstance(logger, CSVLogger):
            write_text(_file(logger, name, step, "txt"), "".join(f"{line}\n" for line in lines))
        elif hasattr(logger, "log_text"):
            logger.log_text(name, columns=["text"], data=[[line] for line in lines], step=step)


def _file(logger: CSVLogger, name: str, step: int, ending: str) -> Path:
    return Path(logger.log_dir) / "logged" / f"{name.replace('/', '_')}_{step}.{ending}"
