"""The published recipes in one table, each with its source, beside what each recipe file resolves to at every shape."""

import contextlib
import io
import re
from dataclasses import asdict
from importlib import import_module
from inspect import Parameter, signature

import pytest
import yaml
from omegaconf import OmegaConf

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.finetune.glue.tasks import TASKS
from bamboo.fit.compose import compose_arguments
from bamboo.recipes import Recipe
from bamboo.shapes import SHAPES
from bamboo.text.encoder import build_config
from bamboo.vision.mae import build_mae
from tests.runs import CONFIGS

SIZES = {f"{kind}-{size}": size for size in ("base", "large", "huge") for kind in ("vit", "bamboo")} | {
    "mid-base": "base"
}
OF_SIZE = {("finetune/imagenet", size): f"finetune/imagenet_{size}" for size in ("large", "huge")} | {
    ("finetune/scratch", size): "finetune/scratch_large" for size in ("large", "huge")
}
PATCH = {"base": 16, "large": 16, "huge": 14}  # He et al. 2022 and Dosovitskiy et al. 2021: ViT-H/14

# Every run here: AdamW with PyTorch's eps, half a cosine after a warm-up in epochs, no clipping, 224 px, plain crops.
COMMON = {
    "recipe": {"optimizer": "adamw", "eps": 1e-8, "schedule": "cosine", "warmup_share": None, "min_lr": 0.0},
    "data": {"repeat": 1, "flip": 0.5, "image_size": 224, "in_chans": 3, "fraction": 1.0, "shots": None},
    "model": {"init": "mae", "layer_scale": None, "attention": "plain", "kv_compression": None},
    "trainer": {"gradient_clip_val": None, "precision": "bf16-mixed", "accumulate_grad_batches": 1, "max_steps": -1},
}
# github.com/facebookresearch/mae: PRETRAIN.md (64 x 8 x 8 images, 800 epochs) and main_pretrain.py.
MAE = {
    "recipe": {"base_lr": 1.5e-4, "warmup_epochs": 40, "weight_decay": 0.05, "betas": [0.9, 0.95]},
    "batch": 4096,
    "model": {"mask_ratio": 0.75, "predict_ratio": 1.0, "norm_pix": True, "decoder": "self", "mix_layers": False}
    | {"init_from": None, "stack": None}
    | {"decoder_shape": {"depth": 8, "width": 512, "heads": 16, "mlp_ratio": 4.0}},
    "data": {"batch_size": 64, "crop_scale": 0.2, "augment": None, "erase": 0.0},
    "trainer": {"max_epochs": 800},
}
DEEP = MAE | {"model": MAE["model"] | {"init": "depth"}}  # our own choice
PLAIN_HEAD = {"freeze": False, "batch_norm": False, "drop_path": 0.0, "layer_decay": 1.0}
UNMIXED = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}
STRONG = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}
RANDAUGMENT = {"crop_scale": 0.08, "augment": "rand-m9-mstd0.5-inc1", "erase": 0.25}
# The same repository: FINETUNE.md and main_finetune.py; global average pooling, a head that starts at 2e-5.
FINE_TUNING = {
    "recipe": {"base_lr": 5e-4, "min_lr": 1e-6, "warmup_epochs": 5, "weight_decay": 0.05, "betas": [0.9, 0.999]},
    "batch": 1024,
    "model": PLAIN_HEAD | STRONG | {"pool": "avg", "head_init_std": 2e-5},
    "data": RANDAUGMENT | {"batch_size": 128},
}
FINE_TUNING_SIZES = {
    "base": {"model": {"layer_decay": 0.65, "layer_decay_depth": 12, "drop_path": 0.1}, "trainer": {"max_epochs": 100}},
    "large": {
        "recipe": {"base_lr": 1e-3},
        "model": {"layer_decay": 0.75, "layer_decay_depth": 24, "drop_path": 0.2},
        "trainer": {"max_epochs": 50},
    },
    "huge": {
        "recipe": {"base_lr": 1e-3},
        "model": {"layer_decay": 0.75, "layer_decay_depth": 32, "drop_path": 0.3},
        "trainer": {"max_epochs": 50},
    },
}
# The same: main_linprobe.py, 512 x 8 x 4 images, and the class token under a batch norm without weights.
LINEAR = {
    "recipe": {"optimizer": "lars", "base_lr": 0.1, "warmup_epochs": 10, "weight_decay": 0.0, "betas": [0.9, 0.999]},
    "batch": 16384,
    "model": PLAIN_HEAD | UNMIXED | {"pool": "token", "freeze": True, "batch_norm": True, "head_init_std": 0.01},
    "data": {"batch_size": 2048, "crop_scale": 0.08, "augment": None, "erase": 0.0},
    "trainer": {"max_epochs": 90},
}
# No published protocol: our own choice.
ATTENTIVE = {
    "recipe": {"base_lr": 5e-4, "warmup_epochs": 5, "weight_decay": 0.05, "betas": [0.9, 0.999]},
    "batch": 1024,
    "model": PLAIN_HEAD | UNMIXED | {"pool": "map", "freeze": True, "head_init_std": 0.01},
    "data": {"batch_size": 128, "crop_scale": 0.08, "augment": None, "erase": 0.0},
    "trainer": {"max_epochs": 50},
}
# Our own choice too. Mixing and augmentation are those of fine-tuning; no rate falls from layer to layer.
HIGH_RESOLUTION = {
    "recipe": {"base_lr": 2e-5, "min_lr": 1e-6, "warmup_epochs": 1, "weight_decay": 0.05, "betas": [0.9, 0.999]},
    "batch": 512,
    "model": PLAIN_HEAD
    | STRONG
    | {"image_size": 448, "pool": "avg", "drop_path": 0.1, "keep_head": True, "grad_checkpointing": True},
    "data": RANDAUGMENT | {"image_size": 448, "batch_size": 32},
    "trainer": {"max_epochs": 10},
}
# Base: github.com/facebookresearch/deit, main.py (5e-4 for 512 images, so 2.5e-4 for 256), no repeated augmentation.
SCRATCH = {
    "recipe": {"base_lr": 2.5e-4, "min_lr": 1e-5, "warmup_epochs": 5, "weight_decay": 0.05, "betas": [0.9, 0.999]},
    "batch": 1024,
    "model": PLAIN_HEAD | STRONG | {"encoder": "scratch", "pool": "token", "head_init_std": 0.02, "drop_path": 0.1},
    "data": RANDAUGMENT | {"batch_size": 128},
    "trainer": {"max_epochs": 300},
}
# Large and Huge: He et al. 2022, appendix A.2, the table of supervised training from scratch. Quoted from memory.
SCRATCH_LARGE = {
    "recipe": {"base_lr": 1e-4, "min_lr": 0.0, "warmup_epochs": 20, "weight_decay": 0.3, "betas": [0.9, 0.95]},
    "batch": 4096,
    "model": {"drop_path": 0.2},
    "data": {"batch_size": 64, "erase": 0.0},
    "trainer": {"max_epochs": 200, "ema": 0.9999},
}
TEXT = {
    "recipe": {"optimizer": "adamw", "schedule": "linear", "min_lr": 0.0},
    "model": {"max_positions": 512, "vocab_size": 30522, "whole_words": False, "within_documents": False}
    | {"init_from": None, "stack": None, "objective": "masked", "positions": "learned", "adaptive": "none"},
    "data": {"block_length": 128},
    "trainer": {"precision": "bf16-mixed", "accumulate_grad_batches": 1},
}
# Devlin et al. 2019, A.2: a million steps of 256 sequences, 10,000 of them to warm up; eps of google-research/bert.
BERT = {
    "recipe": {"base_lr": 1e-4, "eps": 1e-6, "weight_decay": 0.01, "betas": [0.9, 0.999], "warmup_share": 0.01},
    "batch": 256,
    "model": {"architecture": "bert", "dropout": 0.1, "mask_ratio": 0.15},
    "data": {"batch_size": 256},
    "trainer": {"max_steps": 1_000_000, "max_epochs": None, "gradient_clip_val": 1.0},
}
# Budgets of a day: 1e-3 at 4,096 sequences (Izsak et al. 2021), a triangle over the time, a quarter masked, no dropout,
# eps and clipping of github.com/JonasGeiping/cramming (Geiping and Goldstein 2023).
ONE_DAY = {
    "recipe": {"base_lr": 6.25e-5, "eps": 1e-12, "weight_decay": 0.01, "betas": [0.9, 0.98], "warmup_share": 0.75},
    "batch": 4096,
    "model": {"architecture": "roberta-prelayernorm", "dropout": 0.0, "mask_ratio": 0.25},
    "data": {"batch_size": 128},
    "trainer": {"max_steps": -1, "max_epochs": -1, "max_time": "01:00:00:00", "gradient_clip_val": 0.5},
}
# CAME takes 0.5 to 0.9 of AdamW's rate, and a third beta above the second: github.com/yangluo7/CAME.
CAME = {"recipe": {"optimizer": "came", "base_lr": 4.4e-5, "betas": [0.9, 0.999, 0.9999]}}
# Cramming's one setting for all tasks: 4e-5 at 16 texts, 5 epochs, a tenth to warm up; clipping of Devlin et al. 2019.
GLUE = {
    "recipe": {"optimizer": "adamw", "base_lr": 4e-5 * 256 / 16, "min_lr": 0.0, "eps": 1e-8, "schedule": "cosine"}
    | {"weight_decay": 0.0, "betas": [0.9, 0.999], "warmup_share": 0.1},
    "batch": 0,
    "model": {"dropout": 0.1, "layer_decay": 1.0, "layer_decay_depth": 12},
    "data": {"batch_size": 16, "max_length": 128},
    "trainer": {"max_epochs": 5, "max_steps": -1, "gradient_clip_val": 1.0, "accumulate_grad_batches": 1}
    | {"precision": "bf16-mixed"},
}


def merged(*parts):
    """Tables of sections, later ones over earlier ones."""
    sections = {name: {} for name in ("recipe", "model", "data", "trainer")}
    for part in parts:
        for name, values in part.items():
            section = sections["recipe"] if name == "batch" else sections[name]
            section |= {"effective_batch": values} if name == "batch" else values
    return sections


def image_tables():
    families = {
        "pretrain/imagenet": ("imagenet", MAE, {}),
        "pretrain/imagenet_deep": ("imagenet-deep", DEEP, {}),
        "finetune/imagenet": ("finetune", FINE_TUNING, FINE_TUNING_SIZES),
        "finetune/linear": ("linear", LINEAR, {}),
        "finetune/attentive": ("attentive", ATTENTIVE, {}),
        "finetune/high_resolution": ("high-resolution", HIGH_RESOLUTION, {}),
        "finetune/scratch": ("scratch", SCRATCH, {"large": SCRATCH_LARGE, "huge": SCRATCH_LARGE}),
    }
    for family, (run, table, by_size) in families.items():
        for shape, size in SIZES.items():
            which = {"model": {"shape": shape, "patch_size": PATCH[size], "image_size": 224, "in_chans": 3}}
            file = OF_SIZE.get((family, size), family)
            yield (file, shape), (f"{run}-{shape}", merged(COMMON, which, table, by_size.get(size, {})))


def text_tables():
    for name, run, shape, parts in (
        ("bert", "bert-vit-base", "vit-base", (BERT,)),
        ("bert", "bert-vit-large", "vit-large", (BERT,)),
        ("one_day_came", "came-bamboo-base", "bamboo-base", (ONE_DAY, CAME)),
        *(("one_day", shape, shape, (ONE_DAY,)) for shape in SIZES if SIZES[shape] != "huge"),
    ):
        yield (f"pretrain/text_{name}", shape), (f"text-{run}", merged(TEXT, {"model": {"shape": shape}}, *parts))
    for task in TASKS:
        which = {"model": {"task": task}, "data": {"task": task}}
        yield ("finetune/glue", task), (f"glue-{task}", merged(GLUE, which))
    yield ("finetune/texts", "texts"), ("texts", merged(GLUE, {"model": {"task": "texts"}}))


TABLE = {**dict(image_tables()), **dict(text_tables())}
OF_NO_RECIPE = {
    "model": {"seed", "compile", "encoder", "num_classes", "classes", "recipe"},
    "data": {"seed", "root", "num_workers", "train", "val", "predict", "task"},
    "trainer": {"log_every_n_steps", "num_sanity_val_steps", "logger", "plugins", "callbacks", "val_check_interval"}
    | {"check_val_every_n_epoch"},
}
"""What a file may say besides."""


def defaults(class_path):
    """Default of every option of a class, those of its bases and of the function that takes its `**` included."""
    module, _, name = class_path.rpartition(".")
    kind = getattr(import_module(module), name)
    takers = {"MAEPretraining": [build_mae], "MLMPretraining": [build_config]}.get(name, [])
    found = {}
    for function in [*takers, *(base.__init__ for base in reversed(kind.__mro__))]:
        parameters = signature(function).parameters.values()
        found |= {p.name: p.default for p in parameters if p.default is not Parameter.empty}
    return found


def resolved(config):
    """Sections of the table as a configuration has them, with the defaults of what it does not say."""
    model, data = config["model"], config["data"]
    told = {**defaults(model["class_path"]), **model["init_args"]}
    recipe = {**vars(Recipe()), **told["recipe"]}
    decoder = told.get("decoder_shape")
    if decoder is not None and not isinstance(decoder, dict):
        told["decoder_shape"] = {name: getattr(decoder, name) for name in ("depth", "width", "heads", "mlp_ratio")}
    trainer = {"accumulate_grad_batches": 1, "max_steps": -1, "gradient_clip_val": None, "max_epochs": None}
    trainer |= config["trainer"]
    averages = [one["init_args"]["decay"] for one in trainer.get("callbacks", []) if one["class_path"].endswith(".EMA")]
    trainer |= {"ema": averages[0]} if averages else {}
    return {
        "recipe": recipe,
        "model": told,
        "data": {**defaults(data["class_path"]), **data["init_args"]},
        "trainer": trainer,
    }


def words(file, option):
    """The command line of a recipe at a shape or a task."""
    key = "shape" if option in SHAPES else "task"
    return ["fit", "--config", str(CONFIGS / f"{file}.yaml"), f"--model.init_args.{key}", option]


def composed(file, option):
    return OmegaConf.to_container(OmegaConf.create(compose_arguments(words(file, option))[2]))


def assert_is_of_the_table(entry, config):
    found, (run, table) = resolved(config), TABLE[entry]
    assert config["trainer"]["logger"]["init_args"]["name"] == run
    for section, expected in table.items():
        assert {key: found[section].get(key) for key in expected} == expected, section
    if "ema" not in table["trainer"]:
        assert "ema" not in found["trainer"]


def test_every_recipe_file_is_in_the_table():
    files = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("[a-z]*.yaml")}
    small = ("quickstart", "digits", "glosses", "cifar10", "imagenette", "image_folder", "text_corpus", "one_gpu")
    recipes = {name for name in files if not name.startswith("study/") and not name.endswith(small)}
    assert recipes == {file for file, _ in TABLE}
    assert set(SIZES) <= set(SHAPES)


def refusal(file, shape):
    with pytest.raises(InputError, match="this recipe is for shapes of size") as error:
        compose_arguments(["fit", "--config", str(CONFIGS / f"{file}.yaml"), "--model.shape", shape])
    return str(error.value)


@pytest.mark.parametrize(("family", "size"), OF_SIZE)
def test_a_shape_of_another_size_is_refused_with_the_file_that_is_for_it(family, size):
    numbers = yaml.safe_dump(asdict(SHAPES[f"bamboo-{size}"]), default_flow_style=True)
    assert re.search(rf"is vit-{size}: .*{OF_SIZE[family, size]}", refusal(family, f"vit-{size}"))
    assert re.search(rf"is bamboo-{size}: .*{OF_SIZE[family, size]}", refusal(family, numbers))
    assert re.search(rf"is vit-base: .*{family}\b", refusal(OF_SIZE[family, size], "vit-base"))


@pytest.mark.parametrize(
    ("given", "name", "patch_size"),
    [
        ('{"depth": 2, "width": 32, "heads": 2}', "2x32", 16),
        ('{"depth": 48, "width": 384, "heads": 6}', "bamboo-base", 16),
        ("null", "of-encoder", None),
    ],
)
def test_a_shape_without_a_name_names_the_run_by_its_numbers(given, name, patch_size):
    line = ["fit", "--config", str(CONFIGS / "finetune/imagenet.yaml"), f"--model.init_args.shape={given}"]
    config = OmegaConf.create(compose_arguments(line)[2])
    assert config.trainer.logger.init_args.name == f"finetune-{name}"
    assert config.model.init_args.patch_size == patch_size


@pytest.mark.parametrize("entry", TABLE, ids="-".join)
def test_a_file_resolves_to_the_recipe_of_the_table_and_says_nothing_else(entry):
    config = composed(*entry)
    assert_is_of_the_table(entry, config)
    said = {
        "recipe": config["model"]["init_args"]["recipe"],
        "model": config["model"]["init_args"],
        "data": config["data"]["init_args"],
        "trainer": config["trainer"],
    }
    for section, options in said.items():
        assert set(options) - set(TABLE[entry][1][section]) <= OF_NO_RECIPE.get(section, set()), section


@pytest.mark.parametrize("entry", [("finetune/scratch_large", "vit-huge")])
def test_print_config_says_the_same(entry):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        main([*words(*entry), "--data.init_args.root=x", "--print_config"])
    assert_is_of_the_table(entry, yaml.safe_load(out.getvalue()))
