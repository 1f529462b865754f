"""What the folders of `bamboo fit` and `bamboo study` say about their runs."""

import json
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from bamboo.errors import InputError
from bamboo.files import read_file
from bamboo.recipes import scaled_lr
from bamboo.shapes import Patches, find_shape

Row = dict[str, Any]
Curves = dict[str, list[tuple[int, float]]]


def read_folder(folder: Path, loss: str) -> tuple[list[Row], list[str]]:
    """Rows of all runs of `bamboo fit` and cells of studies in and below a folder, and why others are left out.

    The row of a cell is that of its masked objective. Parameters are those of the encoder's blocks.

    Raises:
        InputError: where there is no run, one cannot be read, or losses are those of several objectives.
    """
    fits = [path.parent.parent for path in sorted(folder.rglob("checkpoints/last.ckpt"))]
    ended = [*folder.rglob("cells/*/*.json"), *folder.glob("*.json")]
    cells = sorted({path.parent for path in ended if path.name in ("result.json", "failed.json")})
    if not fits and not cells:
        raise InputError(f"{folder} holds neither checkpoints/last.ckpt of a run nor cells/*/result.json of a study")
    runs = [*(_read_fit(fit, loss) for fit in fits), *map(_read_cell, cells)]
    rows = [row for row in runs if isinstance(row, dict)]
    objectives = sorted({row["objective"] for row in rows if "objective" in row})
    if len(objectives) > 1:
        raise InputError(
            f"{folder} holds losses of several objectives, {', '.join(objectives)}, which cannot be compared: "
            f"give the cells of one, as in {folder / 'cells' / objectives[0]}-*"
        )
    return rows, [row for row in runs if isinstance(row, str)]


def _read_cell(folder: Path) -> Row | str:
    path = next(path for name in ("result", "failed") if (path := folder / f"{name}.json").is_file())
    try:
        result = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is cut short or no JSON object: let the study write it again") from error
    if path.name == "failed.json":
        return f"{folder}: it failed, {result.get('reason', 'for no known reason')}"
    if result.get("numbers", {}).get("loss") is None:
        return f"{folder}: its objective, {result.get('objective')}, has no masked loss"
    checkpoint, logs = read_file(folder / "train" / "last.ckpt"), folder / "train" / "logs"
    row = _trained(logs, checkpoint, _read_curves(logs), checkpoint["global_step"])
    row |= {"loss": result["numbers"]["loss"], "seed": result["seed"], "objective": result["objective"]}
    return {**row, "name": str(folder)}


def _read_fit(folder: Path, loss: str) -> Row | str:
    checkpoint, curves = read_file(folder / "checkpoints" / "last.ckpt"), _read_curves(folder)
    if not _ended(checkpoint, _read_config(folder / "config.yaml")["trainer"]):
        return f"{folder}: it is not finished, it stopped at step {checkpoint['global_step']}"
    if loss not in curves:
        losses = ", ".join(tag for tag in curves if "loss" in tag) or "none"
        raise InputError(f"{folder} logged no {loss}: name one of {losses} with --loss")
    step, value = curves[loss][-1]
    return {**_trained(folder, checkpoint, curves, step + 1), "loss": value, "name": str(folder)}


def _trained(folder: Path, checkpoint: dict[str, Any], curves: Curves, steps: int) -> Row:
    """What the configuration in a folder of logs and a checkpoint say of the first steps of a run, but for its loss."""
    config, arguments = _read_config(folder / "config.yaml"), checkpoint.get("hyper_parameters", {})
    if "shape" not in arguments or "recipe" not in arguments:
        raise InputError(f"{folder}: its checkpoint names no shape and recipe: give runs of bamboo fit, or a CSV")
    rate = arguments["recipe"]["base_lr"]
    peak = max((lr for _, lr in curves.get("train/lr", ())), default=0.0)
    batch = checkpoint.get("batch", {}).get("effective_batch") or _effective_batch(config, rate, peak)
    seed = config.get("seed_everything")
    return {
        "parameters": find_shape(arguments["shape"]).parameters,
        "data": steps * batch,
        "batch_size": batch,
        "learning_rate": scaled_lr(rate, batch),
        "tokens_per_sample": _tokens(arguments, config["data"]),
        "seed": seed if type(seed) is int else None,
    }


def _tokens(arguments: dict[str, Any], data: dict[str, Any]) -> int:
    """Tokens of a sample that the blocks of the encoder read: of an image the visible patches and the class token."""
    if "block_length" in data:
        return int(data["block_length"])
    patches = Patches.of(arguments.get("image_size", 224), arguments.get("patch_size", 16))
    return patches.visible(arguments.get("mask_ratio", 0.75)) + 1


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
        return {**config, "trainer": dict(config["trainer"]), "data": dict(config["data"]["init_args"])}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{path} is missing or no configuration that bamboo fit wrote") from error


def _ended(checkpoint: dict[str, Any], trainer: dict[str, Any]) -> bool:
    """Whether all steps or epochs that were asked for have run."""
    steps, epochs = trainer.get("max_steps") or -1, trainer.get("max_epochs") or -1
    loop = checkpoint["loops"]["fit_loop"]
    begun, at_end = loop["epoch_progress"]["current"]["ready"], loop["epoch_loop.batch_progress"]["is_last_batch"]
    done = begun if at_end else begun - 1
    return bool(0 < steps <= checkpoint["global_step"] or 0 < epochs <= done)


def _read_curves(folder: Path) -> Curves:
    """All that a run logged to TensorBoard: step and value, by tag."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _effective_batch(config: dict[str, Any], base_lr: float, peak: float) -> int:
    """Samples in one step, for older checkpoints, which do not say: where devices are "auto", by the learning rate."""
    trainer, devices = config["trainer"], config["trainer"].get("devices", "auto")
    process = config["data"]["batch_size"] * (trainer.get("accumulate_grad_batches") or 1)
    if isinstance(devices, list) or str(devices).isdigit():
        count = len(devices) if isinstance(devices, list) else int(devices)
        return int(process * count * (trainer.get("num_nodes") or 1))
    return int(process * max(1, round(peak * 256 / base_lr / process)))
