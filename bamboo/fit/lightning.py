"""`bamboo fit|validate|predict`: LightningCLI over composed configurations, with one line per mistake."""

import logging
import re
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from bamboo.errors import InputError
from bamboo.fit.compose import compose_arguments
from bamboo.fit.parse_errors import one_line
from bamboo.saving import Checkpoints


class BambooCLI(LightningCLI):
    """LightningCLI in which `--ckpt_path last` continues the newest run, and a run ends by saying what it wrote."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs, but for `test`: `validate` evaluates whatever is held out."""
        return {verb: skipped for verb, skipped in LightningCLI.subcommands().items() if verb != "test"}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's parser, raising where it would print its usage and exit."""
        return super().init_parser(exit_on_error=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """A section `checkpoint` beside `trainer`, for a callback in a list cannot be changed from the command line."""
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.set_defaults({"checkpoint.save_top_k": 0, "checkpoint.save_last": True, "checkpoint.filename": "{step}"})

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it was typed: Lightning would put the checkpoint's arguments in its place."""

    def before_instantiate_classes(self) -> None:
        """Settle what Lightning would leave to the person who types."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        _check_strategy(config.trainer.strategy)
        if config.trainer.enable_progress_bar is False:  # a configured bar would be an error then
            config.trainer.callbacks = [c for c in config.trainer.callbacks or [] if "ProgressBar" not in c.class_path]
        if config.get("ckpt_path") == "last":
            self._continue_newest_run(config)

    def instantiate_classes(self) -> None:
        """Tell the trainer of the checkpoint now, so that a module knows in `setup` that weights are to come."""
        super().instantiate_classes()
        config = self.config_init[self.subcommand] if self.subcommand else {}
        if Path(config.get("ckpt_path") or "").is_file():
            self.trainer.ckpt_path = config.pop("ckpt_path")

    def _continue_newest_run(self, config: Namespace) -> None:
        """Resolve `--ckpt_path last`, and let a resumed run go on in the folder of the run that it resumes."""
        loggers = config.trainer.logger
        logger = loggers[0] if isinstance(loggers, list) and loggers else loggers
        if not isinstance(logger, Namespace):
            raise InputError("--ckpt_path last needs the logger of the run: give the path of a checkpoint instead")
        # Weights & Biases has a folder for each project, in which a run goes by its id.
        runs = Path(logger.init_args.save_dir) / (logger.init_args.get("project") or logger.init_args.name)
        checkpoints = runs.glob("*/checkpoints/last.ckpt")
        newest = max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise InputError(f"no run to continue: there is no checkpoint last.ckpt below {runs}")
        config.ckpt_path = str(newest)
        if self.subcommand == "fit":
            logger.init_args.version = newest.parent.parent.name
            _keep_table(newest.parent.parent)

    def after_fit(self) -> None:
        """Say what was written and measured."""
        trainer = self.trainer
        log_dir = trainer.log_dir  # all processes must ask for it
        if not trainer.is_global_zero:
            return
        saved = trainer.checkpoint_callback
        rows = {"checkpoint": getattr(saved, "last_model_path", ""), "best": getattr(saved, "best_model_path", "")}
        rows["logs" if "TensorBoard" not in type(trainer.logger).__name__ else "tensorboard"] = log_dir
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            rows |= callback.summary() if hasattr(callback, "summary") else {}
        print("\n" + "\n".join(f"{name + ':':<40} {value}" for name, value in rows.items() if value))


def _keep_table(run: Path) -> None:
    """Give another name to the table of a `CSVLogger`, which deletes the one that it finds."""
    table = run / "metrics.csv"
    if table.is_file():
        table.rename(run / f"metrics_{len(list(run.glob('metrics*.csv')))}.csv")


def _check_strategy(strategy: str | Namespace) -> None:
    """Refuse what cuts weights up or flattens them: weight decay, LARS and CAME go by the shape of a weight."""
    name = strategy if isinstance(strategy, str) else strategy.class_path
    if re.search("fsdp|deepspeed|modelparallel", name, re.IGNORECASE):
        raise InputError(
            f"trainer.strategy {name} cuts weights into pieces, and weight decay, LARS and CAME need them whole: give "
            "ddp, under which the largest shape (630 M parameters) fits a GPU"
        )


def run(args: list[str]) -> None:
    """Run one of Lightning's verbs. Raises `InputError` for what a person got wrong."""
    _cli(compose_arguments(args), save_config_kwargs={"overwrite": True})


def build(config: str) -> BambooCLI:
    """Model, data and trainer of a configuration, given as the text of its YAML; nothing runs."""
    return _cli(["--config", config], run=False, save_config_callback=None)


def _cli(args: list[str], **kwargs: Any) -> BambooCLI:
    for module in ("utilities.rank_zero", "accelerators.cuda"):  # which log devices, and tips for products
        logging.getLogger(f"lightning.pytorch.{module}").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # the words that it got are the composed ones
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")
    kwargs |= {"subclass_mode_model": True, "subclass_mode_data": True}
    try:
        return BambooCLI(LightningModule, LightningDataModule, args=args, **kwargs)
    except ArgumentError as error:
        raise InputError(one_line(str(error), args)) from error
    except MisconfigurationException as error:
        raise InputError(" ".join(str(error).split())) from error
    except ValueError as error:
        raise _as_input_error(error, args) from None


def _as_input_error(error: ValueError, args: list[str]) -> ValueError:
    """The `InputError` that jsonargparse wrapped on its way out of a constructor, or what it or Lightning says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__ or cause.__context__
    if str(error).startswith("You selected an invalid"):  # strategy or accelerator
        return InputError(str(error).split(". Example")[0])
    return InputError(one_line(str(error), args)) if str(error).startswith("Does not validate") else error
